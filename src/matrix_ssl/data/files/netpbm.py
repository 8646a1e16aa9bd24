"""Netpbm's PGM and PPM files whose levels Pillow would change: it keeps 8 bits of colours and scales grey levels.

A file has a magic number, width, height and the highest level, which may be any from 1 to 65535, as text with comments,
then the levels: as text (P2, P3), or in one byte each or, above 255, two with the upper one first (P5, P6).
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.data.files.opening import check_size, reported
from matrix_ssl.errors import UnreadableImage

_NUMBER = rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})"
_HEADER = re.compile(rb"P([2356])" + 3 * _NUMBER + rb"\s")
_COMMENT = re.compile(rb"#[^\r\n]*")
_EXACT = {False: (255, 65535), True: (255,)}  # highest levels that Pillow keeps, by whether there are colours


def is_changed(content: bytes) -> bool:
    """Whether the bytes are such a file, with levels other than those that Pillow keeps."""
    header = _HEADER.match(content)
    return header is not None and int(header[4]) not in _EXACT[header[1] in b"36"]


def read_netpbm(content: bytes, where: str) -> tuple[NDArray[Any], float]:
    """The levels (h, w, 1 or 3) of a file, and that of white; UnreadableImage, at ``where``, if it is damaged."""
    header = _HEADER.match(content)
    assert header is not None  # ``is_changed``
    width, height, highest = (int(header[place]) for place in (2, 3, 4))
    channels = 3 if header[1] in b"36" else 1
    check_size(width, height, where)
    if not 1 <= highest <= 65535:
        raise UnreadableImage(where, f"damaged image (its highest level is {highest}, and those are 1 to 65535)")
    with reported(content, where):
        count = width * height * channels
        if header[1] in b"23":
            words = _COMMENT.sub(b"", content[header.end() :]).split(maxsplit=count)[:count]
            levels = np.array(words, dtype="S9").astype(np.int64)
        else:
            levels = np.frombuffer(content, "u1" if highest < 256 else ">u2", count, header.end())
        if len(levels) < count or levels.min() < 0 or levels.max() > highest:
            raise ValueError("it has too few levels, or one above the highest")
        return levels.astype(np.uint8 if highest < 256 else np.uint16).reshape(height, width, channels), float(highest)
