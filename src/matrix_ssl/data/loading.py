"""From a set of pictures to batches on the device: random views for training, central squares for evaluation.

Training sees pictures in an order that is a function of (seed, epoch), and every global batch is cut into equal parts
by rank, so any number of processes sees the same samples. Sets in memory live on the device and are cropped there;
files are decoded and cropped by worker processes, and every other change runs on the device in batches.

A picture that cannot be read is replaced by the next one of the set that can, the same way each time, and reported.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from matrix_ssl import augment
from matrix_ssl.config import DataConfig, ViewConfig
from matrix_ssl.data.base import Source
from matrix_ssl.errors import ConfigError, DataError, TrainingError, UnreadableImage
from matrix_ssl.randomness import permutation

_ORDER = 0x0DE2  # coordinate that keeps the sample order apart from the views
_MOST_WORKERS = 8
_MOST_SUBSTITUTES = 100  # pictures tried in the place of one that cannot be read
Unreadable = tuple[str, str]  # where, why


@dataclass(frozen=True)
class Batch:
    """This process's part of one training step."""

    step: int
    views: tuple[Tensor, ...]  # (n_local, c, s, s) each, normalised
    shown: NDArray[np.int64]  # (n_local,), the pictures in them: where one cannot be read, the one in its place
    unreadable: list[Unreadable]


class TrainingBatches:
    """The batches of a training, from any step on.

    Args:
        source: the pictures.
        data: size and normalisation.
        views: the random changes that make each view of a picture, one view or more.
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
                f"batch_size={batch_size} is larger than the {len(source)} pictures of {source.name!r}: "
                f"use --set batch_size={largest_batch(len(source))} or add pictures."
            )
        if batch_size % world_size:
            raise ConfigError(f"batch_size={batch_size} does not divide by {world_size} processes.")
        self.steps_per_epoch = len(source) // batch_size
        self._source, self._data, self._views = source, data, views
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._device, self._dtype = device, dtype
        self._order = (-1, np.zeros(0, np.int64))  # of the newest epoch: half a second of work for a million pictures

    def samples(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Epoch of a step, and the pictures that this process takes."""
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
        dataset = _RandomCrops(self._source, self._data, self._views, self._seed)
        loader = _loader(dataset, _LazySteps(self, start, stop), self._data.workers)
        for step, items in enumerate(_guarded(loader), start):
            epoch = step // self.steps_per_epoch
            _check_readable(items, self._source)
            samples = np.array([item.sample for item in items])
            views = []
            for number, view in enumerate(self._views, 1):
                crops = torch.stack([item.crops[number - 1] for item in items]).to(self._device, non_blocking=True)
                views.append(self._finish(crops.float(), view, augment.Keys(self._seed, epoch, samples, number)))
            shown = np.array([item.shown for item in items])
            yield Batch(step, tuple(views), shown, [pair for item in items for pair in item.unreadable])

    def _finish(self, crops: Tensor, view: ViewConfig, keys: augment.Keys) -> Tensor:
        pixels = augment.random_view(crops / 255, view, keys)
        pixels = augment.normalise(pixels, self._data.mean, self._data.std)
        return pixels.to(self._dtype, memory_format=torch.channels_last)


def evaluation_batches(
    source: Source, data: DataConfig, *, device: torch.device, batch_size: int = 256
) -> Iterator[tuple[NDArray[np.int64], Tensor, list[Unreadable]]]:
    """The whole set in order as central squares, not yet normalised.

    Yields:
        Indices (m,) of the pictures that could be read, their pixels (m, c, s, s) in [0, 1], and the unreadable ones.
    """
    if source.images is not None:
        box = augment.centre_box(data.crop_fraction, *source.images.shape[-2:])
        for start in range(0, len(source), batch_size):
            images = source.images[start : start + batch_size].to(device)
            boxes = np.tile(np.array(box), (len(images), 1))
            yield np.arange(start, start + len(images)), augment.crop_batch(images, boxes, data.image_size) / 255, []
        return
    order = [list(range(i, min(i + batch_size, len(source)))) for i in range(0, len(source), batch_size)]
    for items in _guarded(_loader(_CentralSquares(source, data), order, data.workers)):
        whole = [(index, crop) for index, crop, _ in items if crop is not None]
        unreadable = [problem for _, _, problem in items if problem is not None]
        if whole:
            pixels = torch.stack([crop for _, crop in whole]).to(device).float() / 255
            yield np.array([index for index, _ in whole]), pixels, unreadable
        else:
            yield np.zeros(0, np.int64), torch.zeros(0, source.channels, data.image_size, data.image_size), unreadable


