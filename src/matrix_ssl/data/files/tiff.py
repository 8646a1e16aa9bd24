"""Tells from the tags of TIFF files which of them are read exactly, before a decoder sees them.

Pillow knows some combinations of tags, reports others in a log of its own, and reads a few into pixels that the file
does not have: 16-bit colours in separate planes, and inverted grey levels of more than 8 bits. Such a file is rejected
with the reason, or corrected by ``deep``.

Reference: TIFF, revision 6.0, Aldus, 1992, sections 3 to 8 and 18 to 19.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import TiffImagePlugin

from matrix_ssl.config.reading import MOST_CHANNELS
from matrix_ssl.errors import OFFERED

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE_TYPE, _REDUCED, _MASK = 254, 1, 4  # the tag, and its bits
_PHOTOMETRIC, _SAMPLES, _BITS, _PLANES, _FORMAT, _EXTRA, _ORDER = 262, 277, 258, 284, 339, 338, 266
_WHITE_IS_ZERO, _CIELAB = 0, 8
_COLOURS = {2: 3, 5: 4, 6: 3}  # samples of a pixel, by the photometric interpretation; grey and palettes have one
_COLOUR_NAMES = {0: "inverted grey", 1: "grey", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr"}
_KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers", 4: "numbers of unknown type"}
_MOST = 65536  # samples of a pixel that are considered
_KNOWN = TiffImagePlugin.OPEN_INFO  # combinations of tags that Pillow reads


@dataclass(frozen=True)
class Tiff:
    """What the tags of a file say about its pixels."""

    bits: tuple[int, ...]  # of every sample of a pixel
    kind: int  # 1 unsigned, 2 signed, 3 floating point
    photometric: int
    extra: tuple[int, ...]
    planes: bool  # whether every channel is stored separately
    order: int  # of the bits in a byte
    byte_order: bytes

    @property
    def inverted(self) -> bool:
        """Whether the highest level is black."""
        return self.photometric == _WHITE_IS_ZERO

    @property
    def is_whole(self) -> bool:
        """Whether the decoder returns all bits of all channels."""
        interleaved = len(self.bits) == 1 or max(self.bits) <= 8 or not self.planes
        whole = self.kind == 1 and max(self.bits) <= 16 and len(self.bits) in (1, 3) and interleaved and not self.extra
        single = (self.kind, self.bits) in ((2, (16,)), (3, (32,)))
        return (whole or single) and self.photometric in _COLOUR_NAMES and self.why_unknown() is None

    def why_misread(self) -> str | None:
        """The reason why the pixels from the decoder would not be those of the file; None if they are."""
        bits, samples = self._bits(), len(self.bits)
        if self.photometric == _CIELAB:
            return "a TIFF with CIELAB colours: save it as RGB"
        if samples > _COLOURS.get(self.photometric, 1) + 1:
            options = f"--set data.channels={samples}", f"--channels {samples}"
            keep = OFFERED.first(*(f"keep all bands by {option}, or " for option in options))
            keep = keep if samples <= MOST_CHANNELS else ""
            return (
                f"a TIFF of {samples} bands, and images have 1 or 3 colours: {keep}choose three bands and save them as "
                "RGB with 8 or 16 bits"
            )
        if self.kind not in (1, 3) and not (self.kind == 2 and self.bits in ((16,), (32,))):
            kind = _KINDS.get(self.kind, "complex numbers, or several types of them")
            return f"a TIFF of {bits}-bit {kind}: save it with 8 or 16 bits unsigned"
        if self.planes and max(self.bits) > 8 and samples > 1:
            return f"a TIFF with {bits}-bit channels in separate planes: save it with the channels interleaved"
        return None

    def why_unknown(self) -> str | None:
        """The reason why the decoder does not know the file; None if the tags show no reason."""
        if (self.byte_order, self.photometric, (self.kind,), self.order, self.bits, self.extra) in _KNOWN:
            return None
        kind = _KINDS.get(self.kind, "numbers of unknown type")
        colours = _COLOUR_NAMES.get(self.photometric, "unknown colours")
        return (
            f"a TIFF of {len(self.bits)} x {self._bits()}-bit {kind}, {colours}, "
            "which cannot be read: save it as grey or RGB with 8 or 16 bits"
        )

    def _bits(self) -> str:
        return "/".join(map(str, dict.fromkeys(self.bits)))


def is_tiff(content: bytes) -> bool:
    """Whether the bytes begin like those of a TIFF file."""
    return content.startswith(_SIGNATURES)


def read_tags(content: bytes, page: int = 0) -> Tiff | None:
    """The tags of an image in a TIFF file; None for any other file, and for tags that cannot be read."""
    if not is_tiff(content):
        return None
    with contextlib.suppress(Exception):  # damaged tags can fail in any way, and the decoder reports them
        return _describe(next(itertools.islice(_directories(content), page, None)), content[:2])
    return None


def page_numbers(content: bytes, *, most: int) -> list[int]:
    """Those of the first ``most`` pages that are images in their own right, not previews or masks; always page 0."""
    numbers = [0]
    with contextlib.suppress(Exception):  # damaged tags end the list
        for page, tags in enumerate(itertools.islice(_directories(content), most)):
            if page and not int(tags.get(_SUBFILE_TYPE, 0)) & (_REDUCED | _MASK):
                numbers.append(page)
    return numbers


def _directories(content: bytes) -> Iterator[Mapping[int, Any]]:
    """The tags of every page; a page that follows itself ends the file."""
    is_big = content[2] == 43 or content[3] == 43
    directory = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if is_big else 8])
    file, seen = io.BytesIO(content), set[int]()
    while directory.next and directory.next not in seen:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        yield directory


def _describe(tags: Mapping[int, Any], byte_order: bytes) -> Tiff:
    samples = int(tags.get(_SAMPLES, 1))
    bits = _tuple(tags.get(_BITS, (1,)))
    if len(bits) < samples:
        bits = bits[:1] * min(samples, _MOST)
    kinds = set(_tuple(tags.get(_FORMAT, (1,))))
    return Tiff(
        bits=bits[: min(samples, _MOST)],
        kind=kinds.pop() if len(kinds) == 1 else 0,
        photometric=int(tags.get(_PHOTOMETRIC, 0)),
        extra=_tuple(tags.get(_EXTRA, ())),
        planes=int(tags.get(_PLANES, 1)) == 2,
        order=int(tags.get(_ORDER, 1)),
        byte_order=byte_order,
    )


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, tuple) else (int(value),)
