"""Columns of a CSV file for the images on the page, which are identified by their paths."""

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from matrix_ssl.config.csv_table import SEMICOLON, path_column, read_table
from matrix_ssl.errors import DataError
from matrix_ssl.report.explore.contents import Categories, Column, Numbers

_FEW = 12  # distinct integers up to which a column holds categories
_NAMED = re.compile(r"[+-]?0\d|.*[^\d.eE+-]", re.ASCII)  # 007, 12_3: names, although Python reads them as numbers
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)?", re.ASCII)
_MISSING = ("", "nan")  # no number, in a column of numbers
_EXACT = 2.0**53  # up to which floating point represents every integer


def read_columns(path: Path, places: Sequence[str]) -> tuple[list[Column], str]:
    """The columns of a CSV file for the images at ``places``, and a sentence on how many images it describes.

    The first line names the columns; the column of paths is named path, where, file, filename or image, or is the
    first one. A path may be complete, relative to the file's folder, or the end of exactly one of the places, with or
    without the extension. Between semicolons, numbers may have a decimal comma.

    Raises:
        DataError: it cannot be read, has no column other than the paths, repeats a heading or an image, or describes
            no image.
    """
    header, rows, separator = read_table(path)
    if len(header) < 2 or not rows:
        raise DataError(f"{path}: expected a line of headings, a column of paths, one column more, and rows.")
    key = path_column(header) or 0
    images = _match(path, [row[key] for row in rows], places)
    columns = []
    for number, heading in enumerate(header):
        if number != key:
            texts = [""] * len(places)
            for row, image in zip(rows, images, strict=True):
                if image is not None:
                    texts[image] = row[number].strip()
            columns.append(_column(heading, _with_points(texts) if separator == SEMICOLON else texts))
    described = sum(image is not None for image in images)
    return columns, f"{path.name} has a row for {described:,} of the {len(places):,} images."


def _match(path: Path, names: Sequence[str], places: Sequence[str]) -> list[int | None]:
    """The image of every row."""
    cwd = Path.cwd()
    whole: dict[str, int | None] = {str(PurePath(cwd, place)): image for image, place in enumerate(places)}
    whole |= {place: image for image, place in enumerate(places)}
    ends: dict[tuple[str, ...], int | None] = {}
    for number, place in enumerate(places):
        parts = PurePath(place).parts
        for start in range(1, len(parts)):
            end = parts[start:]
            ends[end] = None if end in ends else number
    stems: dict[tuple[str, ...], int | None] = {}
    for end, image in ends.items():
        stem = (*end[:-1], PurePath(end[-1]).stem)
        stems[stem] = None if stem in stems else image
    images: list[int | None] = []
    rows: dict[int, int] = {}
    for number, name in enumerate(names, 2):
        parts = PurePath(name).parts
        image = whole.get(name, whole.get(str(path.parent / name), ends.get(parts, stems.get(parts))))
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


def _with_points(texts: list[str]) -> list[str]:
    """Numbers with decimal points in place of commas; any other texts as they are."""
    known = [text for text in texts if text.lower() not in _MISSING]
    are_numbers = all(map(_DECIMAL_COMMA.fullmatch, known))
    return [text.replace(",", ".") for text in texts] if are_numbers else texts


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
