"""What every set of images offers, and the set that lies in memory."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.data.identity import ABSENT, content_digest
from matrix_ssl.errors import DataError, UnreadableImage

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded pixels that a set may take to be kept in memory


class Source(ABC):
    """A map-style set of images, with labels or without.

    Attributes:
        name: short, for messages and the default name of a run.
        channels: 3, or 1 for sets of grey images.
        labels: int64 (n,), or None when unlabelled.
        classes: the name of every label, or None when unlabelled.
        images: the whole set, uint8 (n, channels, h, w), when it lies in memory; else None.
    """

    images: torch.Tensor | None = None

    def __init__(self, name: str, *, channels: int, labels: NDArray[np.int64] | None, classes: list[str] | None):
        if (labels is None) != (classes is None):
            raise ValueError("labels and classes go together")
        self.name = name
        self.channels = channels
        self.labels = labels
        self.classes = classes

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def read(self, index: int) -> torch.Tensor:
        """One image, uint8 (channels, h, w).

        Raises:
            UnreadableImage: it cannot be read or decoded.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """What a person can look up: a path, or ``file.npz[12]``."""

    @abstractmethod
    def subset(self, indices: ArrayLike) -> "Source":
        """The images at ``indices`` (integers), in that order, with their labels and the same class names."""

    @cached_property
    def digest(self) -> str:
        """What tells this dataset from others, by ``identity.content_digest``; computed when it is first asked for."""
        names, sizes = self._stored()
        return content_digest(names, sizes, self._read_start, labels=self.labels, classes=self.classes)

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        """Names, as far as the dataset has them, and sizes of the images as they are stored: here, as pixels."""
        sizes = [ABSENT if (pixels := self._pixels(index)) is None else pixels.numel() for index in range(len(self))]
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

    def _labels_at(self, chosen: NDArray[np.int64]) -> NDArray[np.int64] | None:
        return None if self.labels is None else self.labels[chosen]


@dataclass(frozen=True)
class Places:
    """Which file, and which entry of it, each image of a set came from; kept through ``subset``."""

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

    def take(self, chosen: NDArray[np.int64]) -> "Places":
        """The places of the chosen images."""
        return Places(self.files, self.file[chosen], self.entry[chosen])


class MemorySource(Source):
    """Images of one shape, decoded and in memory."""

    images: torch.Tensor  # narrower than in Source: always there

    def __init__(
        self,
        name: str,
        images: torch.Tensor,
        places: Places,
        *,
        labels: NDArray[np.int64] | None,
        classes: list[str] | None,
    ):
        super().__init__(name, channels=images.shape[1], labels=labels, classes=classes)
        self.images = images
        self._places = places

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> torch.Tensor:
        return self.images[index]

    def where(self, index: int) -> str:
        return self._places[index]

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        return [], np.full(len(self), self.images[:1].numel(), dtype=np.int64)

    def subset(self, indices: ArrayLike) -> "MemorySource":
        chosen = as_indices(indices, len(self))
        labels = self._labels_at(chosen)
        images = self.images[torch.from_numpy(chosen)]
        return MemorySource(self.name, images, self._places.take(chosen), labels=labels, classes=self.classes)


def as_indices(indices: ArrayLike, count: int) -> NDArray[np.int64]:
    """Checks and converts indices into a set of ``count`` images.

    Raises:
        IndexError: one is negative or too large, or they are not a list of integers.
    """
    chosen = np.asarray(indices)
    if chosen.size == 0:
        return np.zeros(0, dtype=np.int64)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= count:
        raise IndexError(f"expected a list of integers from 0 to {count - 1}")
    return chosen.astype(np.int64)


def check_labels(labels: NDArray[np.generic], classes: Sequence[str] | None, count: int, *, where: str) -> list[str]:
    """Checks that labels are ``count`` integers that ``classes`` names; without names they are called by number.

    Raises:
        DataError: they do not fit.
    """
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: expected {count} integer labels, got {labels.dtype} of shape {labels.shape}.")
    low, high = int(labels.min()), int(labels.max())
    names = [str(k) for k in range(high + 1)] if classes is None else [str(c) for c in classes]
    if low < 0 or high >= len(names):
        raise DataError(
            f"{where}: labels from {low} to {high} do not fit {len(names)} classes (0 to {len(names) - 1})."
        )
    return names


def decode_all(source: Source) -> torch.Tensor | None:
    """Reads a whole set, in one thread: for images of 32 to 128 pixels two threads measured slower than one.

    Returns:
        uint8 (n, c, h, w); None when the shapes differ, an image cannot be read or it would pass ``MEMORY_LIMIT``.
    """
    try:
        first = source.read(0)
        if len(source) * first.numel() > MEMORY_LIMIT:
            return None
        images = torch.empty((len(source), *first.shape), dtype=torch.uint8)
        for index in range(len(source)):
            image = source.read(index)
            if image.shape != first.shape:
                return None
            images[index] = image
    except UnreadableImage:
        return None
    return images
