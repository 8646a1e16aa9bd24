"""Images with more than 8 bits per channel, read to the last bit, and their conversion to 8 bits.

Pillow keeps one channel of 16 or 32 bits as it is, but only the upper bytes of several channels. The lower bytes come
from a second decoding in which the bytes of every number are taken in the opposite order.

A level becomes 8 bits as ``255 * level / white``, rounded. White is that of the format (65535 for 16 bits) or, if a
camera or scanner fills only the lower 10, 12 or 14 of 16 bits, a setting (``data.white_level``).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from matrix_ssl.data.files.tiff import Tiff
from matrix_ssl.errors import UnreadableImage

NOT_FINITE = "some of its values are not finite (NaN or infinity): fill them"
_TOP = 65535
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}


@dataclass(frozen=True)
class Levels:
    """The pixels of an image that has more than 8 bits per channel."""

    values: NDArray[np.generic]  # (h, w) or (h, w, bands), integers or floating point
    mode: str  # of Pillow, for 8 bits
    top: float  # the level of white in the format
    inverted: bool = False  # 0 is white
    is_declared: bool = False  # the file itself says which level is white
    is_exact: bool = True  # no bit is lost
    transparent: int | tuple[int, ...] | None = None  # the level, or the levels of the bands, that mean no colour

    @property
    def is_whole(self) -> bool:
        """Whether the levels are integers, for which a different level may be white."""
        return self.values.dtype.kind in "iu" and not self.is_declared

    def highest(self) -> int:
        """The highest level of a colour; 0 if the format defines what white is."""
        return int(self._colours().max()) if self.is_whole else 0

    def to_8_bit(self, where: str, *, white_level: int = 0) -> Image.Image:
        """The image with 8 bits a channel; UnreadableImage, at ``where``, for levels without a known meaning."""
        white = float(white_level) if white_level and self.is_whole else self.top
        low, high = float(self._colours().min()), float(self._colours().max())
        if not math.isfinite(low + high):
            raise UnreadableImage(where, NOT_FINITE)
        if not (low >= 0.0 and high <= white):
            known = f"0 to {white:g}" if self.values.dtype.kind in "iu" else "0 to 1 or 0 to 255"
            why = ", the value of data.white_level" if white_level and self.is_whole else ""
            raise UnreadableImage(
                where, f"grey levels from {low:g} to {high:g}, but only {known} has a known meaning{why}"
            )
        tops = np.full(self._bands(), white, dtype=np.float32)
        if self.mode in ("RGBA", "RGBa"):
            tops[-1] = self.top  # of the alpha channel
        values = self.values.astype(np.float32)
        values = np.float32(white) - values if self.inverted else values
        pixels = np.rint(values * (np.float32(255) / (tops if values.ndim == 3 else tops[0]))).astype(np.uint8)
        if self.transparent is not None:  # on white
            pixels[np.atleast_3d(self.values == np.asarray(self.transparent)).all(2)] = 255
        return Image.frombytes(self.mode, pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())

    def _bands(self) -> int:
        return self.values.shape[2] if self.values.ndim == 3 else 1

    def _colours(self) -> NDArray[np.generic]:
        return self.values[..., :3] if self.mode in ("RGBA", "RGBa") else self.values


def read_levels(
    image: Image.Image,
    upright: Callable[[Image.Image], None],
    *,
    again: Callable[[], Image.Image] | None,
    tags: Tiff | None,
) -> Levels | None:
    """The levels of an image that is opened but not yet loaded; None if it has 8 bits per channel or fewer.

    Args:
        upright: loads an image and turns it.
        again: opens the same image a second time; None: there is no file.
        tags: of a TIFF file.
    """
    tile: Any = next(iter(getattr(image, "tile", [])), None)  # none if an image does not come from a file
    raw = (tile.args if isinstance(tile.args, str) else tile.args[0]) if tile is not None and tile.args else ""
    is_declared = tile is not None and tile.codec_name.startswith("ppm")
    transparent = image.info.get("transparency")  # of PNG
    if image.mode.startswith("I") or image.mode == "F":
        upright(image)
        values = np.asarray(image)
        if values.dtype == np.int32 and tags is not None and (tags.kind, tags.bits) == (1, (32,)):
            values = values.view(np.uint32)  # Pillow has no type for it
        top = 4095.0 if tags is not None and tags.bits == (12,) else float(_TOP)
        if values.dtype.kind == "f":
            top = 1.0 if float(values.max()) <= 1.0 else 255.0
        inverted = tags is not None and tags.inverted
        return Levels(values, "L", top, inverted, is_declared, transparent=transparent)
    if not isinstance(raw, str) or ";16" not in raw or image.mode not in ("RGB", "RGBA", "CMYK", "RGBa"):
        return None
    upright(image)
    high = np.asarray(image).astype(np.uint16)
    low = None if again is None else _lower_bytes(again(), raw, upright)
    # there is no such order for grey with alpha: the upper byte twice, off by at most one level of 256
    levels = high << 8 | (high if low is None else low)
    return Levels(levels, image.mode, float(_TOP), is_exact=low is not None, transparent=transparent)


def _lower_bytes(image: Image.Image, raw: str, upright: Callable[[Image.Image], None]) -> NDArray[np.uint16] | None:
    other, file = raw[:-1] + _OTHER_ORDER.get(raw[-1], "?"), cast("ImageFile.ImageFile", image)
    file.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *(tile.args or ())[1:]))
        for tile in file.tile
    ]
    with contextlib.suppress(ValueError):  # Pillow does not know this order for the mode
        upright(image)
        return np.asarray(image).astype(np.uint16)
    return None
