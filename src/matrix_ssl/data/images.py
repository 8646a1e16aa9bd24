"""Turns the bytes of an image file into an RGB tensor, or reports why that is impossible.

Decoding is exact or refused: no reduced-size JPEG decoding, no clipping of 16-bit images, EXIF orientation applied,
transparency blended with white. Only the formats below are tried: Pillow has more, some of which start other programs.
"""

import contextlib
import io
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from matrix_ssl.config.untrusted import GIB, read_file
from matrix_ssl.data.deep import read_levels
from matrix_ssl.data.open_files import why_unreadable
from matrix_ssl.data.tiff import Tiff, read_tags
from matrix_ssl.errors import DataError, UnreadableImage

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm"]
)
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_MOST_BYTES = 2 * GIB  # of an image file
_MOST_SUBSTITUTES = 100  # images tried instead of one that cannot be read
Unreadable = tuple[str, str]  # where, why
Pixels = TypeVar("Pixels")
Result = TypeVar("Result")

# kinds of images under the name of another one: place and beginning of their bytes
_OTHER_KINDS = (
    (4, b"ftypavif", "an AVIF image"), (4, b"ftyphei", "an HEIC image"), (4, b"ftypmif1", "an HEIC image"),
    (4, b"ftypcrx", "a raw image of a camera"), (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"), (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"), (0, b"8BPS", "a Photoshop image"), (128, b"DICM", "a DICOM file"),
    (0, b"%PDF", "a PDF file"), (0, b"<svg", "an SVG drawing"), (0, b"PK\x03\x04", "a zip archive"),
)  # fmt: skip

# what Pillow's decoders raise, or once raised, on damaged bytes; a hundred thousand damaged files raised nothing else.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
                   RuntimeError, MemoryError, EOFError, struct.error)  # fmt: skip


def read_image(path: Path, *, white_level: int = 0) -> torch.Tensor:
    """The image of a file, uint8 (3, h, w); UnreadableImage where it cannot be opened or decoded.

    ``white_level`` as in ``decode_image``.
    """
    return decode_image(read_content(path), str(path), white_level=white_level)


def decode_image(content: bytes, where: str, *, white_level: int = 0) -> torch.Tensor:
    """The image of a file's bytes, uint8 (3, h, w), of an animation the first frame.

    UnreadableImage, at ``where``, if they are not an image, are damaged, would decode to an absurd size, or have pixels
    that cannot be read exactly. ``white_level`` is the level of white in files of more than 8 bits; 0: the format's.
    """

    def convert(image: Image.Image, tags: Tiff | None, again: Image.Image) -> torch.Tensor:
        levels = read_levels(image, _turn_upright, again=again, tags=tags)
        if levels is None:
            _turn_upright(image)
        return _to_pixels(image if levels is None else levels.to_8_bit(where, white_level=white_level))

    return _decode(content, where, convert)


def highest_level(path_or_content: Path | bytes) -> int:
    """The highest level of an image of more than 8 bits; 0 for any other image, and for one that cannot be read."""

    def look(image: Image.Image, tags: Tiff | None, again: Image.Image) -> int:
        levels = read_levels(image, _turn_upright, again=again, tags=tags)
        return 0 if levels is None else levels.highest()

    try:
        content = path_or_content if isinstance(path_or_content, bytes) else read_content(path_or_content)
        return _decode(content, "", look)
    except UnreadableImage:
        return 0


def to_tensor(image: Image.Image, where: str) -> torch.Tensor:
    """An image of Pillow, which stays as it is, as ``decode_image`` gives those of files."""
    with quiet_pillow():
        copied = image.copy()
        levels = read_levels(copied, _turn_upright, again=None, tags=None)
        if levels is None:
            _turn_upright(copied)
        return _to_pixels(copied if levels is None else levels.to_8_bit(where))


def read_content(path: Path) -> bytes:
    """The bytes of an image file; UnreadableImage where it cannot be opened."""
    try:
        return read_file(path, most=_MOST_BYTES)
    except OSError as error:
        raise UnreadableImage(str(path), why_unreadable(error)) from None


def _decode(content: bytes, where: str, convert: "Callable[[Image.Image, Tiff | None, Image.Image], Result]") -> Result:
    """What ``convert`` makes of the opened image, the tags of a TIFF file, and the image opened again."""
    if not content:
        raise UnreadableImage(where, "the file is empty")
    with quiet_pillow():
        tags = read_tags(content)
    if tags is not None and (reason := tags.why_misread()):
        raise UnreadableImage(where, reason)
    try:
        with quiet_pillow(), _open(content) as image, _open(content) as again:
            if not (image.width and image.height):
                raise UnreadableImage(where, "the image has no pixels")
            return convert(image, tags, again)
    except UnidentifiedImageError:
        reason = (tags.why_unknown() if tags is not None else None) or _other_kind(content)
        raise UnreadableImage(where, reason) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImage(where, f"the image is larger than {limit:,} pixels (decompression-bomb limit)") from None
    except _DECODER_ERRORS as error:
        raise UnreadableImage(where, f"damaged image ({str(error) or type(error).__name__})") from None


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=_FORMATS)


def _other_kind(content: bytes) -> str:
    """The reason for bytes that are of no known format: that of a format whose beginning is known."""
    kind = next((kind for at, start, kind in _OTHER_KINDS if content[at:].startswith(start)), "")
    return f"{kind}; save it as JPEG or PNG" if kind else "not an image, or its first bytes are damaged"


def read_or_replace(read: Callable[[int], Pixels], index: int, count: int) -> tuple[Pixels, int, list[Unreadable]]:
    """The image at ``index`` of ``count``, or the next one that can be read, going round at the end.

    Also its index, and the images before it that cannot be read; DataError for a hundred in a row, or all.
    """
    unreadable: list[Unreadable] = []
    for offset in range(min(count, _MOST_SUBSTITUTES)):
        substitute = (index + offset) % count
        try:
            return read(substitute), substitute, unreadable
        except UnreadableImage as error:
            unreadable.append((error.where, error.reason))
    where, why = unreadable[-1]
    raise DataError(
        f"{len(unreadable)} images in a row cannot be read, the last one {where}: {why}; fix or remove them."
    )


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hides Pillow's warnings and log about large images and odd metadata, about which a user can do nothing.

    Python keeps one list of warning filters for all threads, so decode in processes, or enter this once around a pool
    of threads: then the nested uses in its threads cannot leave a wrong list behind.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def _to_pixels(image: Image.Image) -> torch.Tensor:
    """uint8 (3, h, w) of an upright image."""
    return torch.from_numpy(np.asarray(_to_rgb(image)).transpose(2, 0, 1).copy())


def _turn_upright(image: Image.Image) -> None:
    image.load()  # outside: damaged pixels are an error, a damaged EXIF block is not
    with contextlib.suppress(*_DECODER_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)  # turns the pixels before it rewrites the block, which may fail


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", transparent.size, "white")
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")
