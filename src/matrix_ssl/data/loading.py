"""From a dataset to batches on the device: random views for training, central squares for evaluation.

Training reads images in an order that is a function of (seed, epoch), and every global batch is split into equal parts
by rank, so any number of processes sees the same samples. Datasets in memory are kept on the device and cropped there;
files are decoded and cropped by worker processes, and every other augmentation runs on the device in batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl.config import DataConfig, ViewConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.files.images import Unreadable
from matrix_ssl.data.files.squares import centre_box
from matrix_ssl.data.randomness import permutation
from matrix_ssl.data.views import augment, opencv_views
from matrix_ssl.data.views.device_views import DeviceViews
from matrix_ssl.data.workers import CentralSquares, Crops, FinishedViews, RandomCrops, Reader, read_batches
from matrix_ssl.errors import ConfigError, UnreadableImage

_LARGE = 64  # side in pixels from which views are made one by one on a CPU
_LOOKED_AT = 64  # images that are checked together
_ORDER = 0x0DE2  # coordinate that keeps the sample order apart from the views


@dataclass(frozen=True)
class Batch:
    """This process's share of one training step."""

    step: int
    views: tuple[Tensor, ...]  # (n_local, c, s, s) each, s that of the view, normalised
    indices: NDArray[np.int64]  # (n_local,), the images in them; if one cannot be read, its substitute
    unreadable: list[Unreadable]


