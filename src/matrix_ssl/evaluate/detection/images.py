"""Images and their targets at the network's input size, and the training batches.

The images of an iteration, their size and whether they are flipped are functions of (seed, iteration, image), so they
are the same in a resumed run and with any number of processes or threads. Threads read ahead: decoding and resizing
release the GIL, and no copies between processes are needed.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from matrix_ssl.data.files.images import Unreadable, decode_image, read_or_replace
from matrix_ssl.data.files.opening import quiet_pillow
from matrix_ssl.data.randomness import permutation, uniform
from matrix_ssl.errors import UnreadableImage
from matrix_ssl.evaluate.detection.annotations import AnnotatedImage, Annotations, check_objects
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.evaluate.detection.settings import DetectionSettings
from matrix_ssl.evaluate.detection.shapes import decode, encode

_ORDER, _CHANGES = 0xD0, 0xD1  # random streams for the order of the images and for their augmentation
_AHEAD = 2  # batches or images read ahead for each thread
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class DetectionBatch:
    """This process's images of one iteration."""

    iteration: int
    images: list[Tensor]  # (3, h, w) each, in [0, 1]
    targets: list[dict[str, Tensor]]  # boxes (k, 4), labels (k,) from 1, masks (k, h, w)
    unreadable: list[Unreadable]

    def to(self, device: torch.device) -> "DetectionBatch":
        """Returns the batch on a device."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        targets = [{key: value.to(device, non_blocking=True) for key, value in t.items()} for t in self.targets]
        return DetectionBatch(self.iteration, images, targets, self.unreadable)


class TrainingImages:
    """The batches of a run; images without an object are skipped, as in Detectron2."""

    def __init__(
        self, annotations: Annotations, files: ImageFiles, settings: DetectionSettings, *, rank: int, processes: int
    ):
        self.images = [image for image in annotations.images if image.objects()]
        check_objects(annotations, "to learn")
        self._labels = {category.id: label for label, category in enumerate(annotations.categories, start=1)}
        self._files, self._settings = files, settings
        self._rank, self._size = rank, settings.batch_size // processes
        self._order = (-1, np.zeros(0, np.int64))  # of the newest epoch

    def __len__(self) -> int:
        return len(self.images)

    def indices(self, iteration: int) -> list[int]:
        """This process's images of an iteration; randomly ordered epochs follow each other without a gap."""
        first = iteration * self._settings.batch_size + self._rank * self._size
        return [self._at(position) for position in range(first, first + self._size)]

    def batches(self, iterations: Iterable[int]) -> Generator[DetectionBatch, None, None]:
        """The batches of the given iterations, read ahead by threads."""
        keys = ((iteration, self.indices(iteration)) for iteration in iterations)
        return read_ahead(lambda key: self._batch(*key), keys, threads=self._settings.workers)

    def unreadable(self) -> list[Unreadable]:
        """All images that cannot be read: path, reason."""

        def look(image: AnnotatedImage) -> Unreadable | None:
            try:
                read_pixels(image, self._files)
            except UnreadableImage as error:
                return error.where, error.reason
            return None

        return [one for one in read_ahead(look, self.images, threads=self._settings.workers) if one is not None]

    def _batch(self, iteration: int, indices: list[int]) -> DetectionBatch:
        batch = DetectionBatch(iteration, [], [], [])
        sides, longest = self._settings.train_sizes, self._settings.train_longest
        for index in indices:
            pixels, substitute, unreadable = read_or_replace(self._read, index, len(self.images))
            batch.unreadable.extend(unreadable)
            image = self.images[substitute]
            side, turn = uniform(self._settings.seed, _CHANGES, iteration, index, draws=2)
            size = fit(image, shorter=sides[int(side * len(sides))], longest=longest)
            flip = bool(turn < self._settings.flip)
            batch.images.append(resize(pixels, *size, flip=flip))
            batch.targets.append(make_target(image, self._labels, *size, flip=flip))
        return batch

    def _read(self, index: int) -> Tensor:
        return read_pixels(self.images[index], self._files)

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.images))
        if epoch != self._order[0]:
            self._order = epoch, permutation(len(self.images), self._settings.seed, _ORDER, epoch)
        return int(self._order[1][place])


def read_pixels(image: AnnotatedImage, files: ImageFiles) -> Tensor:
    """An upright image (3, height, width), uint8; UnreadableImage also if its size differs from the annotations'."""
    where = files.where(image.name)
    pixels = decode_image(files.read(image.name), where)
    height, width = pixels.shape[1:]
    if (height, width) != (image.height, image.width):
        raise UnreadableImage(
            where, f"it is {width} x {height} pixels, its annotations are for {image.width} x {image.height}"
        )
    return pixels


def fit(image: AnnotatedImage, *, shorter: int, longest: int) -> tuple[int, int]:
    """Height and width with the shorter side at ``shorter``, or less if the longer one would exceed ``longest``."""
    scale = shorter / min(image.height, image.width)
    scale = min(scale, longest / max(image.height, image.width))
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


def resize(pixels: Tensor, height: int, width: int, *, flip: bool = False) -> Tensor:
    """Resizes pixels (3, h, w), uint8, to (3, height, width) in [0, 1], bilinearly with antialiasing."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    values = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values[:, :, ::-1] if flip else values)).float() / 255


def make_target(
    image: AnnotatedImage, labels: dict[int, int], height: int, width: int, *, flip: bool
) -> dict[str, Tensor]:
    """The objects of an image at another size: boxes clipped to it (k, 4), labels (k,), masks (k, height, width)."""
    scale = width / image.width, height / image.height
    objects = image.objects()
    boxes = torch.tensor([instance.box for instance in objects], dtype=torch.float64).reshape(-1, 2, 2)
    boxes = torch.minimum(boxes.clamp_min(0), torch.tensor([image.width, image.height])) * torch.tensor(scale)
    masks = np.stack([decode(encode(instance.shape, height, width, scale=scale)) for instance in objects])
    if flip:
        masks = masks[:, :, ::-1]
        boxes[:, :, 0] = width - boxes[:, :, 0].flip(1)
    return {
        "boxes": boxes.reshape(-1, 4).float(),
        "labels": torch.tensor([labels[instance.category] for instance in objects]),
        "masks": torch.from_numpy(np.ascontiguousarray(masks)),
    }


def read_ahead(function: Callable[[Key], Value], keys: Iterable[Key], *, threads: int) -> Generator[Value, None, None]:
    """``map``, computed ahead by threads, in the order of the keys; a call's exception is raised in its turn.

    Warnings are suppressed until the end, because threads share the filters that decoding changes.
    """
    if not threads:
        yield from map(function, keys)
        return
    with quiet_pillow(), ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        waiting: deque[Future[Value]] = deque()
        try:
            for key in keys:
                waiting.append(pool.submit(function, key))
                if len(waiting) > _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
