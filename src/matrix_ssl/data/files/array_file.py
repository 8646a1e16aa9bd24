"""An image stored as a NumPy array in a .npy file: (h, w), (h, w, c) or (c, h, w)."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.reading import MOST_CHANNELS
from matrix_ssl.data.files.opening import check_size, reported
from matrix_ssl.errors import UnreadableImage

_MAGIC = b"\x93NUMPY"
_KINDS = "buif"
_COLOURS = (1, 3)


def is_array(content: bytes) -> bool:
    """Whether the bytes begin like those of a .npy file."""
    return content.startswith(_MAGIC)


def read_array(content: bytes, where: str, *, channels: int) -> NDArray[Any]:
    """The numbers of a .npy file, (h, w, c) in this machine's byte order.

    The channel axis is recognised by its size, if only one of the first and the last axis has that size: ``channels``;
    1 or 3, as for colours, if that is 0 and one end has such a size; or else at most 16.

    Raises:
        UnreadableImage: at ``where``, the file is damaged, holds no real numbers, or has a shape that is not an image
            or leaves the channel axis ambiguous. Pickled objects are never read.
    """
    with reported(content, where):
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.kind not in _KINDS or dtype.itemsize > 8:
            raise UnreadableImage(where, f"an array of {dtype}: save it as integers or floating-point numbers")
        axis = _channel_axis(shape, channels, where)
        count = 1 if axis is None else shape[axis]
        height, width = shape if axis is None else [side for place, side in enumerate(shape) if place != axis]
        check_size(width, height, where, channels=count)
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    array = array[..., None] if axis is None else np.moveaxis(array, axis, -1)
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))


def _channel_axis(shape: tuple[int, ...], channels: int, where: str) -> int | None:
    """The axis of the channels; None for an array (h, w)."""
    if len(shape) == 2:
        return None
    ends = (0, 2) if len(shape) == 3 else ()
    fits = [axis for axis in ends if channels == 0 and shape[axis] in _COLOURS]
    fits = fits or [axis for axis in ends if shape[axis] == channels or (channels < 1 <= shape[axis] <= MOST_CHANNELS)]
    if len(fits) != 1:
        which = f"of {channels}" if channels > 0 else f"of at most {MOST_CHANNELS}"
        reason = f"both ends have a size {which} channels: save it as (h, w, c) with larger sides, or set data.channels"
        shapes = f"expected (h, w), (h, w, c) or (c, h, w) with c {which}"
        raise UnreadableImage(where, f"an array of shape {shape}: {reason if fits else shapes}")
    return fits[0]
