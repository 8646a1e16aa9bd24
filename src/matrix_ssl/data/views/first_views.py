"""Small versions of the views of a few images in the first training step, for the page of the run."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TV

from matrix_ssl.config import RunConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.files.pixels import viewable
from matrix_ssl.data.loading import TrainingBatches
from matrix_ssl.data.views.augment import each_view

_IMAGES, _VIEWS = 6, 2
_SIDE = 96  # pixels of the longer side


class _FirstImages(TrainingBatches):
    """The batches of a training run, each cut down to its first images."""

    def samples(self, step: int) -> tuple[int, NDArray[np.int64]]:
        epoch, samples = super().samples(step)
        return epoch, samples[:_IMAGES]


def first_views(config: RunConfig, source: Source) -> dict[str, NDArray[Any]]:
    """The first images of the first step with their first two views, as arrays ready for an .npz file.

    The random numbers are those of the training, so a view differs from what the encoder saw only by rounding. An image
    that cannot be read is replaced by the one that the training used instead.

    Returns:
        ``where`` str (n,), and for each i ``image_i`` uint8 (h, w, c) and ``view_i_j`` uint8 (s, s, c), with j from 1
        and c either 1 or 3.
    """
    data = dataclasses.replace(config.data, workers=0)
    batches = _FirstImages(
        source, data, each_view(config.views, data.image_size)[:_VIEWS], batch_size=config.batch_size,
        seed=config.seed, rank=0, world_size=1, device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    batch = next(iter(batches.iterate(0, 1)))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    arrays: dict[str, NDArray[Any]] = {"where": np.array([source.where(i) for i in batch.indices.tolist()])}
    for row, index in enumerate(batch.indices.tolist()):
        arrays[f"image_{row}"] = _small(source.read(index))
    for number, view in enumerate(batch.views, 1):
        pixels = (view * std + mean).clamp(0, 1)
        for row, image in enumerate(pixels if source.dtype.is_floating_point else (255 * pixels).round().byte()):
            arrays[f"view_{row}_{number}"] = _small(image)
    return arrays


def _small(image: Tensor) -> NDArray[np.uint8]:
    pixels = viewable(image)
    longest = max(pixels.shape[1:])
    if longest > _SIDE:
        size = [max(1, round(side * _SIDE / longest)) for side in pixels.shape[1:]]
        pixels = TV.resize(pixels, size, antialias=True)
    small: NDArray[np.uint8] = pixels.permute(1, 2, 0).contiguous().numpy()
    return small
