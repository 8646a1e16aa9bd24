"""Columns of a CSV file for the images on the page, which are identified by their paths."""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from matrix_ssl.config.untrusted import MOST_TEXT, read_file, why
from matrix_ssl.errors import DataError
from matrix_ssl.report.explore.contents import Categories, Column, Numbers

_PATHS = ("path", "where", "file", "filename", "image")  # headings of the column of paths
_SEPARATORS = ",;\t"
_FEW = 12  # distinct integers up to which a column holds categories
_NAMED = re.compile(r"[+-]?0\d|.*[^\d.eE+-]", re.ASCII)  # 007, 12_3: names, although Python reads them as numbers
_MISSING = ("", "nan")  # no number, in a column of numbers
_EXACT = 2.0**53  # up to which floating point represents every integer


def read_columns(path: Path, places: Sequence[str]) -> tuple[list[Column], str]:
    """The columns of a CSV file for the images at ``places``, and a sentence on how many images it describes.

    The first line names the columns; the column of paths is named path, where, file, filename or image, or is the
    first one. A path may be complete, relative to the file's folder, or the end of exactly one of the places.

    Raises:
        DataError: it cannot be read, has no column other than the paths, repeats a heading or an image, or describes
            no image.
    """
    header, rows = _read(path)
    key = next((i for name in _PATHS for i, heading in enumerate(header) if heading.lower() == name), 0)
    images = _match(path, [row[key] for row in rows], places)
    columns = []
    for number, heading in enumerate(header):
        if number != key:
            texts = [""] * len(places)
            for row, image in zip(rows, images, strict=True):
                if image is not None:
                    texts[image] = row[number].strip()
            columns.append(_column(heading, texts))
    described = sum(image is not None for image in images)
    return columns, f"{path.name} has a row for {described:,} of the {len(places):,} images."


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        text = read_file(path, most=MOST_TEXT).decode("utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(_SEPARATORS, key=first.count)
        lines = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV file in UTF-8: {why(error)}.") from error
    header = [heading.strip() for heading in lines[0]] if lines else []
    if len(header) < 2 or len(lines) < 2:
        raise DataError(f"{path}: expected a line of headings, a column of paths, one column more, and rows.")
    if repeated := [heading for heading in header if header.count(heading) > 1]:
        raise DataError(f"{path}: the heading {repeated[0]!r} is repeated; rename one.")
    if uneven := next((i for i, row in enumerate(lines, 1) if len(row) != len(header)), 0):
        raise DataError(
            f"{path}: row {uneven} has {len(lines[uneven - 1])} values and the headings are {len(header)}; fill it."
        )
    return header, lines[1:]


def _match(path: Path, names: Sequence[str], places: Sequence[str]) -> list[int | None]:
    """The image of every row."""
    whole: dict[str, int | None] = {place: image for image, place in enumerate(places)}
    ends: dict[tuple[str, ...], int | None] = {}
    for number, place in enumerate(places):
        parts = PurePath(place).parts
        for start in range(1, len(parts)):
            end = parts[start:]
            ends[end] = None if end in ends else number
    images: list[int | None] = []
    rows: dict[int, int] = {}
    for number, name in enumerate(names, 2):
        image = whole.get(name, whole.get(str(path.parent / name), ends.get(PurePath(name).parts)))
        if image is not None and image in rows:
            raise DataError(f"{path}: rows {rows[image]} and {number} are about the same image, {name!r}; remove one.")
        if image is not None:
            rows[image] = number
        images.append(image)
    if not rows:
        raise DataError(
            f"{path}: none of its {len(names):,} paths is one of the images. The first is {names[0]!r}; an image is "
            f"{places[0]!r}."
        )
    return images


def _column(name: str, texts: Sequence[str]) -> Column:
    numbers = [_number(text) for text in texts if text.lower() not in _MISSING]
    known = {value for value in numbers if value is not None}
    are_numbers = bool(known) and None not in numbers
    if are_numbers and (len(known) > _FEW or any(value != round(value) for value in known)):
        return Numbers(name, np.array([_number_or_nan(text) for text in texts]))
    none = _MISSING if are_numbers else ("",)
    values = sorted({text for text in texts if text.lower() not in none})
    if are_numbers:
        values.sort(key=float)
    position = {value: code for code, value in enumerate(values)}
    return Categories(name, np.array([position.get(text, -1) for text in texts], dtype=np.int64), values)


def _number_or_nan(text: str) -> float:
    value = _number(text)
    return math.nan if value is None else value


def _number(text: str) -> float | None:
    """A text as a number; None for names, and for integers that floating point would change."""
    try:
        value = math.nan if _NAMED.match(text) else float(text)
    except ValueError:
        return None
    is_changed = abs(value) > _EXACT and text.lstrip("+-").isdecimal()
    return value if math.isfinite(value) and not is_changed else None
