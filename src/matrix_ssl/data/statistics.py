"""Range, mean and standard deviation of the pixels of a dataset, measured on its images.

Every image counts equally, whatever its size: the mean is the mean of the images' means, and the deviation is that of
the pixels of a random image, sqrt(mean of E[x²] - mean²).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.data.base import Source, evenly
from matrix_ssl.data.unreadable import main_reason
from matrix_ssl.data.workers import Reader, read_batches
from matrix_ssl.errors import DataError, UnreadableImage

MOST_IMAGES = 1024  # spread evenly over the dataset
_TOGETHER = 16
_DIGITS = 6  # significant digits that are kept


@dataclass(frozen=True)
class Statistics:
    """What was measured; numbers have six significant digits."""

    images: int
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]  # 1 for a channel that is constant
    constant: tuple[int, ...]  # the constant channels, counted from 0


def value_range(source: Source, *, workers: int) -> tuple[float, float] | None:
    """The lowest value, or 0 if all are higher, and the highest one; None if every image has 8 bits per channel.

    Raises:
        DataError: no image can be read, values are not finite, or all are 0.
    """
    rows = _read(source, _limits, workers=workers, what="range")
    if all(is_small for _, _, is_small in rows):
        return None
    low, high = min(0.0, *(low for low, _, _ in rows)), max(high for _, high, _ in rows)
    if not np.isfinite([low, high]).all():
        raise DataError(f"{source.name!r}: some values are not finite (NaN or infinity): fill them.")
    if high <= low:
        raise DataError(
            f"{source.name!r}: all values are {high:g}: name other images, or --set data.value_range=LOW,HIGH."
        )
    return _rounded(low), _rounded(high)


def mean_and_deviation(source: Source, *, workers: int) -> Statistics:
    """Mean and standard deviation of every channel; DataError if no image can be read."""
    rows = _read(source, _moments, workers=workers, what="mean")
    first, second = np.mean(rows, axis=0)  # (channels,) each
    deviation = np.sqrt(np.maximum(second - first**2, 0))
    constant = deviation < 1e-6
    return Statistics(
        len(rows),
        tuple(map(_rounded, first)),
        tuple(map(_rounded, np.where(constant, 1.0, deviation))),
        tuple(np.flatnonzero(constant).tolist()),
    )


def _read(source: Source, look: Callable[[Source, int], Any], *, workers: int, what: str) -> list[Any]:
    """What ``look`` returns for images spread evenly, but for those that cannot be read; DataError if that is all."""
    rows = evenly(len(source), MOST_IMAGES)
    keys = [rows[start : start + _TOGETHER] for start in range(0, len(rows), _TOGETHER)]
    count = 0 if source.images is not None else workers
    results = [result for batch in read_batches(_Looks(source, look), keys, workers=count) for result in batch]
    readable = [result for result in results if not isinstance(result, UnreadableImage)]
    if not readable:
        reason = main_reason([(error.where, error.reason) for error in results])
        raise DataError(f"{source.name!r}: none of the images can be read, so their {what} is unknown. {reason}")
    return readable


class _Looks(Reader[list[Any]]):
    """Applies a function to some images; an image that cannot be read gives its error."""

    def __init__(self, source: Source, look: Callable[[Source, int], Any]):
        super().__init__(source)
        self._look = look

    def batch(self, key: NDArray[np.int64]) -> list[Any]:
        results: list[Any] = []
        for index in key.tolist():
            try:
                results.append(self._look(self._source, index))
            except UnreadableImage as error:
                results.append(error)
        return results


def _limits(source: Source, index: int) -> tuple[float, float, bool]:
    values = source.values(index)
    return float(values.min()), float(values.max()), values.dtype == np.uint8


def _moments(source: Source, index: int) -> NDArray[np.float64]:
    pixels = source.read(index).flatten(1).double() / source.white
    return np.stack([pixels.mean(1).numpy(), pixels.square().mean(1).numpy()])


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
