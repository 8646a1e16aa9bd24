"""What every dataset offers, the dataset whose images have places in files, and the dataset in memory."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.config.reading import COLOURS, Reading
from matrix_ssl.data.identity import ABSENT, content_digest, copies
from matrix_ssl.errors import DataError, UnreadableImage

Labels = NDArray[np.int64] | None  # (n,)
Classes = list[str] | None  # the name of every label
MEMORY_LIMIT = 2 * 2**30  # bytes of decoded pixels up to which datasets that are used as one are kept in memory
_MOST_CLASSES = 2**20  # that are named by numbers alone


class Source(ABC):
    """A map-style dataset of images, with or without labels.

    Attributes:
        name: short, for messages and the default name of a run.
        channels: 3, 1 for grey images, or up to 16 if files keep their own.
        labels: int64 (n,), or None when unlabelled.
        classes: the name of every label, or None when unlabelled.
        images: the whole dataset (n, channels, h, w), of the type ``dtype``, when it is in memory; else None.
        crops_are_rounded: whether evaluation rounds the crops of the dataset to 8 bits, as it does for files.
        reading: how files become pixels.
        remarks: sentences for the user on how the data were interpreted and what is left out.
        unlabelled_because: the reason why there are no labels, with the remedy.
    """

    images: torch.Tensor | None = None
    crops_are_rounded = False
    reading: Reading = COLOURS
    remarks: tuple[str, ...] = ()
    unlabelled_because = "put each class in a folder of its own, or name a .csv table with the labels"

    def __init__(self, name: str, *, channels: int, labels: Labels, classes: Classes):
        if (labels is None) != (classes is None):
            raise ValueError("labels and classes go together")
        self.name, self.channels, self.labels, self.classes = name, channels, labels, classes

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def read(self, index: int) -> torch.Tensor:
        """One image (channels, h, w) of the type ``dtype``, or UnreadableImage."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of pixels: uint8, or float32 in [0, 1] if files keep all of their bits."""
        return torch.float32 if self.reading.channels else torch.uint8

    @property
    def white(self) -> float:
        """The highest value that a pixel can have."""
        return 1.0 if self.dtype.is_floating_point else 255.0

    def values(self, index: int) -> NDArray[np.generic]:
        """The numbers (h, w, channels) of an image as they are stored, or UnreadableImage."""
        return self.read(index).permute(1, 2, 0).numpy()

    def encoded(self, index: int) -> bytes | None:
        """The bytes of one image's file, or UnreadableImage; None for images that are not in files."""
        return None

    def file(self, index: int) -> str | None:
        """The file that holds one image, or pages of it, and nothing else; None for images that are kept otherwise."""
        return None

    def held_by(self, index: int) -> str | None:
        """The file that an image is read from, with others or alone; None, or a name without a file, if in no file."""
        return self.file(index)

    @abstractmethod
    def where(self, index: int) -> str:
        """The place of an image that a user can look up: a path, or ``file.npz[12]``."""

    @abstractmethod
    def subset(self, indices: ArrayLike) -> "Source":
        """The images at ``indices`` (integers), in that order, with their labels and the same class names."""

    def copy(self) -> Self:
        """A shallow copy that is to become a different dataset: what was computed for this one is dropped."""
        other = copy.copy(self)
        for computed in ("digest", "_memory"):
            vars(other).pop(computed, None)
        return other

    def with_reading(self, reading: Reading) -> "Source":
        """The dataset with its files read in a different way; itself if it has no files."""
        return self

    def loaded(self, *, most: int | None = None) -> "Source":
        """The dataset with its images decoded and in memory, if there is room and it pays off; else itself.

        ``most`` is how many bytes they may take; None: ``MEMORY_LIMIT``.
        """
        return self

    def highest_level(self, index: int) -> int:
        """The highest level of an image of more than 8 bits; 0 for any other image."""
        return 0

    def has_pages(self, index: int) -> bool:
        """Whether the file of an image has a second page or frame that is an image; UnreadableImage as ``encoded``."""
        return False

    def labelled(self) -> tuple[NDArray[np.int64], list[str]]:
        """Labels (n,) and the names of the classes; DataError if there are none."""
        if self.labels is None or self.classes is None:
            raise DataError(f"{self.name!r} has no labels: {self.unlabelled_because}.")
        return self.labels, self.classes

    @cached_property
    def digest(self) -> str:
        """What distinguishes this dataset from others, by ``identity.content_digest``; computed on first use."""
        names, sizes = self._stored()
        return content_digest(names, sizes, self._read_start, labels=self.labels, classes=self.classes)

    def copies(self) -> list[tuple[int, int]]:
        """Images that are copies of an earlier one, each with the first such, by ``identity.copies``.

        The pages of one file are not copies of each other. Empty where images would have to be decoded to tell.
        """
        pairs = copies(self._stored()[1], self._read_start)
        return [(i, k) for i, k in pairs if (file := self.file(i)) is None or file != self.file(k)]

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        """Names, if the dataset has any, and sizes in bytes of the images as they are stored: here, as pixels."""
        sizes = [ABSENT if (pixels := self._pixels(index)) is None else pixels.nbytes for index in range(len(self))]
        return [], np.array(sizes, dtype=np.int64)

    def _read_start(self, index: int, count: int) -> bytes:
        """The first ``count`` bytes of an image as it is stored."""
        pixels = self._pixels(index)
        return b"" if pixels is None else f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()[:count]

    def _pixels(self, index: int) -> torch.Tensor | None:
        try:
            return self.read(index)
        except UnreadableImage:
            return None


