"""Opens image files with Pillow: only known formats, silently, bounded in size, with one kind of error for damage.

Only the formats below are tried: Pillow has more, some of which start other programs. HEIC is read by the package
pillow-heif (the extra ``heic``), AVIF by Pillow itself if it was built with it, as it is from version 11.3 on.
"""

import contextlib
import importlib.util
import io
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from PIL import Image, ImageOps, UnidentifiedImageError, features

from matrix_ssl.data.files import tiff
from matrix_ssl.data.files.tiff import Tiff, read_tags
from matrix_ssl.errors import MatrixSSLError, MissingExtra, UnreadableImage, import_extra, memory_is_short

_AVIF = "avif" in features.modules and features.check("avif") is True
HEIF_EXTENSIONS, AVIF_EXTENSIONS, DICOM_EXTENSIONS = (".heic", ".heif", ".hif"), (".avif",), (".dcm", ".dicom")
EXTENSIONS = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm",
    *(AVIF_EXTENSIONS if _AVIF else ()),
    *(HEIF_EXTENSIONS if importlib.util.find_spec("pillow_heif") else ()),
    *(DICOM_EXTENSIONS if importlib.util.find_spec("pydicom") else ()),
])  # fmt: skip
ARRAY_EXTENSION = ".npy"
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", *(("AVIF",) if _AVIF else ()))
_PAGED = ("PNG", "WEBP", "GIF", "AVIF", "HEIF")  # a JPEG may hold thumbnails and depth maps, which are not pages
MOST_PAGES = 10_000
Result = TypeVar("Result")
Again = Callable[[], Image.Image]  # opens an image again, which takes as long as the first time
_LOGGERS = [logging.getLogger(name) for name in ("PIL", "tifffile", "pydicom")]
for _logger in _LOGGERS:
    _logger.addHandler(logging.NullHandler())  # a logger with no handler at all writes to the terminal
_most_pixels: ContextVar[int | None] = ContextVar("most_pixels", default=None)

# kinds of files that may have the name of an image: offset and value of their first bytes
_OTHER_KINDS = (
    *(() if _AVIF else ((4, b"ftypavif", "an AVIF image"),)), (4, b"ftypcrx", "a raw image of a camera"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"), (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"), (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"8BPS", "a Photoshop image"), (0, b"%PDF", "a PDF file"), (0, b"<svg", "an SVG drawing"),
    (0, b"PK\x03\x04", "a zip archive"),
)  # fmt: skip
_DECODED = 2**28  # bytes of memory that the decoder of an image may need
_AVIFS = (b"ftypavif", b"ftypavis")
_AV1_HEADER, _ABOVE_8, _TWELVE = b"av1C\x81", 0x40, 0x20  # its beginning, and bits of the second byte after it
_HEIF = (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")

# what decoders raise, or once raised, on damaged bytes; on a hundred thousand damaged files Pillow raised nothing else
DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
                  RuntimeError, MemoryError, EOFError, struct.error)  # fmt: skip


class TooManyPixels(UnreadableImage):
    """An image has more pixels than the limit."""


def decode(
    content: bytes, where: str, convert: Callable[[Image.Image, Tiff | None, Again], Result], *, page: int = 0
) -> Result:
    """The result of ``convert`` for the opened image, the tags of a TIFF file, and a call that opens the image again.

    Raises UnreadableImage, at ``where``, if the bytes are not an image, are damaged or would decode to an absurd size.
    """
    if not content:
        raise UnreadableImage(where, "the file is empty")
    tags = page_tags(content, page)
    if tags is not None and (reason := tags.why_misread()):
        raise UnreadableImage(where, reason)
    with reported(content, where, tags), contextlib.ExitStack() as opened:

        def open_page() -> Image.Image:
            image = opened.enter_context(_open(content, where))
            if page:
                image.seek(page)
            return image

        image = open_page()
        check_size(image.width, image.height, where)
        return convert(image, tags, open_page)


def page_tags(content: bytes, page: int = 0) -> Tiff | None:
    """The tags of a page of a TIFF file, as ``tiff.read_tags`` returns them, without Pillow's warnings."""
    if not tiff.is_tiff(content):
        return None
    with quiet_pillow():
        return read_tags(content, page)


@contextlib.contextmanager
def reported(content: bytes, where: str, tags: Tiff | None = None) -> Iterator[None]:
    """Turns what a decoder raises in the block into UnreadableImage, at ``where``, and hides its warnings and log."""
    try:
        with quiet_pillow():
            yield
    except MatrixSSLError:
        raise
    except UnidentifiedImageError:
        reason = (tags.why_unknown() if tags is not None else None) or _other_kind(content)
        raise UnreadableImage(where, reason) from None
    except Image.DecompressionBombError:
        raise TooManyPixels(where, _too_large()) from None
    except Exception as error:  # damaged bytes make decoders fail in any way
        if memory_is_short(error, size=_DECODED):
            raise MemoryError from error
        raise UnreadableImage(where, f"damaged image ({str(error) or type(error).__name__})") from None


