"""From a set of images to batches on the device: random views for training, central squares for evaluation.

Training sees images in an order that is a function of (seed, epoch), and every global batch is cut into equal parts
by rank, so any number of processes sees the same samples. Sets in memory live on the device and are cropped there;
files are decoded and cropped by worker processes, and every other change runs on the device in batches.

An image that cannot be read is replaced by the next one of the set that can, the same way each time, and reported.
"""

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from matrix_ssl.config import DataConfig, ViewConfig
from matrix_ssl.data import augment
from matrix_ssl.data.base import Source
from matrix_ssl.data.open_files import check_open_files, open_files_error
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, TrainingError, UnreadableImage

_ORDER = 0x0DE2  # coordinate that keeps the sample order apart from the views
_MOST_WORKERS = 8
_FILES_OF_A_BATCH = 16  # descriptors that a worker may need to send the batches in flight and to read the next one
_FILES_OF_A_WORKER = 8  # descriptors of a worker's pipes and batches in the main process: measured five
_FILES_OF_THE_LOADER = 32  # descriptors of what all workers share and of what else the main process opens meanwhile
_MOST_SUBSTITUTES = 100  # images tried in the place of one that cannot be read
Unreadable = tuple[str, str]  # where, why


@dataclass(frozen=True)
class Batch:
    """This process's part of one training step."""

    step: int
    views: tuple[Tensor, ...]  # (n_local, c, s, s) each, normalised
    indices: NDArray[np.int64]  # (n_local,), the images in them: where one cannot be read, the one in its place
    unreadable: list[Unreadable]


class TrainingBatches:
    """The batches of a training, from any step on.

    Args:
        source: the images.
        data: size and normalisation.
        views: the random changes that make each view of an image, one view or more.
        batch_size: over all processes.
        seed: of the order and of the views.
        rank, world_size: which part of every global batch this process takes.
        device, dtype: of the views.

    Raises:
        ConfigError: the batch is larger than the set or does not divide by the number of processes.
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
            raise ConfigError(f"batch_size={batch_size} does not divide by {world_size} processes.")
        self.steps_per_epoch = len(source) // batch_size
        self._source, self._data, self._views = source, data, views
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._device, self._dtype = device, dtype
        self._order = (-1, np.zeros(0, np.int64))  # of the newest epoch: half a second of work for a million images

    def samples(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Epoch of a step, and the images that this process takes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._order[0]:
            self._order = epoch, permutation(len(self._source), self._seed, _ORDER, epoch)
        size = self._batch_size // self._world_size
        start = position * self._batch_size + self._rank * size
        return epoch, self._order[1][start : start + size]

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps from ``start`` to ``stop`` - 1.

        Raises:
            TrainingError: a worker process died.
            OpenFilesError: the limit of open files is too low for the workers.
        """
        if self._source.images is not None:
            yield from self._from_memory(start, stop)
        else:
            yield from self._from_files(start, stop)

    def _from_memory(self, start: int, stop: int) -> Iterator[Batch]:
        assert self._source.images is not None
        images = self._source.images.to(self._device)
        height, width = images.shape[-2:]
        for step in range(start, stop):
            epoch, samples = self.samples(step)
            chosen = images[torch.from_numpy(samples).to(self._device)]
            views = []
            for number, view in enumerate(self._views, 1):
                keys = augment.Keys(self._seed, epoch, samples, number)
                boxes = augment.random_boxes(view, keys, height, width)
                crops = augment.crop_batch(chosen, boxes, self._data.image_size)
                views.append(self._finish(crops, view, keys))
            yield Batch(step, tuple(views), samples, [])

    def _from_files(self, start: int, stop: int) -> Iterator[Batch]:
        reader = _RandomCrops(self._source, self._data, self._views, self._seed)
        keys = (self.samples(step) for step in range(start, stop))
        for step, crops in enumerate(_read_batches(reader, keys, workers=self._data.workers), start):
            epoch = step // self.steps_per_epoch
            pixels = crops.pixels.to(self._device, non_blocking=True).chunk(len(self._views))
            views = []
            for number, (view, part) in enumerate(zip(self._views, pixels, strict=True), 1):
                views.append(self._finish(part.float(), view, augment.Keys(self._seed, epoch, crops.samples, number)))
            yield Batch(step, tuple(views), crops.indices, crops.unreadable)

    def _finish(self, crops: Tensor, view: ViewConfig, keys: augment.Keys) -> Tensor:
        pixels = augment.random_view(crops / 255, view, keys)
        pixels = augment.normalise(pixels, self._data.mean, self._data.std)
        return pixels.to(self._dtype, memory_format=torch.channels_last)


def evaluation_batches(
    source: Source, data: DataConfig, *, device: torch.device, batch_size: int = 256
) -> Iterator[tuple[NDArray[np.int64], Tensor, list[Unreadable]]]:
    """The whole set in order as central squares, not yet normalised.

    Yields:
        Indices (m,) of the images that could be read, their pixels (m, c, s, s) in [0, 1], and the unreadable ones.
    """
    if source.images is not None:
        box = augment.centre_box(data.crop_fraction, *source.images.shape[-2:])
        for start in range(0, len(source), batch_size):
            images = source.images[start : start + batch_size].to(device)
            boxes = np.tile(np.array(box), (len(images), 1))
            yield np.arange(start, start + len(images)), augment.crop_batch(images, boxes, data.image_size) / 255, []
        return
    keys = [range(i, min(i + batch_size, len(source))) for i in range(0, len(source), batch_size)]
    for crops in _read_batches(_CentralSquares(source, data), keys, workers=data.workers):
        yield crops.indices, crops.pixels.to(device).float() / 255, crops.unreadable