@dataclass(frozen=True)
class Places:
    """Which file, and which entry of it, each image of a dataset came from; kept through ``subset``."""

    files: tuple[str, ...]
    file: NDArray[np.int32]  # (n,), index into files
    entry: NDArray[np.int64]  # (n,), position in that file

    @staticmethod
    def whole(files: Sequence[str], counts: Sequence[int]) -> "Places":
        """All ``counts[i]`` entries of every file, in order."""
        file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        entry = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
        return Places(tuple(files), file, entry)

    def __len__(self) -> int:
        return len(self.entry)

    def __getitem__(self, index: int) -> str:
        return f"{self.files[self.file[index]]}[{self.entry[index]}]"

    def take(self, indices: NDArray[np.int64]) -> "Places":
        """The places of some images."""
        return Places(self.files, self.file[indices], self.entry[indices])


class PlacedSource(Source):
    """Images at places in files; a subset shares the files and holds fewer places."""

    def __init__(self, name: str, places: Places, *, channels: int = 3, labels: Labels, classes: Classes):
        super().__init__(name, channels=channels, labels=labels, classes=classes)
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def held_by(self, index: int) -> str | None:
        return self.places.files[self.places.file[index]]

    def where(self, index: int) -> str:
        return self.places[index]

    def subset(self, indices: ArrayLike) -> Self:
        rows = as_indices(indices, len(self))
        subset = self.copy()
        subset.labels = None if self.labels is None else self.labels[rows]
        subset.places = self.places.take(rows)
        return subset