class TrainingBatches:
    """The batches of a training run, from any step on, as views on the given device and of the given type.

    ``batch_size`` is over all processes; it is at most the number of images and a multiple of ``world_size``.
    """

    def __init__(
        self,
        source: Source,
        data: DataConfig,
        views: tuple[ViewConfig, ...],
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        if batch_size > len(source):
            raise ConfigError(
                f"batch_size={batch_size} is larger than the {len(source)} images of {source.name!r}: "
                f"use --set batch_size={largest_batch(len(source))} or add images."
            )
        if batch_size % world_size:
            raise ConfigError(f"batch_size={batch_size} must be a multiple of the {world_size} processes.")
        if data.view_backend == "opencv":
            opencv_views.check(source, device)
        self.steps_per_epoch = len(source) // batch_size
        self._source, self._data, self._views = source, data, augment.each_view(views, data.image_size)
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._device, self._dtype = device, dtype
        self._on_device: DeviceViews | None = None
        if device.type != "cpu":
            self._on_device = DeviceViews(self._views, mean=data.mean, std=data.std, device=device, dtype=dtype)
        self._order = (-1, np.zeros(0, np.int64))  # of the newest epoch: half a second of work for a million images

    def samples(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of a step, and the images that this process takes, int64 (n_local,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._order[0]:
            self._order = epoch, permutation(len(self._source), self._seed, _ORDER, epoch)
        size = self._batch_size // self._world_size
        start = position * self._batch_size + self._rank * size
        return epoch, self._order[1][start : start + size]

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps from ``start`` to ``stop`` - 1; errors as in ``workers.read_batches``."""
        if self._data.view_backend == "opencv":
            return self._by_opencv(start, stop)
        if self._source.images is None:
            return self._from_files(start, stop)
        return self._from_memory(self._source.images.to(self._device), start, stop)

    def _from_memory(self, images: Tensor, start: int, stop: int) -> Iterator[Batch]:
        height, width = images.shape[-2:]
        for step in range(start, stop):
            epoch, samples = self.samples(step)
            if self._on_device is not None:
                views = self._on_device.of_images(images, samples, seed=self._seed, epoch=epoch)
                yield Batch(step, views, samples, [])
                continue
            batch, finished = images[torch.from_numpy(samples)], []
            for number, view in enumerate(self._views, 1):
                keys = augment.Keys(self._seed, epoch, samples, number)
                boxes = augment.random_boxes(view, keys, height, width)
                finished.append(self._finish(batch, view, keys, boxes))
            yield Batch(step, tuple(finished), samples, [])

    def _from_files(self, start: int, stop: int) -> Iterator[Batch]:
        reader = RandomCrops(self._source, self._views, self._seed)
        samples = (self.samples(step) for step in range(start, stop))
        read = read_batches(reader, samples, workers=self._data.workers, device=self._device)
        for step, crops in enumerate(read, start):
            epoch, parts = step // self.steps_per_epoch, crops.views(self._device)
            if self._on_device is not None:
                views = self._on_device.of_crops(parts, crops.samples, seed=self._seed, epoch=epoch)
            else:
                keys = (augment.Keys(self._seed, epoch, crops.samples, v) for v in range(1, len(parts) + 1))
                views = tuple(map(self._finish, parts, self._views, keys))
            yield Batch(step, views, crops.indices, crops.unreadable)

    def _by_opencv(self, start: int, stop: int) -> Iterator[Batch]:
        reader = FinishedViews(self._source, self._views, self._seed)
        samples = (self.samples(step) for step in range(start, stop))
        workers = self._data.workers if self._source.images is None else 0
        for step, read in enumerate(read_batches(reader, samples, workers=workers), start):
            views = (
                opencv_views.normalise(levels.numpy(), self._data.mean, self._data.std, dtype=self._dtype)
                for levels in read.views()
            )
            yield Batch(step, tuple(views), read.indices, read.unreadable)

    def _finish(
        self, images: Tensor, view: ViewConfig, keys: augment.Keys, boxes: augment.Array | None = None
    ) -> Tensor:
        """A view of images or, without boxes, of their crops; large ones are made one by one to fit the cache."""
        n, channels, size = len(images), images.shape[1], view.image_size
        draws = augment.draw_view(view, keys, channels=channels)
        result = torch.empty((n, channels, size, size), dtype=self._dtype, memory_format=torch.channels_last)
        if size < _LARGE:
            crops = images.float() if boxes is None else augment.crop_batch(images, boxes, size)
            pixels = augment.change(crops / self._source.white, view, draws)
            return result.copy_(augment.normalise(pixels, self._data.mean, self._data.std))
        for i, image in enumerate(images):
            crop = image[None].float() if boxes is None else augment.crop_exactly(image, boxes[i], size)
            pixels = augment.change(crop.div_(self._source.white), view, draws.image(i))
            result[i] = augment.normalise(pixels, self._data.mean, self._data.std)[0]
        return result


def evaluation_batches(
    source: Source, data: DataConfig, *, device: torch.device, batch_size: int = 256
) -> Iterator[tuple[NDArray[np.int64], Tensor, list[Unreadable]]]:
    """Central squares of the whole dataset in order, not yet normalised.

    Each batch is the indices (m,) of readable images, their pixels (m, c, s, s) in [0, 1], and the unreadable images.
    """
    if source.images is not None and not source.crops_are_rounded:
        box = centre_box(data.crop_fraction, *source.images.shape[-2:], mode=data.crop_mode)
        for start in range(0, len(source), batch_size):
            images = source.images[start : start + batch_size].to(device)
            boxes = np.tile(np.array(box), (len(images), 1))
            squares = augment.crop_batch(images, boxes, data.image_size)
            yield np.arange(start, start + len(images)), squares / source.white, []
        return
    keys = [range(i, min(i + batch_size, len(source))) for i in range(0, len(source), batch_size)]
    for crops in read_batches(CentralSquares(source, data), keys, workers=data.workers):
        (squares,) = crops.views(device)
        yield crops.indices, squares.float() / source.white, crops.unreadable


class _Readable(Reader[Crops]):
    """Reads images only to check whether they can be read; a key is a range of images."""

    def batch(self, key: range) -> Crops:
        unreadable = []
        for index in key:
            try:
                self._source.read(index)
            except UnreadableImage as error:
                unreadable.append((error.where, error.reason))
        none = np.zeros(0, dtype=np.int64)
        return Crops(torch.empty(0, dtype=torch.uint8), [], none, none, unreadable)


def unreadable_images(source: Source, *, workers: int) -> Iterator[Unreadable]:
    """All images of a dataset that cannot be read, in order; every image is read."""
    keys = [range(i, min(i + _LOOKED_AT, len(source))) for i in range(0, len(source), _LOOKED_AT)]
    for crops in read_batches(_Readable(source), keys, workers=workers):
        yield from crops.unreadable


def largest_batch(images: int) -> int:
    """The largest power of two that leaves at least one step per epoch."""
    return 1 << max(0, images.bit_length() - 1)
