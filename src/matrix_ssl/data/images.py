"""Turns the bytes of an image file into an RGB tensor, or says plainly why that is impossible.

Decoding is exact: no reduced-size JPEG decoding, no clipping of 16-bit images, EXIF orientation applied, transparency
shown on white. Only the formats below are tried: Pillow knows more, some of which start other programs.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from matrix_ssl.data.open_files import open_files_error, reaches_limit
from matrix_ssl.errors import UnreadableImage

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm"]
)
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

# What undoes each EXIF orientation (EXIF 2.32, tag 0x0112).
_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's decoders raise, or once raised, on damaged bytes; a hundred thousand damaged files raised nothing else.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    EOFError,
    struct.error,
)


def read_image(path: Path) -> torch.Tensor:
    """Reads an image file.

    Returns:
        A uint8 tensor (3, h, w).

    Raises:
        UnreadableImage: the file cannot be opened or decoded.
        OpenFilesError: no further file can be opened.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage(str(path), "the file does not exist") from None
    except PermissionError:
        raise UnreadableImage(str(path), "no permission to read the file") from None
    except OSError as error:
        if reaches_limit(error):
            raise open_files_error() from error
        raise UnreadableImage(str(path), f"cannot be read ({error.strerror})") from None
    return decode_image(content, str(path))


def decode_image(content: bytes, where: str) -> torch.Tensor:
    """Decodes the bytes of an image file.

    Args:
        content: the file; of an animation, the first frame is taken.
        where: what to call the image in an error.

    Returns:
        A uint8 tensor (3, h, w).

    Raises:
        UnreadableImage: the bytes are no image, are damaged, or would decode to an absurd size.
    """
    if not content:
        raise UnreadableImage(where, "the file is empty")
    try:
        with quiet_pillow(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if not (image.width and image.height):
                raise UnreadableImage(where, "the image has no pixels")
            pixels = np.asarray(_to_rgb(_upright(image), where))
    except UnidentifiedImageError:
        raise UnreadableImage(where, "not an image, or its first bytes are damaged") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImage(where, f"the image claims more than {limit:,} pixels") from None
    except _DECODER_ERRORS as error:
        raise UnreadableImage(where, f"damaged image ({str(error) or type(error).__name__})") from None
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hides Pillow's warnings about large images and odd metadata, which a user can do nothing about.

    Python keeps one list of warning filters for all threads, so decode in processes, or enter this once around a pool
    of threads: then the nested uses in its threads cannot leave a wrong list behind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # in some formats the EXIF block follows the pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DECODER_ERRORS:
        return image  # the block is damaged and names no orientation, but the pixels are whole
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


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
