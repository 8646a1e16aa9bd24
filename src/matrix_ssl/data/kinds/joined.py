"""Several datasets as one, in the order in which they are named."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.config.reading import Reading
from matrix_ssl.data import base
from matrix_ssl.data.base import Classes, Labels, Source, as_indices
from matrix_ssl.errors import DataError


class JoinedSource(Source):
    """The images of several datasets; a subset shares them and holds fewer places.

    It is labelled if all of them are, with the classes of all, sorted by name, or with ``classes``, those of the
    training split. Its identity is that of a single dataset with the same images in the same order.
    """

    def __init__(self, parts: Sequence[Source], *, classes: Classes = None):
        _check_kinds(parts)
        labels, classes = _labels(parts, classes)
        super().__init__(
            joined_name([p.name for p in parts]), channels=parts[0].channels, labels=labels, classes=classes
        )
        self._parts = parts
        self.remarks = tuple(dict.fromkeys(remark for part in parts for remark in part.remarks))
        if bare := [part for part in parts if part.labels is None]:
            self.unlabelled_because = f"{bare[0].name!r} has none, {bare[0].unlabelled_because}"
        self._part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        self._row = np.concatenate([np.arange(len(part), dtype=np.int64) for part in parts])
        self.images = _together([part.images for part in parts])

    def __len__(self) -> int:
        return len(self._row)

    def read(self, index: int) -> torch.Tensor:
        return self._parts[self._part[index]].read(int(self._row[index]))

    def encoded(self, index: int) -> bytes | None:
        return self._parts[self._part[index]].encoded(int(self._row[index]))

    @property
    def dtype(self) -> torch.dtype:
        return self._parts[0].dtype

    def values(self, index: int) -> NDArray[np.generic]:
        return self._parts[self._part[index]].values(int(self._row[index]))

    def with_reading(self, reading: Reading) -> "JoinedSource":
        return self._of([part.with_reading(reading) for part in self._parts])

    def loaded(self, *, most: int | None = None) -> "JoinedSource":
        """The datasets decoded one after the other, as long as all of them together leave room for the next."""
        left, parts = base.MEMORY_LIMIT if most is None else most, list[Source]()
        for part in self._parts:
            parts.append(part.loaded(most=left))
            left -= 0 if parts[-1].images is None else parts[-1].images.nbytes
        return self._of(parts)

    def _of(self, parts: Sequence[Source]) -> "JoinedSource":
        """The same images in other parts; all of them if files have several pages."""
        if all(part is own for part, own in zip(parts, self._parts, strict=True)):
            return self
        _check_kinds(parts)
        if list(map(len, parts)) != list(map(len, self._parts)):
            other = JoinedSource(parts, classes=self.classes)
        else:
            other = self.copy()
            start = np.cumsum([0, *map(len, parts)])[self._part] + self._row
            images = _together([part.images for part in parts])
            other.images = None if images is None else images[torch.from_numpy(start)]
            other._parts, other.channels = parts, parts[0].channels
        other.remarks, other.reading = self.remarks, parts[0].reading
        return other

    def highest_level(self, index: int) -> int:
        return self._parts[self._part[index]].highest_level(int(self._row[index]))

    def has_pages(self, index: int) -> bool:
        return self._parts[self._part[index]].has_pages(int(self._row[index]))

    def file(self, index: int) -> str | None:
        return self._parts[self._part[index]].file(int(self._row[index]))

    def held_by(self, index: int) -> str | None:
        return self._parts[self._part[index]].held_by(int(self._row[index]))

    def where(self, index: int) -> str:
        return self._parts[self._part[index]].where(int(self._row[index]))

    def subset(self, indices: ArrayLike) -> "JoinedSource":
        rows = as_indices(indices, len(self))
        subset = self.copy()
        subset.labels = None if self.labels is None else self.labels[rows]
        subset._part, subset._row = self._part[rows], self._row[rows]
        subset.images = None if self.images is None else self.images[torch.from_numpy(rows)]
        return subset

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        names, sizes = zip(*(part._stored() for part in self._parts), strict=True)
        start = np.cumsum([0, *map(len, self._parts)])[self._part] + self._row
        every = [name for part, own in zip(self._parts, names, strict=True) for name in own or [""] * len(part)]
        return [every[k] for k in start.tolist()] if any(names) else [], np.concatenate(sizes)[start]

    def _read_start(self, index: int, count: int) -> bytes:
        return self._parts[self._part[index]]._read_start(int(self._row[index]), count)


def _check_kinds(parts: Sequence[Source]) -> None:
    """Raises DataError unless all datasets have pixels of one kind."""
    first = parts[0]
    for part in parts[1:]:
        if (part.channels, part.dtype) != (first.channels, first.dtype):
            raise DataError(
                f"{first.name!r} has {_kind(first)} and {part.name!r} has {_kind(part)}: name datasets of one kind "
                "together."
            )


def _kind(source: Source) -> str:
    bits = "all bits" if source.dtype.is_floating_point else "8 bits"
    return f"{source.channels} channel{'s' * (source.channels != 1)} of {bits}"


def joined_name(names: Sequence[str]) -> str:
    """A short name for several datasets: the first three names, and the number of the others."""
    return "-".join([*names[:3], *([f"{len(names) - 3}-more"] if len(names) > 3 else [])])


def _labels(parts: Sequence[Source], classes: Classes) -> tuple[Labels, Classes]:
    if any(part.labels is None for part in parts):
        return None, None
    own = [part.labelled() for part in parts]
    present = {name for _, names in own for name in names}
    classes = classes or sorted(present)
    if unknown := present - set(classes):
        raise DataError(f"The class {min(unknown)!r} of the test images is not in the training images; remove it.")
    number = {name: k for k, name in enumerate(classes)}
    labels = [np.array([number[name] for name in names], dtype=np.int64)[values] for values, names in own]
    return np.concatenate(labels), classes


def _together(images: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The pixels of all datasets, if all have them in memory and in the same shape."""
    present = [one for one in images if one is not None]
    same = len(present) == len(images) and len({one.shape[1:] for one in present}) == 1
    return torch.cat(present) if same and sum(one.nbytes for one in present) <= base.MEMORY_LIMIT else None
