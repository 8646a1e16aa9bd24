"""The central squares of images that evaluation uses, made with NumPy and Pillow alone. Imports no torch.

8-bit pixels are resized bit for bit as PyTorch does it on processors with AVX2: with Pillow's antialiased triangle
filter, first along the rows and then along the columns, each rounded to 8 bits, with 16-bit weights that have as many
binary places as the largest one allows. On other machines PyTorch computes in floating point, and its pixels differ by
at most one level. Floating-point pixels are resized by Pillow, which differs from PyTorch by rounding.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matrix_ssl.config.reading import CropMode

_MOST_PLACES = 22  # binary places of a weight
_ROWS = 16  # rows of the result that are computed together


def centre_box(fraction: float, height: int, width: int, *, mode: CropMode = "centre") -> tuple[int, int, int, int]:
    """The part of an image that evaluation resizes to a square, as top, left, height, width.

    It is the central square with ``fraction`` of the shorter side or, with the mode "squash", ``fraction`` of both
    sides, as in timm's mode of that name.
    """
    sides = (height, width) if mode == "squash" else (min(height, width),) * 2
    high, wide = (max(1, round(fraction * side)) for side in sides)
    return (height - high) // 2, (width - wide) // 2, high, wide


def central_square(pixels: NDArray[Any], *, fraction: float, size: int, mode: CropMode = "centre") -> NDArray[Any]:
    """The centre of an image (c, h, w), uint8 or float32, resized with antialiasing to (c, size, size).

    Args:
        fraction: of the shorter side, or of both with the mode "squash", in (0, 1].
        size: side of the result in pixels.
        mode: as for ``centre_box``.
    """
    top, left, height, width = centre_box(fraction, *pixels.shape[-2:], mode=mode)
    square = pixels[:, top : top + height, left : left + width]
    if height == width == size:
        return square.copy()
    if pixels.dtype != np.uint8:
        channels = (Image.fromarray(np.ascontiguousarray(channel)) for channel in square)
        sides = (size, size)
        return np.stack([np.asarray(channel.resize(sides, Image.Resampling.BILINEAR)) for channel in channels])
    return _resize(_resize(square, size).swapaxes(1, 2), size).swapaxes(1, 2).copy()


def _resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resizes the last axis of an image, rounding half up."""
    length = pixels.shape[-1]
    starts, weights, places = _weights(length, size)
    result = np.empty((*pixels.shape[:-1], size), dtype=np.uint8)
    for first in range(0, size, _ROWS):
        rows = range(first, min(first + _ROWS, size))
        low, high = starts[first], min(starts[rows[-1]] + weights.shape[1], length)
        matrix = np.zeros((high - low, len(rows)))
        for row in rows:
            taps = weights[row, : high - starts[row]]
            matrix[starts[row] - low : starts[row] - low + len(taps), row - first] = taps
        sums = pixels[..., low:high].astype(np.float64) @ matrix  # integers below 2**53: exact
        result[..., first : first + len(rows)] = np.clip(np.floor((sums + 2 ** (places - 1)) / 2**places), 0, 255)
    return result


def _weights(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """First pixel (size,) and integer weights (size, taps) of every pixel of the result, and their binary places."""
    scale = length / size
    support = max(scale, 1.0)
    centres = scale * (np.arange(size) + 0.5)
    starts = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centres + support + 0.5).astype(np.int64), length)
    taps = np.arange(int((ends - starts).max()))
    distances = np.abs((starts[:, None] + taps - centres[:, None] + 0.5) / support)
    exact = np.where(taps < (ends - starts)[:, None], np.maximum(1 - distances, 0), 0)
    exact /= exact.sum(1, keepdims=True)
    places, largest = 0, float(exact.max())
    while places < _MOST_PLACES and int(0.5 + largest * 2 ** (places + 1)) < 2**15:
        places += 1
    return starts, np.floor(exact * 2**places + 0.5), places
