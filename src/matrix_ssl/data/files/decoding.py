"""Turns the bytes of an image file into an array, or reports why that is impossible. Imports no torch.

Decoding is exact or refused: no reduced-size JPEG decoding, no clipping of 16-bit images, EXIF orientation applied.
By default an image becomes three colours of 8 bits, with transparency blended with white; with ``Reading.channels`` it
keeps all of its channels and bits, by ``values``.
"""

import importlib
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from matrix_ssl.config.reading import COLOURS, Reading
from matrix_ssl.data.files.deep import read_levels
from matrix_ssl.data.files.opening import DECODER_ERRORS, Again, decode, turn_upright
from matrix_ssl.data.files.tiff import Tiff
from matrix_ssl.data.files.values import Values, is_other_kind, read_values

_HAS_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None


def decode_pixels(content: bytes, where: str, *, reading: Reading = COLOURS, page: int = 0) -> NDArray[Any]:
    """The image of a file's bytes: uint8 (3, h, w), or float32 (channels, h, w) in [0, 1] by ``reading``.

    Raises UnreadableImage, at ``where``, if the bytes are not an image, are damaged, would decode to an absurd size,
    have other channels, or have pixels that cannot be read exactly.
    """
    if reading.channels:
        return decode_values(content, where, reading=reading, page=page).to_unit(where, reading)
    if is_other_kind(content):
        return read_values(content, where, page=page, windowed=True).to_colours(where, reading.white_level)

    def convert(image: Image.Image, tags: Tiff | None, again: Again) -> NDArray[np.uint8]:
        if (pixels := _decode_jpeg(content, image)) is not None:
            return pixels
        levels = read_levels(image, turn_upright, again=again, tags=tags)
        if levels is None:
            turn_upright(image)
        return to_pixels(image if levels is None else levels.to_8_bit(where, white_level=reading.white_level))

    return decode(content, where, convert, page=page)


def decode_values(content: bytes, where: str, *, reading: Reading, page: int = 0) -> Values:
    """The numbers of a file's bytes as they are stored; errors as in ``decode_pixels``."""
    return read_values(content, where, page=page, together=reading.pages == "channels", channels=reading.channels)


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (3, h, w) of an upright image; in memory the channels are last, as in Pillow, which crops faster."""
    return np.array(_to_rgb(image)).transpose(2, 0, 1)


def _decode_jpeg(content: bytes, image: Image.Image) -> NDArray[np.uint8] | None:
    """The pixels of an upright JPEG image by simplejpeg, if it is installed: those of Pillow, but faster.

    None leaves the image to Pillow, which also says what is wrong with one that simplejpeg rejects or warns about.
    """
    if not _HAS_SIMPLEJPEG or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    simplejpeg = importlib.import_module("simplejpeg")
    try:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if not upright or simplejpeg.decode_jpeg_header(content)[:2] != (image.height, image.width):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB").transpose(2, 0, 1)
    except DECODER_ERRORS:
        return None
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", transparent.size, "white")
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")