def largest_batch(pictures: int) -> int:
    """The largest power of two that leaves at least one step an epoch."""
    return 1 << max(0, pictures.bit_length() - 1)


@dataclass(frozen=True)
class _Item:
    sample: int
    shown: int  # the picture that was read
    crops: tuple[Tensor, ...]  # empty when no picture could be read in its place
    unreadable: list[Unreadable]


class _RandomCrops(Dataset[_Item]):
    """Reads one picture and cuts the crops of all views, in a worker process."""

    def __init__(self, source: Source, data: DataConfig, views: tuple[ViewConfig, ...], seed: int):
        self._source, self._data, self._views, self._seed = source, data, views, seed

    def __getitem__(self, key: tuple[int, int]) -> _Item:
        epoch, sample = key
        image, shown, unreadable = self._read(sample)
        if image is None:
            return _Item(sample, shown, (), unreadable)
        crops = []
        for number, view in enumerate(self._views, 1):
            keys = augment.Keys(self._seed, epoch, np.array([sample]), number)
            box = augment.random_boxes(view, keys, *image.shape[-2:])[0]
            crops.append(augment.crop(image, box, self._data.image_size))
        return _Item(sample, shown, tuple(crops), unreadable)

    def _read(self, sample: int) -> tuple[Tensor | None, int, list[Unreadable]]:
        unreadable: list[Unreadable] = []
        for offset in range(min(len(self._source), _MOST_SUBSTITUTES)):
            shown = (sample + offset) % len(self._source)
            try:
                return self._source.read(shown), shown, unreadable
            except UnreadableImage as error:
                unreadable.append((error.where, error.reason))
        return None, sample, unreadable


class _CentralSquares(Dataset[tuple[int, Tensor | None, Unreadable | None]]):
    def __init__(self, source: Source, data: DataConfig):
        self._source, self._data = source, data

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, Unreadable | None]:
        try:
            image = self._source.read(index)
        except UnreadableImage as error:
            return index, None, (error.where, error.reason)
        box = augment.centre_box(self._data.crop_fraction, *image.shape[-2:])
        return index, augment.crop(image, box, self._data.image_size), None


class _LazySteps:
    """Batch sampler: the keys (epoch, sample) of every step, computed when asked for."""

    def __init__(self, batches: TrainingBatches, start: int, stop: int):
        self._batches, self._steps = batches, range(start, stop)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            epoch, samples = self._batches.samples(step)
            yield [(epoch, int(sample)) for sample in samples]


def _check_readable(items: list[_Item], source: Source) -> None:
    for item in items:
        if not item.crops:
            where, why = item.unreadable[-1]
            raise DataError(
                f"{len(item.unreadable)} pictures of {source.name!r} in a row cannot be read, "
                f"the last one {where}: {why}."
            )


def _loader(dataset: Dataset, batches: Iterable[list], workers: int) -> DataLoader:
    if workers < 0:
        cores = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )  # macOS has none
        workers = min(_MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=list, worker_init_fn=_start_worker
    )  # fmt: skip


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the main process decides
    # a scheduler signals the whole group, too: outlive the save of the main process, but not by much
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


def _guarded(loader: DataLoader) -> Iterator[list]:
    """Iterates, turning the death of a worker into a sentence."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        batches = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # PyTorch's handler raises wherever the main thread is, in the middle of a training step; without it the
            # next batch finds the dead worker, within five seconds
            signal.signal(signal.SIGCHLD, handler)
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # an error raised inside a worker says "worker process"
            raise
        raise TrainingError(
            "a process that reads pictures died, perhaps for lack of memory: run the same command again to resume, "
            "with fewer of them (--set data.workers=1) if it happens again."
        ) from error