class MemorySource(PlacedSource):
    """Images of one shape, decoded and in memory."""

    images: torch.Tensor  # narrower than in Source: always there
    origin: PlacedSource | None = None  # what it was decoded from

    def __init__(self, name: str, images: torch.Tensor, places: Places, *, labels: Labels, classes: Classes):
        super().__init__(name, places, channels=images.shape[1], labels=labels, classes=classes)
        self.images = images

    def read(self, index: int) -> torch.Tensor:
        return self.images[index]

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        if (stored := self._as_stored()) is not None:
            return stored._stored()
        return [], np.full(len(self), self.images[:1].nbytes, dtype=np.int64)

    def _read_start(self, index: int, count: int) -> bytes:
        stored = self._as_stored()
        return super()._read_start(index, count) if stored is None else stored._read_start(index, count)

    def _as_stored(self) -> PlacedSource | None:
        """What defines the identity: the origin if a range, which may be measured later, turns numbers into pixels."""
        return self.origin if self.reading.channels else None

    def subset(self, indices: ArrayLike) -> Self:
        subset = super().subset(indices)
        subset.images = self.images[torch.from_numpy(as_indices(indices, len(self)))]
        subset.origin = None if self.origin is None else self.origin.subset(indices)
        return subset

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    def values(self, index: int) -> NDArray[np.generic]:
        return super().values(index) if self.origin is None else self.origin.values(index)

    def with_reading(self, reading: Reading) -> Source:
        if self.origin is None:
            check_range(reading, self.name)
            return self
        return self.origin.with_reading(reading).loaded()

    def highest_level(self, index: int) -> int:
        return 0 if self.origin is None else self.origin.highest_level(index)

    def has_pages(self, index: int) -> bool:
        return self.origin is not None and self.origin.has_pages(index)


def check_range(reading: Reading, where: str) -> None:
    """Raises DataError if pixels of 8 bits, of which 0 is black and 255 is white, are to be read in another way."""
    if reading.channels and reading.value_range not in (None, (0, 255)):
        low, high = reading.value_range
        raise DataError(
            f"{where} holds 8-bit pixels, from 0 to 255, but data.value_range is {low:g} to {high:g}: use image files, "
            "or an array of 16 bits."
        )


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the indices from 0 to count - 1, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def as_indices(indices: ArrayLike, count: int) -> NDArray[np.int64]:
    """Indices into a dataset of ``count`` images, int64; IndexError unless they are integers in its range."""
    rows = np.asarray(indices)
    if rows.size == 0:
        return np.zeros(0, dtype=np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= count:
        raise IndexError(f"expected a list of integers from 0 to {count - 1}")
    return rows.astype(np.int64)


def as_labels(
    values: ArrayLike, classes: Sequence[str] | None, count: int, *, where: str
) -> tuple[NDArray[np.int64], list[str]]:
    """Labels, int64 (n,), checked to be ``count`` integers named by ``classes``; None names them by number."""
    labels = np.asarray(values)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected {count} integer labels, got {labels.dtype} of shape {labels.shape}; store a whole "
            "number from 0 for each image."
        )
    low, high = int(labels.min()), int(labels.max())
    if classes is None and high >= _MOST_CLASSES:
        raise DataError(
            f"{where}: the label {high} is too large; number the classes from 0, {_MOST_CLASSES:,} at most."
        )
    names = [str(k) for k in range(high + 1)] if classes is None else [str(c) for c in classes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: two classes have the name {twice!r}; rename one.")
    if low < 0 or high >= len(names):
        raise DataError(
            f"{where}: labels from {low} to {high} do not fit {len(names)} classes (0 to {len(names) - 1})."
        )
    return labels.astype(np.int64), names


def in_memory(source: PlacedSource, *, most: int | None, kind: type[MemorySource] = MemorySource) -> PlacedSource:
    """The dataset with its images decoded in one thread: for images of 32 to 128 pixels, two threads were slower.

    It is returned as it is if shapes differ, an image cannot be read, or the pixels would exceed ``most`` bytes, or
    ``MEMORY_LIMIT`` if that is None.
    """
    try:
        first = source.read(0)
        if len(source) * first.nbytes > (MEMORY_LIMIT if most is None else most):
            return source
        images = torch.empty((len(source), *first.shape), dtype=first.dtype)
        for index in range(len(source)):
            image = source.read(index)
            if image.shape != first.shape:
                return source
            images[index] = image
    except UnreadableImage:
        return source
    memory = kind(source.name, images, source.places, labels=source.labels, classes=source.classes)
    memory.origin, memory.reading, memory.remarks = source, source.reading, source.remarks
    memory.crops_are_rounded, memory.unlabelled_because = source.crops_are_rounded, source.unlabelled_because
    return memory