def largest_batch(images: int) -> int:
    """The largest power of two that leaves at least one step an epoch."""
    return 1 << max(0, images.bit_length() - 1)


@dataclass(frozen=True)
class _Crops:
    """What is read for one batch, in a single tensor: each tensor that a worker sends holds a file open."""

    pixels: Tensor  # (k, c, s, s), uint8, k = n times the number of views
    samples: NDArray[np.int64]  # (n,), the images that it is for
    indices: NDArray[np.int64]  # (n,), the images that were read
    unreadable: list[Unreadable]


class _Reader(ABC, Dataset[_Crops | MatrixSSLError]):
    """Reads and crops the images of a batch; an error meant for the user is returned, for the main process to raise."""

    def __init__(self, source: Source, size: int):
        self._source, self._size = source, size

    @abstractmethod
    def crops(self, key: Any) -> _Crops:
        """What is read for one batch."""

    def __getitem__(self, key: Any) -> _Crops | MatrixSSLError:
        try:
            crops = self.crops(key)
            if get_worker_info() is not None:
                check_open_files(_FILES_OF_A_BATCH)
            return crops
        except MatrixSSLError as error:
            return error  # raised in a worker, it would lose its type and its sentence

    def _collate(self, crops: list[Tensor]) -> Tensor:
        """One tensor (k, c, s, s), which a worker puts into shared memory at once."""
        if not crops:
            return torch.zeros(0, self._source.channels, self._size, self._size, dtype=torch.uint8)
        return default_collate(crops)


class _RandomCrops(_Reader):
    """The crops of the first view of every image, then those of the second, and so on; the key: epoch and samples."""

    def __init__(self, source: Source, data: DataConfig, views: tuple[ViewConfig, ...], seed: int):
        super().__init__(source, data.image_size)
        self._views, self._seed = views, seed

    def crops(self, key: tuple[int, NDArray[np.int64]]) -> _Crops:
        epoch, samples = key
        crops: list[list[Tensor]] = [[] for _ in self._views]
        indices, unreadable = np.empty_like(samples), []
        for position, sample in enumerate(samples):
            image, indices[position], problems = self._read(int(sample))
            unreadable += problems
            for number, view in enumerate(self._views, 1):
                keys = augment.Keys(self._seed, epoch, samples[position : position + 1], number)
                box = augment.random_boxes(view, keys, *image.shape[-2:])[0]
                crops[number - 1].append(augment.crop(image, box, self._size))
        return _Crops(self._collate([crop for view in crops for crop in view]), samples, indices, unreadable)

    def _read(self, sample: int) -> tuple[Tensor, int, list[Unreadable]]:
        """An image or the next one that can be read, its index, and those before it that cannot be read."""
        unreadable: list[Unreadable] = []
        for offset in range(min(len(self._source), _MOST_SUBSTITUTES)):
            index = (sample + offset) % len(self._source)
            try:
                return self._source.read(index), index, unreadable
            except UnreadableImage as error:
                unreadable.append((error.where, error.reason))
        where, why = unreadable[-1]
        raise DataError(
            f"{len(unreadable)} images of {self._source.name!r} in a row cannot be read, the last one {where}: {why}."
        )


class _CentralSquares(_Reader):
    """The central squares of the images that can be read; the key: the images."""

    def __init__(self, source: Source, data: DataConfig):
        super().__init__(source, data.image_size)
        self._fraction = data.crop_fraction

    def crops(self, key: range) -> _Crops:
        crops, indices, unreadable = [], [], []
        for index in key:
            try:
                image = self._source.read(index)
            except UnreadableImage as error:
                unreadable.append((error.where, error.reason))
                continue
            box = augment.centre_box(self._fraction, *image.shape[-2:])
            crops.append(augment.crop(image, box, self._size))
            indices.append(index)
        read = np.array(indices, dtype=np.int64)
        return _Crops(self._collate(crops), read, read, unreadable)


def _worker_count(workers: int) -> int:
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    return min(_MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the main process decides
    # a scheduler signals the whole group, too: outlive the save of the main process, but not by much
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


def _read_batches(reader: _Reader, keys: Iterable[Any], *, workers: int) -> Iterator[_Crops]:
    """What a reader gives for every key, in order, read ahead by worker processes.

    Raises:
        TrainingError: a worker died.
        OpenFilesError: the limit of open files is too low for the workers.
        MatrixSSLError: what the reader answered.
    """
    count = _worker_count(workers)
    if count:
        check_open_files(_FILES_OF_THE_LOADER + count * _FILES_OF_A_WORKER)
    loader = DataLoader(reader, batch_size=None, sampler=keys, num_workers=count, worker_init_fn=_start_worker)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        batches = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # PyTorch's handler raises wherever the main thread is, in the middle of a training step; without it the
            # next batch finds the dead worker, within five seconds
            signal.signal(signal.SIGCHLD, handler)
        for crops in batches:
            if isinstance(crops, MatrixSSLError):
                raise crops
            yield crops
    except (RuntimeError, OSError) as error:
        if "Too many open files" in str(error):
            raise open_files_error() from error
        if "DataLoader worker (pid" not in str(error):  # an error raised inside a worker says "worker process"
            raise
        raise TrainingError(
            "a process that reads images died, perhaps for lack of memory: run the same command again to resume, "
            "with fewer of them (--set data.workers=1) if it happens again."
        ) from error
