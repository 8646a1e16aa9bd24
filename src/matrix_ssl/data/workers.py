"""Reads and crops the images of a batch in worker processes, ahead of the training.

An image that cannot be read is replaced by the next one in the dataset that can, always the same, and reported.
"""

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from matrix_ssl.config import DataConfig, ViewConfig, system
from matrix_ssl.config.untrusted import why
from matrix_ssl.data.base import Source
from matrix_ssl.data.files.images import Unreadable, read_or_replace
from matrix_ssl.data.files.open_files import check_open_files, open_files_error
from matrix_ssl.data.files.squares import centre_box
from matrix_ssl.data.views import augment, opencv_views
from matrix_ssl.errors import OFFERED, MatrixSSLError, TrainingError, UnreadableImage

MOST_WORKERS = 32  # two batches per worker wait: with 256 images at 224 px, 5 GB of shared memory
_WAITING_BYTES = 2**25  # of decoded images that a worker holds, so that photographs do not fill its memory
_FILES_OF_A_BATCH = 16  # descriptors that a worker may need to send the batches in flight and to read the next one
_FILES_OF_A_WORKER = 8  # descriptors of a worker's pipes and batches in the main process: five were measured
_FILES_OF_THE_LOADER = 32  # descriptors that all workers share, and what else the main process opens meanwhile


_NO_SHARED_MEMORY = ("unable to allocate shared memory", "unable to resize file </torch_")  # PyTorch's words

Content = TypeVar("Content")  # what a worker makes of the images of a batch


@dataclass(frozen=True)
class Crops:
    """The crops of one batch, in a single tensor: each tensor that a worker sends holds a file open."""

    pixels: Tensor  # (p,) of ``Source.dtype``: those of the first view of all images, then of the second, and so on
    shapes: Sequence[tuple[int, ...]]  # (n, c, s, s) for each view
    samples: NDArray[np.int64]  # (n,), the images of the batch
    indices: NDArray[np.int64]  # (n,), the images that were read for them
    unreadable: list[Unreadable]

    def views(self, device: torch.device | str = "cpu") -> list[Tensor]:
        """The crops of each view, moved together."""
        return unpack(self.pixels.to(device, non_blocking=True), self.shapes)

    def pin_memory(self) -> "Crops":
        """The same in memory from which a GPU copies while the host continues; PyTorch's loader calls this."""
        return replace(self, pixels=self.pixels.pin_memory())


def unpack(pixels: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The parts of a tensor (p,) as tensors of the given shapes, without a copy."""
    parts = pixels.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class Reader(ABC, Dataset[Content | MatrixSSLError], Generic[Content]):
    """Reads the images of a batch; an error meant for the user is returned, for the main process to raise."""

    def __init__(self, source: Source):
        self._source = source

    @abstractmethod
    def batch(self, key: Any) -> Content:
        """The result for the images of one batch."""

    def __getitem__(self, key: Any) -> Content | MatrixSSLError:
        try:
            content = self.batch(key)
            if get_worker_info() is not None:
                check_open_files(_FILES_OF_A_BATCH)
            return content
        except MatrixSSLError as error:
            return error  # raised in a worker, it would lose its type and its message

    def _empty(self, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """Pixels of crops, yet to be filled in; a worker's are in memory that it shares with the main process."""
        pixels = torch.empty(sum(map(math.prod, shapes)), dtype=self._source.dtype)
        return pixels if get_worker_info() is None else pixels.share_memory_()


class RandomCrops(Reader[Crops]):
    """The crops of the first view of every image, then those of the second, and so on; a key is (epoch, samples).

    ``views`` are those of ``augment.each_view``, which have sizes of their own.
    """

    def __init__(self, source: Source, views: tuple[ViewConfig, ...], seed: int):
        super().__init__(source)
        self._views, self._seed = views, seed

    def _shape(self, count: int, view: ViewConfig) -> tuple[int, ...]:
        return count, self._source.channels, view.image_size, view.image_size

    def batch(self, key: tuple[int, NDArray[np.int64]]) -> Crops:
        epoch, samples = key
        shapes = [self._shape(len(samples), view) for view in self._views]
        pixels = self._empty(shapes)
        crops = unpack(pixels, shapes)
        indices, unreadable, waiting, held = np.empty_like(samples), [], [], 0
        for position, sample in enumerate(samples):
            image, indices[position], problems = read_or_replace(self._source.read, int(sample), len(self._source))
            unreadable += problems
            waiting.append(image)
            held += image.nbytes
            if position == len(samples) - 1 or held >= _WAITING_BYTES:
                part = slice(position + 1 - len(waiting), position + 1)
                self._crop(waiting, epoch, samples[part], [view[part] for view in crops])
                waiting, held = [], 0
        return Crops(pixels, shapes, samples, indices, unreadable)

    def _crop(self, images: Sequence[Tensor], epoch: int, samples: NDArray[np.int64], crops: Sequence[Tensor]) -> None:
        """Writes every view's crops (n, c, s, s) of some images: the boxes of all are drawn in one go."""
        heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (-2, -1))
        for number, (view, places) in enumerate(zip(self._views, crops, strict=True), 1):
            keys = augment.Keys(self._seed, epoch, samples, number)
            self._write(images, augment.random_boxes(view, keys, heights, widths), view, keys, places)

    def _write(
        self, images: Sequence[Tensor], boxes: augment.Array, view: ViewConfig, keys: augment.Keys, places: Tensor
    ) -> None:
        for place, image, box in zip(places, images, boxes, strict=True):
            place.copy_(augment.crop(image, box, view.image_size))


