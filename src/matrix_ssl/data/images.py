"""Turns the bytes of an image file into an RGB tensor, or reports why that is impossible.

Decoding is exact: no reduced-size JPEG decoding, no clipping of 16-bit images, EXIF orientation applied, transparency
blended with white. Only the formats below are tried: Pillow has more, some of which start other programs.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from matrix_ssl.data.open_files import why_unreadable
from matrix_ssl.errors import DataError, UnreadableImage

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm"]
)
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_MOST_SUBSTITUTES = 100  # images tried instead of one that cannot be read
Unreadable = tuple[str, str]  # where, why
Pixels = TypeVar("Pixels")

# what Pillow's decoders raise, or once raised, on damaged bytes; a hundred thousand damaged files raised nothing else.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
                   RuntimeError, MemoryError, EOFError, struct.error)  # fmt: skip


def read_image(path: Path) -> torch.Tensor:
    """The image of a file, uint8 (3, h, w); UnreadableImage where it cannot be opened or decoded."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(str(path), why_unreadable(error)) from None
    return decode_image(content, str(path))


def decode_image(content: bytes, where: str) -> torch.Tensor:
    """The image of a file's bytes, uint8 (3, h, w), of an animation the first frame.

    UnreadableImage, at ``where``, if they are not an image, are damaged or would decode to an absurd size.
    """
    if not content:
        raise UnreadableImage(where, "the file is empty")
    try:
        with quiet_pillow(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if not (image.width and image.height):
                raise UnreadableImage(where, "the image has no pixels")
            return _upright_pixels(image, where)
    except UnidentifiedImageError:
        raise UnreadableImage(where, "not an image, or its first bytes are damaged") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImage(where, f"the image is larger than {limit:,} pixels (decompression-bomb limit)") from None
    except _DECODER_ERRORS as error:
        raise UnreadableImage(where, f"damaged image ({str(error) or type(error).__name__})") from None


def to_tensor(image: Image.Image, where: str) -> torch.Tensor:
    """An image of Pillow, which stays as it is, as ``decode_image`` gives those of files."""
    with quiet_pillow():
        return _upright_pixels(image.copy(), where)


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
    """Hides Pillow's warnings about large images and odd metadata, about which a user can do nothing.

    Python keeps one list of warning filters for all threads, so decode in processes, or enter this once around a pool
    of threads: then the nested uses in its threads cannot leave a wrong list behind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright_pixels(image: Image.Image, where: str) -> torch.Tensor:
    """uint8 (3, h, w); turns the image itself."""
    _turn_upright(image)
    return torch.from_numpy(np.asarray(_to_rgb(image, where)).transpose(2, 0, 1).copy())


def _turn_upright(image: Image.Image) -> None:
    image.load()  # outside: damaged pixels are an error, a damaged EXIF block is not
    with contextlib.suppress(*_DECODER_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)  # turns the pixels before it rewrites the block, which may fail


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image), where)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", transparent.size, "white")
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _to_8_bit(pixels: np.ndarray, where: str) -> np.ndarray:
    """Grey levels of more than 8 bits: integers are 16-bit, floats are in [0, 1] or, if any is above one, [0, 255]."""
    low, high = float(pixels.min()), float(pixels.max())
    whole = pixels.dtype.kind in "iu"
    top = 65535.0 if whole else 1.0 if high <= 1.0 else 255.0
    if not (low >= 0.0 and high <= top):  # also true for NaN
        known = "0 to 65535" if whole else "0 to 1 or 0 to 255"
        raise UnreadableImage(where, f"grey levels from {low:g} to {high:g}, but only {known} has a known meaning")
    return np.rint(pixels.astype(np.float32) * np.float32(255.0 / top)).astype(np.uint8)
