"""What a user should know about how the files of a dataset are read: levels that stay dark, pages that are not used."""

import os

from matrix_ssl.data.base import Source, evenly
from matrix_ssl.errors import OFFERED, UnreadableImage

_LOOKED_AT = 256  # images of more than 8 bits that are checked for their highest level
_OPENED = 32  # files that are checked for further pages
_FULL_BITS = 16  # of levels


def on_reading(source: Source) -> list[str]:
    """Sentences on images that become nearly black, and on files of which only the first page is used."""
    reading = source.reading
    remarks = [
        "" if reading.white_level or reading.channels else _dark(source),
        _first_pages(source) if reading.pages == "first" else "",
    ]
    return [remark for remark in remarks if remark]


def _dark(source: Source) -> str:
    """A warning if images use less than half of the levels of their 16 bits; empty for any other images.

    The first image decides whether more are checked, at most ``_LOOKED_AT``, spread evenly over the dataset.
    """
    if not source.highest_level(0):
        return ""
    rows = evenly(len(source), _LOOKED_AT)
    highest = max(map(source.highest_level, rows.tolist()))
    bits = max(highest.bit_length(), 8)
    if bits >= _FULL_BITS:
        return ""
    which = "the" if len(rows) == len(source) else f"{len(rows)} of the {len(source)}"
    use = OFFERED.first(f"use --set data.white_level={2**bits - 1}", otherwise="scale them to 16 bits")
    return (
        f"Warning: the highest level of {which} images of 16 bits is {highest}, of {2**16 - 1}, so they are dark. If "
        f"their levels have {bits} bits, {use}."
    )


def _first_pages(source: Source) -> str:
    """A remark if files have several pages, of at most ``_OPENED`` that are spread evenly; empty if none has."""
    rows = evenly(len(source), _OPENED).tolist()
    paged = [row for row in rows if _has_pages(source, row)]
    if not paged:
        return ""
    of = f"of the {len(rows)} files" if len(rows) == len(source) else f"of {len(rows)} files looked at"
    remedy = OFFERED.first(
        " To use the others, write --set data.pages=all (every page is an image) or --set data.pages=channels (the "
        "pages are the channels of one image, with --set data.channels=-1)."
    )
    return (
        f"{len(paged)} {of} {'has' if len(paged) == 1 else 'have'} several pages, such as "
        f"{os.path.basename(source.where(paged[0]))!r}, and only the first page of each is used.{remedy}"  # noqa: PTH119
    )


def _has_pages(source: Source, row: int) -> bool:
    try:
        return source.has_pages(row)
    except UnreadableImage:  # it is reported when it is read
        return False
