"""All channels and all bits of an image file, as they are stored, and their conversion to [0, 1].

Each kind of file has one reader: Pillow for picture formats, tifffile for the TIFF files that Pillow would not read
exactly, ``netpbm`` for PGM and PPM files of that kind, pydicom for DICOM, and NumPy for its arrays. A value x becomes
(x - low) / (high - low), clipped to [0, 1], where low and high are ``Reading.value_range`` or, by the format: 0 and the
highest level for unsigned integers, 0 and 1 for floating-point numbers within them. Signed integers, and other
floating-point numbers, have no such range of their own.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matrix_ssl.config.reading import MOST_CHANNELS, Reading
from matrix_ssl.data.files import array_file, bands, dicom, netpbm
from matrix_ssl.data.files.deep import NOT_FINITE, Levels, read_levels
from matrix_ssl.data.files.opening import (
    MOST_PAGES,
    Again,
    avif_bits,
    decode,
    is_heif,
    page_numbers,
    page_tags,
    quiet_pillow,
    reported,
    turn_upright,
)
from matrix_ssl.data.files.tiff import Tiff
from matrix_ssl.errors import OFFERED, UnreadableImage, import_extra

_COLOUR_MODES = ("L", "LA", "RGB", "RGBA")
_BYTE = 8
_SIGNED = 2  # kind of numbers of a TIFF


@dataclass(frozen=True)
class Values:
    """The numbers of an image."""

    array: NDArray[Any]  # (h, w, c), integers or floating point
    white: float = 0.0  # the value of white in the file; 0: by the type of the numbers

    @property
    def channels(self) -> int:
        """The number of values per pixel."""
        return int(self.array.shape[2])

    def to_unit(self, where: str, reading: Reading) -> NDArray[np.float32]:
        """float32 (c, h, w) in [0, 1].

        Raises UnreadableImage, at ``where``, for a number of channels other than ``reading.channels`` (-1: any), for
        NaN and infinity, and for numbers without a range.
        """
        if reading.channels not in (-1, self.channels):
            raise UnreadableImage(
                where, f"{self.channels} channel{'s' * (self.channels > 1)}, but data.channels={reading.channels}"
            )
        low, high = reading.value_range or self._range(where, reading.white_level)
        kind: Any = np.float32 if self.array.dtype.itemsize <= 2 else np.float64
        values: NDArray[Any] = (self.array.astype(kind) - kind(low)) / kind(high - low)
        if self.array.dtype.kind == "f" and not np.isfinite(values).all():
            raise UnreadableImage(where, NOT_FINITE)
        unit = np.clip(values, 0, 1).astype(np.float32)
        return np.ascontiguousarray(unit.transpose(2, 0, 1))

    def to_colours(self, where: str, white_level: int = 0) -> NDArray[np.uint8]:
        """uint8 (3, h, w) from one or three channels; UnreadableImage otherwise, and as in ``Levels.to_8_bit``."""
        if self.channels not in (1, 3):
            raise UnreadableImage(
                where, f"{self.channels} channels, and colours are 1 or 3: " + OFFERED.first(
                    f"keep all by --set data.channels={self.channels}", f"keep all by --channels {self.channels}",
                    otherwise="choose three of them",
                ),
            )  # fmt: skip
        array = self.array
        if array.dtype != np.uint8 or self.white not in (0, 255):
            top = self.white or (_highest(array) if array.dtype.kind == "u" else 1.0 if array.max() <= 1 else 255.0)
            levels = Levels(array if self.channels == 3 else array[..., 0], "RGB" if self.channels == 3 else "L", top)
            array = np.asarray(levels.to_8_bit(where, white_level=white_level)).reshape(array.shape)
        return np.array(np.broadcast_to(array.transpose(2, 0, 1), (3, *array.shape[:2])), order="C")

    def _range(self, where: str, white_level: int) -> tuple[float, float]:
        kind = self.array.dtype.kind
        if self.white or kind in "ub":
            level = white_level if white_level and self.array.dtype.itemsize > 1 else 0
            return 0.0, float(level or self.white or _highest(self.array))
        low, high = float(self.array.min()), float(self.array.max())
        if not math.isfinite(low + high):
            raise UnreadableImage(where, NOT_FINITE)
        if kind == "f" and low >= 0 and high <= 1:
            return 0.0, 1.0
        use = OFFERED.first(
            f"use --set data.value_range={low:g},{high:g}, or that of all images",
            otherwise="save them with values from 0 to 1",
        )
        raise UnreadableImage(where, f"values from {low:g} to {high:g} have no known range: {use}")


def is_other_kind(content: bytes) -> bool:
    """Whether the bytes are not a picture but numbers for which Pillow has no reader: NumPy arrays or DICOM."""
    return array_file.is_array(content) or dicom.is_dicom(content)


def read_values(
    content: bytes, where: str, *, page: int = 0, together: bool = False, channels: int = 0, windowed: bool = False
) -> Values:
    """The values of a file's bytes.

    Args:
        page: the page or frame to read.
        together: read all pages as the channels of one image instead.
        channels: how many an array has, if its shape leaves that open; 0: preferably 1 or 3; -1: unknown.
        windowed: DICOM only: apply the window of the file, and return its grey levels in [0, 1].

    Raises:
        UnreadableImage: at ``where``, the bytes are not an image, are damaged, absurdly large or not read exactly.
    """
    if together and len(pages := pages_of(content)) > 1:
        if len(pages) > MOST_CHANNELS:
            raise UnreadableImage(where, f"{len(pages)} pages, and an image has at most {MOST_CHANNELS} channels")
        parts = [read_values(content, where, page=one, windowed=windowed) for one in pages]
        if len({(part.array.shape[:2], part.array.dtype, part.white) for part in parts}) > 1:
            raise UnreadableImage(
                where, "its pages have different sizes or types, so they cannot be the channels of one image"
            )
        return _checked(Values(np.concatenate([part.array for part in parts], axis=2), parts[0].white), where)
    if array_file.is_array(content):
        return _checked(Values(array_file.read_array(content, where, channels=channels)), where)
    if dicom.is_dicom(content):
        return _checked(Values(*dicom.read_dicom(content, where, frame=page, windowed=windowed)), where)
    if is_heif(content):
        return _checked(_read_heif(content, where, page), where)
    if netpbm.is_changed(content):
        return Values(*netpbm.read_netpbm(content, where))
    if (bits := avif_bits(content)) > _BYTE:
        kept = f"of which Pillow keeps {_BYTE}: save it as TIFF, PNG or HEIC, or read colours without data.channels"
        raise UnreadableImage(where, f"an AVIF image of {bits} bits, {kept}")
    if (tags := page_tags(content, page)) is not None and not tags.is_whole:
        return _checked(Values(bands.read_bands(content, where, page=page)), where)
    return _checked(decode(content, where, lambda *image: _of_picture(*image, where=where), page=page), where)


def pages_of(content: bytes, *, most: int = MOST_PAGES) -> list[int]:
    """Those of the first ``most`` pages or frames of a file that are images in their own right, by their numbers."""
    return dicom.frame_numbers(content)[:most] if dicom.is_dicom(content) else page_numbers(content, most=most)


def picture_values(image: Image.Image, where: str) -> Values:
    """The numbers of a Pillow image, which is left unchanged, as those of its file; UnreadableImage if not exactly."""
    with quiet_pillow():
        return _of_picture(image.copy(), None, None, where=where)


def _of_picture(image: Image.Image, tags: Tiff | None, again: Again | None, *, where: str) -> Values:
    levels = read_levels(image, turn_upright, again=again, tags=tags)
    if levels is not None:
        if not levels.is_exact:
            raise UnreadableImage(where, "grey of 16 bits with transparency cannot be read exactly: save it without")
        values = levels.values if levels.values.ndim == 3 else levels.values[..., None]
        if values.dtype == np.int32:  # Pillow's type for 16 bits of some formats
            values = values.astype(np.int16 if tags is not None and tags.kind == _SIGNED else np.uint16)
        values = (int(levels.top) - values).astype(values.dtype) if levels.inverted else values
        return Values(values, levels.top if values.dtype.kind == "u" else 0.0)
    turn_upright(image)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode not in _COLOUR_MODES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.asarray(image)
    return Values(pixels if pixels.ndim == 3 else pixels[..., None])


def _read_heif(content: bytes, where: str, page: int) -> Values:
    """Keeps 10 or 12 bits if the file has them, which Pillow's image would not."""
    pillow_heif = import_extra("pillow_heif", extra="heic")
    with reported(content, where):
        file = pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False, hdr_to_16bit=False)
        image = file[page] if page else file
        bits = int(image.info.get("bit_depth", 8))
        pixels = np.asarray(image).copy()
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return Values(pixels, float(2**bits - 1))


def _checked(values: Values, where: str) -> Values:
    if not 1 <= values.channels <= MOST_CHANNELS:
        raise UnreadableImage(where, f"{values.channels} channels, and an image has at most {MOST_CHANNELS}")
    native = values.array.dtype.newbyteorder("=")
    return Values(values.array.astype(native, copy=False), values.white)


def _highest(array: NDArray[Any]) -> float:
    return 1.0 if array.dtype.kind == "b" else float(np.iinfo(array.dtype).max)
