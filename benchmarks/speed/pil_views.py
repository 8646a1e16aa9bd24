"""Two views of an image by torchvision on PIL images, one image at a time, as published loops have them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import functional as TF

from matrix_ssl import config


class Images(Dataset[tuple[Any, int]]):
    """Images in memory or files, changed by a transform."""

    def __init__(self, images: Sequence[Any], transform: Any):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        if isinstance(image, Path):
            with Image.open(image) as file:
                image = file.convert("RGB")
        return self.transform(image)


def published_views(side: int) -> Any:
    """Two views of a PIL image by torchvision's transforms, as the published code composes them."""

    def view(blur: float, solarize: float) -> Any:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(side, scale=(0.2, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([transforms.GaussianBlur(9, (0.1, 2.0))], p=blur),
                transforms.RandomApply([transforms.Lambda(_solarize)], p=solarize),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config.IMAGENET_MEAN, config.IMAGENET_STD),
            ]
        )

    first, second = view(1.0, 0.0), view(0.1, 0.2)
    return lambda image: (first(image), second(image))


def _solarize(image: Any) -> Any:
    return TF.solarize(image, 128)
