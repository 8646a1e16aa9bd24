"""Turns an image file into a tensor, as ``decoding`` does, or reports why that is impossible."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from matrix_ssl.config.reading import COLOURS, Reading
from matrix_ssl.config.untrusted import GIB, read_file
from matrix_ssl.data.files.decoding import decode_pixels, to_pixels
from matrix_ssl.data.files.deep import read_levels
from matrix_ssl.data.files.open_files import why_unreadable
from matrix_ssl.data.files.opening import Again, decode, quiet_pillow, turn_upright
from matrix_ssl.data.files.tiff import Tiff
from matrix_ssl.data.files.values import is_other_kind
from matrix_ssl.errors import DataError, UnreadableImage

_MOST_BYTES = 2 * GIB  # of an image file
_DEEP_MODES = ("I", "F")  # the first letters of Pillow's modes for more than 8 bits
_IN_A_ROW = 100  # consecutive images tried in place of one that cannot be read
Unreadable = tuple[str, str]  # where, why
Pixels = TypeVar("Pixels")


def read_image(path: Path, *, reading: Reading = COLOURS) -> torch.Tensor:
    """The image of a file, as from ``decode_image``; UnreadableImage if it cannot be opened or decoded."""
    return decode_image(read_content(path), str(path), reading=reading)


def decode_image(content: bytes, where: str, *, reading: Reading = COLOURS, page: int = 0) -> torch.Tensor:
    """The image of a file's bytes: uint8 (3, h, w), or float32 (channels, h, w) in [0, 1] by ``reading``.

    UnreadableImage, at ``where``, as in ``decode_pixels``.
    """
    return torch.from_numpy(decode_pixels(content, where, reading=reading, page=page))


def highest_level(path_or_content: Path | bytes) -> int:
    """The highest level of an image of more than 8 bits; 0 for any other image, and for one that cannot be read."""

    def look(image: Image.Image, tags: Tiff | None, again: Again) -> int:
        levels = read_levels(image, turn_upright, again=again, tags=tags)
        return 0 if levels is None else levels.highest()

    try:
        content = path_or_content if isinstance(path_or_content, bytes) else read_content(path_or_content)
        return 0 if is_other_kind(content) else decode(content, "", look)
    except UnreadableImage:
        return 0


def to_tensor(image: Image.Image, where: str, *, white_level: int = 0) -> torch.Tensor:
    """A Pillow image, which is left unchanged, as a tensor like those of ``decode_image``."""
    with quiet_pillow():
        copied = image.copy()
        levels = read_levels(copied, turn_upright, again=None, tags=None)
        if levels is None:
            turn_upright(copied)
        whole = copied if levels is None else levels.to_8_bit(where, white_level=white_level)
        return torch.from_numpy(to_pixels(whole))


def is_deep(mode: str) -> bool:
    """Whether Pillow's mode is one for more than 8 bits."""
    return mode.startswith(_DEEP_MODES)


def level_of(image: Image.Image) -> int:
    """The highest level of a Pillow image of more than 8 bits, which is left unchanged; 0 for any other image."""
    if not is_deep(image.mode):
        return 0
    with quiet_pillow():
        levels = read_levels(image.copy(), turn_upright, again=None, tags=None)
        return 0 if levels is None else levels.highest()


def read_content(path: Path) -> bytes:
    """The bytes of an image file; UnreadableImage if it cannot be opened."""
    try:
        return read_file(path, most=_MOST_BYTES)
    except OSError as error:
        raise UnreadableImage(str(path), why_unreadable(error)) from None


def read_or_replace(read: Callable[[int], Pixels], index: int, count: int) -> tuple[Pixels, int, list[Unreadable]]:
    """The image at ``index`` of ``count``, or the next one that can be read, wrapping around at the end.

    After a hundred unreadable images in a row, as in a folder of damaged files, the offset doubles each time. Also
    returns its index and the images that cannot be read; DataError if none of those tried can be read.
    """
    unreadable: list[Unreadable] = []
    for offset in _offsets(count):
        substitute = (index + offset) % count
        try:
            return read(substitute), substitute, unreadable
        except UnreadableImage as error:
            unreadable.append((error.where, error.reason))
    where, why = unreadable[-1]
    raise DataError(
        f"{len(unreadable)} images tried in a row cannot be read, the last one {where}: {why}; fix or remove them."
    )


def _offsets(count: int) -> Iterator[int]:
    yield from range(min(count, _IN_A_ROW))
    offset = _IN_A_ROW
    while offset < count:
        yield offset
        offset *= 2
