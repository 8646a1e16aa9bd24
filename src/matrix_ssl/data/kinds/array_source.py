"""An array of images other than 8-bit colours: 1 to 16 channels, 8 or 16 bits or floating point, as in files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from matrix_ssl.config.reading import MOST_CHANNELS, Reading
from matrix_ssl.data.base import Classes, Labels, MemorySource, PlacedSource, Places, Source
from matrix_ssl.data.files.values import Values
from matrix_ssl.data.kinds.encoded import EncodedSource
from matrix_ssl.errors import DataError

_COLOURS = (1, 3)
_WORDS = np.dtype(np.uint16)


class _Converted(MemorySource):
    """The images of an array as they are read, whose identity is that of the array."""

    origin: "ArraySource"  # narrower: always there

    def _as_stored(self) -> PlacedSource:
        return self.origin


class ArraySource(EncodedSource):
    """Images (n, h, w, c) of numbers, each read as a .npy file of the same numbers would be."""

    _kind = _Converted

    def __init__(self, array: NDArray[Any], *, labels: Labels, classes: Classes):
        places = Places.whole(["array"], [len(array)])
        super().__init__("array", places, labels=labels, classes=classes)
        self._array = array

    @property
    def stored_channels(self) -> int:
        """The number of channels of the array, however its images are read."""
        return int(self._array.shape[3])

    def with_reading(self, reading: Reading) -> Source:
        """Raises DataError if the array does not have the channels that are to be read."""
        stored = self.stored_channels
        if not reading.channels and stored not in _COLOURS:
            raise DataError(f"The array has {stored}-channel images, but colours (three channels) are needed.")
        if reading.channels not in (0, -1, stored):
            raise DataError(f"The array has {stored}-channel images, but {reading.channels}-channel images are needed.")
        return super().with_reading(reading)

    def values(self, index: int) -> NDArray[Any]:
        image: NDArray[Any] = self._array[self.places.entry[index]]
        return image

    def read(self, index: int) -> torch.Tensor:
        values, where = Values(self.values(index)), self.where(index)
        if self.reading.channels:
            return torch.from_numpy(values.to_unit(where, self.reading))
        return torch.from_numpy(values.to_colours(where, self.reading.white_level))

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        return [], np.full(len(self), self._array[:1].nbytes, dtype=np.int64)

    def _read_start(self, index: int, count: int) -> bytes:
        image = self.values(index)
        return f"{image.dtype.str} {image.shape}".encode() + np.ascontiguousarray(image).tobytes()[:count]


def channels_last(images: NDArray[Any] | torch.Tensor) -> NDArray[Any] | None:
    """The images (n, h, w, c) of an array that does not hold 8-bit colours; None for any other array.

    It has 16 bits and 1 or 3 channels, or 2 to 16 channels of 8 or 16 bits or floating point. The channel axis is the
    second or the last, whichever alone has size 1 or 3, or else at most 16.
    """
    array = _as_array(images)
    if array is None or not array.size:
        return None
    if array.ndim == 3:
        return array[..., None] if array.dtype == _WORDS and array.shape[2] not in _COLOURS else None
    if array.ndim != 4:
        return None
    ends = (1, 3)
    fits = [axis for axis in ends if array.shape[axis] in _COLOURS]
    if fits and array.dtype != _WORDS:
        return None
    fits = fits or [axis for axis in ends if array.shape[axis] <= MOST_CHANNELS]
    return np.moveaxis(array, fits[0], -1) if len(fits) == 1 else None


def _as_array(images: NDArray[Any] | torch.Tensor) -> NDArray[Any] | None:
    """An array of unsigned 8- or 16-bit integers, or of floating point, in this machine's byte order."""
    if isinstance(images, torch.Tensor):
        if images.is_meta or images.is_complex() or images.layout != torch.strided:
            return None
        images = images.detach().cpu()
        images = (images.float() if images.dtype == torch.bfloat16 else images).numpy()
    if not (images.dtype.kind == "f" and images.dtype.itemsize <= 8) and images.dtype.str[1:] not in ("u1", "u2"):
        return None
    return images.astype(images.dtype.newbyteorder("="), copy=False)