def check_size(width: int, height: int, where: str, *, channels: int = 1) -> None:
    """Raises UnreadableImage for an image without pixels, or with more numbers than Pillow's limit of pixels."""
    if not (width > 0 and height > 0 and channels > 0):
        raise UnreadableImage(where, "the image has no pixels")
    if width * height * channels > _limit():
        raise TooManyPixels(where, _too_large())


@contextlib.contextmanager
def at_most(pixels: int) -> Iterator[None]:
    """Within the block, its thread decodes no image with more pixels; Pillow's own limit remains the highest."""
    before = _most_pixels.set(pixels)
    try:
        yield
    finally:
        _most_pixels.reset(before)


def page_numbers(content: bytes, *, most: int = MOST_PAGES) -> list[int]:
    """The pages or frames of a file that are images in their own right: not the previews and masks of a TIFF.

    A file that cannot be read has one page; only the first ``most`` pages are looked at.
    """
    if tiff.is_tiff(content):
        with quiet_pillow():
            return tiff.page_numbers(content, most=most)
    with contextlib.suppress(UnreadableImage), reported(content, ""), _open(content, "") as image:
        if image.format not in _PAGED or image.tell():  # an HEIC file whose main image is not the first: that one
            return [0]
        numbers = []
        for page in range(most):
            try:
                image.seek(page)
            except EOFError:
                break
            numbers.append(page)
        return numbers
    return [0]


def is_heif(content: bytes) -> bool:
    """Whether the bytes begin like those of an HEIC image."""
    return content[4:].startswith(_HEIF)


def avif_bits(content: bytes) -> int:
    """Bits per channel of an AVIF image by its headers, the most of any of its parts; 0 for bytes of other formats.

    Reference: AV1 Codec ISO Media File Format Binding 1.2.0, section 2.3, the box av1C.
    """
    if not content[4:].startswith(_AVIFS):
        return 0
    bits, start = 8, 0
    while start + 8 <= len(content):
        size, kind = int.from_bytes(content[start : start + 4], "big"), content[start + 4 : start + 8]
        if size == 1:
            size = int.from_bytes(content[start + 8 : start + 16], "big")
        end = start + size if size >= 8 else len(content)
        for part in content[start:end].split(_AV1_HEADER)[1:] if kind != b"mdat" else ():
            depth = part[1] if len(part) > 1 else 0
            bits = max(bits, (12 if depth & _TWELVE else 10) if depth & _ABOVE_8 else 8)
        start = end
    return bits


def turn_upright(image: Image.Image) -> None:
    """Loads an image and turns it as its EXIF data say."""
    image.load()  # outside: damaged pixels are an error, a damaged EXIF block is not
    with contextlib.suppress(*DECODER_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)  # turns the pixels before it rewrites the block, which may fail


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hides Pillow's warnings and log about large images and odd metadata, about which a user can do nothing.

    Python keeps one list of warning filters for all threads, so decode in processes, or enter this once around a pool
    of threads: then the nested uses in its threads cannot leave a wrong list behind.
    """
    before = [logger.propagate for logger in _LOGGERS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in _LOGGERS:  # not by their levels: setting one clears the caches of all loggers in the program
            logger.propagate = False
        try:
            yield
        finally:
            for logger, propagate in zip(_LOGGERS, before, strict=True):
                logger.propagate = propagate


def _open(content: bytes, where: str) -> Image.Image:
    if is_heif(content):
        try:
            pillow_heif = import_extra("pillow_heif", extra="heic")
        except MissingExtra as error:
            raise UnreadableImage(where, f"an HEIC image: {error}") from None
        image: Image.Image = pillow_heif.HeifImageFile(io.BytesIO(content))
        return image
    return Image.open(io.BytesIO(content), formats=_FORMATS)


def _other_kind(content: bytes) -> str:
    """The reason to give for bytes of no readable format, which names the format if its first bytes are known."""
    kind = next((kind for at, start, kind in _OTHER_KINDS if content[at:].startswith(start)), "")
    return f"{kind}; save it as JPEG or PNG" if kind else "not an image, or its first bytes are damaged"


def _limit() -> int:
    highest = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    chosen = _most_pixels.get()
    return highest if chosen is None else min(chosen, highest)


def _too_large() -> str:
    return f"the image is larger than {_limit():,} pixels (decompression-bomb limit)"
