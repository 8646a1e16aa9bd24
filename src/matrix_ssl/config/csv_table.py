"""Tables in CSV files, as spreadsheets and this package write them: a line of headings, and one row per image."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from matrix_ssl.config.untrusted import MOST_TEXT, read_file, why
from matrix_ssl.errors import DataError

ENDING = ".csv"
SEMICOLON = ";"  # between values where the comma is the decimal point
_SEPARATORS = f",{SEMICOLON}\t"
# headings of the column of paths, in order of preference
_PATHS = ("path", "where", "file", "filename", "filepath", "image", "imagepath", "imagefile")
_SUFFIX = re.compile(r"(.+\.(?:csv|tsv))(:.*)", re.IGNORECASE | re.DOTALL)
_NO_LETTERS = str.maketrans("", "", " _-")
_CONVERT = "save it as CSV UTF-8, or convert it, from the encoding of Windows by iconv -f WINDOWS-1252 -t UTF-8"


def read_table(path: Path, *, errors: str = "strict") -> tuple[list[str], list[list[str]], str]:
    """The headings, the rows below them and the separator of a CSV file in UTF-8, or in UTF-16 with a byte order mark.

    Args:
        errors: how bytes that are not UTF-8 are decoded, as for ``bytes.decode``.

    Raises:
        DataError: it cannot be read, is in another encoding, has no heading, repeats one, or has a row of another
            length.
    """
    try:
        content = read_file(path, most=MOST_TEXT)
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16") if is_wide else content.decode("utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8, from its byte {error.start} on: {_CONVERT}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as a CSV file: {why(error)}.") from error
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = max(_SEPARATORS, key=first.count)
    # strict: else a quotation mark that is never closed takes the rest of the file as one value
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        lines = [row for row in reader if row]
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; close every quotation mark, and double those inside a value."
        ) from error
    header = [heading.strip() for heading in lines[0]] if lines else []
    if repeated := [heading for heading in header if header.count(heading) > 1]:
        raise DataError(f"{path}: the heading {repeated[0]!r} is repeated; rename one.")
    if uneven := next((i for i, row in enumerate(lines, 1) if len(row) != len(header)), 0):
        raise DataError(
            f"{path}: row {uneven} has {len(lines[uneven - 1])} values and the headings are {len(header)}; fill it."
        )
    return header, lines[1:], separator


def check_text(path: Path, texts: Iterable[str], *, what: str) -> None:
    """Raises DataError for a text of a table that ``read_table`` decoded with "surrogateescape" and is not in UTF-8.

    Args:
        what: what the texts are, for the message.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")
            raise DataError(f"{path}: the {what} '{shown}' is not in UTF-8: {_CONVERT}.") from None


def path_column(header: Sequence[str]) -> int | None:
    """The number of the column of paths, by its heading; None if no heading is one for paths."""
    return find_column(header, _PATHS)


def find_column(header: Sequence[str], names: Sequence[str]) -> int | None:
    """The number of the first column in the order of ``names``, in any letter case; "File Name" is "filename"."""
    plain = list(map(_plain, header))
    return next((plain.index(name) for name in names if name in plain), None)


def column_called(header: Sequence[str], heading: str) -> int | None:
    """The number of the column with a heading, else of the first that differs only as in ``find_column``."""
    return header.index(heading) if heading in header else find_column(header, [_plain(heading)])


def split_suffix(location: str) -> tuple[str, str]:
    """The path of a table and the suffix that names its columns, as in ``scans.csv:path=image_id,label=diagnosis``.

    For the location of anything else, and for a table without it, the suffix is empty.
    """
    found = _SUFFIX.fullmatch(location)
    return (found[1], found[2]) if found else (location, "")


def _plain(heading: str) -> str:
    return heading.lower().translate(_NO_LETTERS)
