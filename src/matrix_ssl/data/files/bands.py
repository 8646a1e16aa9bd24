"""TIFF files that Pillow does not read exactly, with all their bands, read by tifffile (the extra ``tiff``).

Reference: TIFF, revision 6.0, Aldus, 1992, sections 3 to 8 and 18 to 19; the orientation is its tag 274.
"""

import io
import lzma
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.reading import MOST_CHANNELS
from matrix_ssl.data.files.opening import check_size, reported
from matrix_ssl.errors import MissingExtra, UnreadableImage, import_extra

_ORIENTATION = 274
_WHITE_IS_ZERO, _GREY, _RGB = 0, 1, 2
_KINDS = "uif"
_DEFLATE, _LZMA = (8, 32946), 34925  # compressions
_HIGHEST_RATIO = 1032  # of deflate
_UNCHECKED = 2**26  # bytes that may be unpacked in any case


def read_bands(content: bytes, where: str, *, page: int = 0) -> NDArray[Any]:
    """The numbers of an image in a TIFF file, (h, w, c), turned upright; inverted grey levels are made normal ones.

    Raises:
        UnreadableImage: at ``where``, the file is damaged or absurdly large, has no grey levels, bands or RGB of real
            numbers, or uses a compression for which a decoder is missing, or tifffile is not installed.
    """
    try:
        tifffile = import_extra("tifffile", extra="tiff")
    except MissingExtra as error:
        raise UnreadableImage(where, f"a TIFF of several bands or unusual numbers: {error}") from None
    with reported(content, where), tifffile.TiffFile(io.BytesIO(content)) as file:
        image = file.pages[page]
        if not hasattr(image, "asarray") or image.dtype is None:
            raise UnreadableImage(where, "a TIFF of numbers of unknown type: save it with 8, 16 or 32 bits")
        check_size(image.imagewidth, image.imagelength, where, channels=image.samplesperpixel * image.imagedepth)
        _check(image, where)
        _check_unpacked(image, content, where)
        try:
            array = image.asarray(maxworkers=1)
        except (ValueError, KeyError, ImportError) as error:
            if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
                raise
            name = getattr(image.compression, "name", image.compression)
            raise UnreadableImage(
                where,
                f"a TIFF with the compression {name} and the predictor {image.predictor}, which tifffile reads "
                "with the package imagecodecs: install it, or save the image with deflate",
            ) from None
        array = np.moveaxis(array, 0, -1) if image.axes == "SYX" else array
        array = array if array.ndim == 3 else array[..., None]
        if image.photometric == _WHITE_IS_ZERO:
            array = np.array(2**image.bitspersample - 1, dtype=array.dtype) - array
        tag = image.tags.get(_ORIENTATION)
        return _upright(array, int(tag.value) if tag is not None else 1)


def _check(image: Any, where: str) -> None:
    """Raises UnreadableImage unless an image of tifffile has bands of real numbers."""
    if image.samplesperpixel > MOST_CHANNELS:
        raise UnreadableImage(where, f"{image.samplesperpixel} channels, and an image has at most {MOST_CHANNELS}")
    if image.axes not in ("YX", "YXS", "SYX"):
        raise UnreadableImage(where, f"a TIFF with the axes {image.axes}: save every plane as a page")
    if image.dtype.kind not in _KINDS or image.dtype.itemsize > 8:
        raise UnreadableImage(where, f"a TIFF of {image.dtype}: save it as integers or floating-point numbers")
    if image.photometric not in (_WHITE_IS_ZERO, _GREY, _RGB):
        name = getattr(image.photometric, "name", image.photometric)
        raise UnreadableImage(where, f"a TIFF with colours of type {name}: save it as grey, RGB or plain bands")
    if image.photometric == _WHITE_IS_ZERO and image.dtype.kind != "u":
        raise UnreadableImage(where, f"a TIFF of inverted {image.dtype}: save it with 0 as black")


def _check_unpacked(image: Any, content: bytes, where: str) -> None:
    """Raises UnreadableImage if a part of the file unpacks to more than it says; tifffile would fill the memory."""
    if image.compression not in (*_DEFLATE, _LZMA):
        return
    expected = max(math.prod(image.chunks) * image.dtype.itemsize, 1)
    for start, size in zip(image.dataoffsets, image.databytecounts, strict=True):
        if image.compression == _LZMA or size * _HIGHEST_RATIO > max(_UNCHECKED, 2 * expected):
            unpacker = lzma.LZMADecompressor() if image.compression == _LZMA else zlib.decompressobj()
            if len(unpacker.decompress(content[start : start + size], expected + 1)) > expected:
                raise UnreadableImage(where, "damaged image (a part of it unpacks to more than its size)")


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turns an array (h, w, c) upright, given the tag that says where its first row and column are."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)
