"""Reading and cropping the images of a batch, ahead of the training, in worker processes.

An image that cannot be read is replaced by the next one of the dataset that can, the same way each time, and reported.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from matrix_ssl.config import DataConfig, ViewConfig, system
from matrix_ssl.data import augment
from matrix_ssl.data.base import Source
from matrix_ssl.data.images import Unreadable, read_or_replace
from matrix_ssl.data.open_files import check_open_files, open_files_error
from matrix_ssl.errors import MatrixSSLError, TrainingError, UnreadableImage

_MOST_WORKERS = 8
_FILES_OF_A_BATCH = 16  # descriptors that a worker may need to send the batches in flight and to read the next one
_FILES_OF_A_WORKER = 8  # descriptors of a worker's pipes and batches in the main process: measured five
_FILES_OF_THE_LOADER = 32  # descriptors that all workers share, and what else the main process opens meanwhile


@dataclass(frozen=True)
class Crops:
    """The crops of one batch, in a single tensor: each tensor that a worker sends holds a file open."""

    pixels: Tensor  # (k, c, s, s), uint8, k = n times the number of views
    samples: NDArray[np.int64]  # (n,), the images of the batch
    indices: NDArray[np.int64]  # (n,), the images that were read for them
    unreadable: list[Unreadable]


class Reader(ABC, Dataset[Crops | MatrixSSLError]):
    """Reads and crops the images of a batch; returns an error meant for the user, for the main process to raise."""

    def __init__(self, source: Source, size: int):
        self._source, self._size = source, size

    @abstractmethod
    def crops(self, key: Any) -> Crops:
        """The crops of one batch."""

    def __getitem__(self, key: Any) -> Crops | MatrixSSLError:
        try:
            crops = self.crops(key)
            if get_worker_info() is not None:
                check_open_files(_FILES_OF_A_BATCH)
            return crops
        except MatrixSSLError as error:
            return error  # raised in a worker, it would lose its type and its message

    def _collate(self, crops: list[Tensor]) -> Tensor:
        """One tensor (k, c, s, s), which a worker puts into shared memory at once."""
        if not crops:
            return torch.zeros(0, self._source.channels, self._size, self._size, dtype=torch.uint8)
        return default_collate(crops)


class RandomCrops(Reader):
    """The crops of the first view of every image, then those of the second, and so on; a key is (epoch, samples)."""

    def __init__(self, source: Source, data: DataConfig, views: tuple[ViewConfig, ...], seed: int):
        super().__init__(source, data.image_size)
        self._views, self._seed = views, seed

    def crops(self, key: tuple[int, NDArray[np.int64]]) -> Crops:
        epoch, samples = key
        crops: list[list[Tensor]] = [[] for _ in self._views]
        indices, unreadable = np.empty_like(samples), []
        for position, sample in enumerate(samples):
            image, indices[position], problems = read_or_replace(self._source.read, int(sample), len(self._source))
            unreadable += problems
            for number, view in enumerate(self._views, 1):
                keys = augment.Keys(self._seed, epoch, samples[position : position + 1], number)
                box = augment.random_boxes(view, keys, *image.shape[-2:])[0]
                crops[number - 1].append(augment.crop(image, box, self._size))
        return Crops(self._collate([crop for view in crops for crop in view]), samples, indices, unreadable)


class CentralSquares(Reader):
    """The central squares of the images that can be read; a key is a range of images."""

    def __init__(self, source: Source, data: DataConfig):
        super().__init__(source, data.image_size)
        self._fraction = data.crop_fraction

    def crops(self, key: range) -> Crops:
        crops, readable, unreadable = [], [], []
        for index in key:
            try:
                image = self._source.read(index)
            except UnreadableImage as error:
                unreadable.append((error.where, error.reason))
                continue
            box = augment.centre_box(self._fraction, *image.shape[-2:])
            crops.append(augment.crop(image, box, self._size))
            readable.append(index)
        indices = np.array(readable, dtype=np.int64)
        return Crops(self._collate(crops), indices, indices, unreadable)


def _worker_count(workers: int) -> int:
    if workers >= 0:
        return workers
    return min(_MOST_WORKERS, system.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _start_worker(_: int) -> None:
    system.outlive_signals(30)  # the save of the main process, but not by much


def read_batches(reader: Reader, keys: Iterable[Any], *, workers: int) -> Iterator[Crops]:
    """The crops of every key, in order, read ahead by worker processes; TrainingError where one of them dies.

    With 0 workers this process reads; a negative number means one a core, 8 at most.
    """
    count = _worker_count(workers)
    if count:
        check_open_files(_FILES_OF_THE_LOADER + count * _FILES_OF_A_WORKER)
    loader = DataLoader(reader, batch_size=None, sampler=keys, num_workers=count, worker_init_fn=_start_worker)
    try:
        # PyTorch's handler raises wherever the main thread is, in the middle of a training step; without it the next
        # batch finds the dead worker, within five seconds
        with system.child_handler_kept():
            batches = iter(loader)
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
            "A data-loading worker died, possibly out of memory. Run the same command to resume; if it happens again, "
            "use fewer workers (--set data.workers=1)."
        ) from error