class FinishedViews(RandomCrops):
    """The same with every augmentation of a view by OpenCV, but not normalised; channels are last, (n, s, s, c)."""

    def _shape(self, count: int, view: ViewConfig) -> tuple[int, ...]:
        return count, view.image_size, view.image_size, self._source.channels

    def _write(
        self, images: Sequence[Tensor], boxes: augment.Array, view: ViewConfig, keys: augment.Keys, places: Tensor
    ) -> None:
        draws = augment.draw_view(view, keys, channels=self._source.channels)
        opencv_views.write_views(images, boxes, view, draws, places.numpy())


class CentralSquares(Reader[Crops]):
    """The central squares of the images that can be read; a key is a range of images."""

    def __init__(self, source: Source, data: DataConfig):
        super().__init__(source)
        self._fraction, self._mode, self._size = data.crop_fraction, data.crop_mode, data.image_size

    def batch(self, key: range) -> Crops:
        crops, readable, unreadable = [], [], []
        for index in key:
            try:
                image = self._source.read(index)
            except UnreadableImage as error:
                unreadable.append((error.where, error.reason))
                continue
            box = centre_box(self._fraction, *image.shape[-2:], mode=self._mode)
            crops.append(augment.crop(image, box, self._size))
            readable.append(index)
        indices = np.array(readable, dtype=np.int64)
        shapes = [(len(crops), self._source.channels, self._size, self._size)]
        pixels = self._empty(shapes)
        for place, crop in zip(unpack(pixels, shapes)[0], crops, strict=True):
            place.copy_(crop)
        return Crops(pixels, shapes, indices, indices, unreadable)


def _worker_count(workers: int) -> int:
    if workers >= 0:
        return workers
    return min(MOST_WORKERS, system.cores() // system.local_processes())


def _start_worker(_: int) -> None:
    system.outlive_signals(30)  # longer than the main process takes to save, but not by much


def read_batches(
    reader: Reader[Content], keys: Iterable[Any], *, workers: int, device: torch.device | str = "cpu"
) -> Iterator[Content]:
    """The reader's result for every key, in order, read ahead by worker processes, for a device to copy.

    With 0 workers this process reads; a negative number means one per core, 32 at most. TrainingError if a worker dies.
    """
    count = _worker_count(workers)
    if count:
        check_open_files(_FILES_OF_THE_LOADER + count * _FILES_OF_A_WORKER)
        _check_sockets()
    loader = DataLoader(
        reader, batch_size=None, sampler=keys, num_workers=count, worker_init_fn=_start_worker,
        pin_memory=torch.device(device).type == "cuda",
    )  # fmt: skip
    try:
        # PyTorch's handler raises wherever the main thread is, in the middle of a training step; without it the next
        # batch finds the dead worker, within five seconds
        with system.child_handler_kept():
            batches = iter(loader)
        for content in batches:
            if isinstance(content, MatrixSSLError):
                raise content
            yield content
    except (RuntimeError, OSError, EOFError) as error:
        if "Too many open files" in str(error):
            raise open_files_error() from error
        if any(words in str(error) for words in _NO_SHARED_MEMORY):
            raise _no_shared_memory() from error
        if not _tells_of_a_death(error, workers=count):
            raise
        fewer = OFFERED.first("--set data.workers=1", "--workers 1")
        raise TrainingError(
            "A data-loading worker died, possibly out of memory. Run the same command to resume; if it happens again, "
            f"use {f'fewer workers ({fewer})' if fewer else 'a machine with more memory'}."
        ) from error


def _check_sockets() -> None:
    """Raises TrainingError if workers cannot hand over batches.

    They do so through sockets in the folder of temporary files, in a thread whose errors go unnoticed, so this process
    would wait forever. The names here are as long as those that ``multiprocessing`` gives.
    """
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return
    try:
        with tempfile.TemporaryDirectory(prefix="pymp-") as folder:
            Listener(str(Path(folder) / "listener-abcdefgh"), "AF_UNIX").close()
    except OSError as error:
        none = OFFERED.first("--set data.workers=0", "--workers 0")
        raise TrainingError(
            f"Workers need a socket in the folder of temporary files, which cannot be made ({why(error)}). Let the "
            f"variable TMPDIR name a folder that can be written, with a short path{f', or use {none}' if none else ''}."
        ) from error


def _no_shared_memory() -> TrainingError:
    none = OFFERED.first("--set data.workers=0", "--workers 0")
    ways = f"Use no workers ({none}) or smaller batches, or start" if none else "Start"
    return TrainingError(
        f"The shared memory ({system.SHARED_MEMORY}), through which workers send batches, is full. {ways} the "
        "container with --shm-size 8g; the same command resumes."
    )


def _tells_of_a_death(error: Exception, *, workers: int) -> bool:
    """Whether an error of the loader means that a worker has died.

    PyTorch says so if it misses the next batch. A worker that dies between sending the message about a batch and the
    file of its memory leaves a connection that ends or that is not answered. An error raised inside a worker says "in
    DataLoader worker process".
    """
    lost = isinstance(error, (ConnectionError, EOFError, FileNotFoundError))
    return "DataLoader worker (pid" in str(error) or (
        workers > 0 and lost and "in DataLoader worker process" not in str(error)
    )
