"""Files as rows of named values: JSON lines, a JSON list, CSV, TSV and Parquet; text may be compressed with gzip."""

import codecs
import csv
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matrix_ssl.config.untrusted import MOST_TEXT, NestingError, decompress, parse_json, read_file, text_lines, why
from matrix_ssl.errors import DataError, import_extra

Table = list[dict[str, Any]]

_SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}  # the first that occurs in the header line
_JSON = (".jsonl", ".json", ".ndjson")
_WIDE = 4  # bytes, one of which is zero if a character takes two or four
_CONVERT = "save the file as UTF-8, for example by iconv -f {} -t UTF-8"
_LARGEST_FIELD = 1 << 27  # characters of a cell; the library's default is 131072


def read_table(path: Path) -> tuple[Table, bytes]:
    """The rows of a file, read according to its extension, and its content.

    Raises:
        DataError: the file cannot be read, has another extension, or is not what its extension says.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")
    try:
        content = read_file(path, most=MOST_TEXT)
        plain = (decompress(content) if suffixes[-1:] == [".gz"] else content).removeprefix(codecs.BOM_UTF8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {why(error)}.") from error
    except MemoryError:
        raise DataError(f"{path} does not fit into memory: split it, or use a larger machine.") from None
    if kind == ".parquet":
        return _parquet(path, plain), content
    if kind in _SEPARATORS:
        return _separated(path, plain, _SEPARATORS[kind]), content
    if kind in _JSON or plain.lstrip()[:1] in (b"{", b"["):
        return (_whole if kind == ".json" else _lines)(path, plain), content
    extension = f"the extension {kind}" if kind else "no extension"
    raise DataError(
        f"{path} has {extension}: expected JSON lines (.jsonl), a JSON list (.json), .csv, .tsv "
        f"or .parquet; text may be compressed (.gz)."
    )


def is_separated(path: Path) -> bool:
    """Whether a file is, by its extension, a table whose first line holds the names of its columns."""
    return any(suffix.lower() in _SEPARATORS for suffix in path.suffixes)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without line ends."""
    try:
        content = read_file(path, most=MOST_TEXT)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {why(error)}.") from error
    return text_lines(_text(content, str(path)))


def _lines(path: Path, content: bytes) -> Table:
    """One object per line; a file that is a list nevertheless is read as one."""
    first = content.lstrip()[:1]
    try:
        return _objects((where, _json(line, where)) for where, line in _numbered(path, content))
    except DataError:
        rows = _list(content) if first == b"[" else None
        if rows is None:
            raise
        return rows


def _whole(path: Path, content: bytes) -> Table:
    """A list of objects; a file that has one object per line nevertheless is read as such."""
    if not content.strip():
        return []
    if content.lstrip()[:1] == b"{":
        try:
            return _objects((where, _json(line, where)) for where, line in _numbered(path, content))
        except DataError:
            _check_several(path, content)
            raise
    rows = _json(content, str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path} is not a list of objects: rename a file with one object per line to .jsonl.")
    return _objects((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _check_several(path: Path, content: bytes) -> None:
    """Raises DataError for a file that is one object over several lines."""
    try:
        whole = parse_json(content)
    except ValueError:
        return
    lists = ", ".join(name for name, value in whole.items() if isinstance(value, list))
    raise DataError(
        f"{path} is one JSON object, not a list of rows: write the rows"
        f"{f', perhaps those in {lists},' if lists else ''} as a list, or one per line (.jsonl)."
    )


def _list(content: bytes) -> Table | None:
    """The objects of a JSON list, or None if it is not one."""
    try:
        rows = parse_json(content)
    except ValueError:
        return None
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def _numbered(path: Path, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The lines that are not blank, each with its place."""
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def _objects(rows: Iterator[tuple[str, Any]]) -> Table:
    result = []
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with columns, not {type(row).__name__}.")
        result.append(row)
    return result


def _json(content: bytes, where: str) -> Any:
    try:
        return parse_json(_text(content, where))
    except NestingError as error:
        raise DataError(f"{where}: {error}.") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}.") from error


def _text(content: bytes, where: str) -> str:
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:_WIDE]
    if wide:
        raise DataError(f"{where}: not UTF-8 but UTF-16 or UTF-32; {_CONVERT.format('UTF-16')}.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = _CONVERT.format("WINDOWS-1252")
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start}, perhaps Latin-1 or Windows-1252; {remedy}."
        ) from error


def _separated(path: Path, content: bytes, separators: str) -> Table:
    """Rows below a header line. A shorter row lacks values; a longer one is an error."""
    csv.field_size_limit(_LARGEST_FIELD)
    text = _text(content, str(path))
    names = text.lstrip().partition("\n")[0]
    separator = next((one for one in separators if one in names), separators[0])  # European programs write ;
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = []
    try:
        _check_names(path, reader.fieldnames or ())
        for row in reader:
            if None in row:
                raise DataError(
                    f"{path}, line {reader.line_num}: more values than the {len(row) - 1} names in the first line: put "
                    f"texts with a {separator!r} in quotes."
                )
            rows.append(dict(row))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; quotes in a text are doubled.") from error
    return rows


def _parquet(path: Path, content: bytes) -> Table:
    parquet = import_extra("pyarrow.parquet", extra="llm")
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        _check_names(path, file.schema_arrow.names)
        return list(file.read().to_pylist())
    except (OSError, ValueError) as error:  # the errors of Arrow are subclasses
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"{path} is not a Parquet file: {reason}. Copy it again, or save its rows as .jsonl."
        ) from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raises DataError for two columns with the same name, as a row could keep only the last of them."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{path} has the column {repeated!r} twice: rename one.")
