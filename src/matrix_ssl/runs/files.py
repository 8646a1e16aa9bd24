"""Files that are written completely or not at all; JSON and JSON lines."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from matrix_ssl.config import current_names, system
from matrix_ssl.config.untrusted import each_line, expanded, is_file, open_to_append, parse_json, read_file, why
from matrix_ssl.errors import RunFolderError

TEMPORARY = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_SYSTEM = ("/dev", "/proc")


def fingerprint(*values: Any) -> str:
    """A short digest of values that JSON can represent: results with the same digest answer the same question."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file completely or not at all: temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        RunFolderError: the disk is full or read-only, or permission is missing; the old file, if any, is kept.
    """
    temporary = ""
    try:
        _refuse_to_replace(path)
        for left in unfinished(path.parent, path.name):
            if system.is_abandoned(left):
                left.unlink(missing_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            system.claim(descriptor)
            write(file)
            file.flush()
            system.give_usual_permissions(descriptor)
            os.fsync(descriptor)
        Path(temporary).replace(path)
        system.sync_folder(path.parent)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def unfinished(folder: Path, name: str | None = None) -> list[Path]:
    """The temporary files, sorted, that a killed ``write_atomically`` left for the file ``name``; None: for any file.

    A user's hidden files have names of a different form and are not among them.
    """
    written = r".+" if name is None else re.escape(name)
    ours = re.compile(rf"\.{written}\.[a-z0-9_]+{re.escape(TEMPORARY)}", re.DOTALL)
    hidden = sorted(folder.glob(f".*{TEMPORARY}"))
    return [path for path in hidden if ours.fullmatch(path.name) and path.is_file() and not path.is_symlink()]


def check_writable(path: Path) -> None:
    """Raises RunFolderError if a file cannot be written, before the work for it is done."""
    try:
        _refuse_to_replace(path)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """The error for a file that could not be written."""
    remedy = "free space there or choose another place" if error.errno in _FULL else "choose another place"
    return RunFolderError(f"Cannot write {path}: {error.strerror or error}; {remedy}.")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder for files that are read back within the block; it is removed afterwards.

    Raises:
        RunFolderError: no temporary folder can be written to, or it is full.
    """
    place, folder = "", None
    try:
        place = tempfile.gettempdir()
        folder = tempfile.TemporaryDirectory(prefix="matrix-ssl-", ignore_cleanup_errors=True)
        with folder as name:
            yield Path(name)
    except OSError as error:
        inside = folder is not None and str(error.filename or "").startswith(folder.name)
        if folder is not None and not inside and error.errno not in _FULL:
            raise  # from something else that is done in the block
        reason = f"Temporary files cannot be written{f' in {place}' if place else ''}: {error.strerror or error}"
        raise RunFolderError(
            f"{reason}. Let the variable TMPDIR name a folder with free space in which files can be written."
        ) from error


def features_cache() -> Path:
    """Where ``search``, ``serve`` and others keep features: in MATRIX_SSL_CACHE, else the user's cache.

    It is never emptied.
    """
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "matrix-ssl"
    return expanded(os.environ.get("MATRIX_SSL_CACHE") or user) / "features"


@contextmanager
def in_features_cache() -> Iterator[None]:
    """A block that writes into the cache of features: a RunFolderError says how to name another folder."""
    try:
        yield
    except RunFolderError as error:
        raise RunFolderError(
            f"{error} Features are kept there: the variable MATRIX_SSL_CACHE names another folder."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8 atomically; surrogates in file names that are not Unicode become escapes."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; the escapes of ``write_text`` are those of JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run folder or raises RunFolderError; counts from earlier versions get current names."""
    try:
        return parse_json(read_file(path), change=current_names)
    except FileNotFoundError:
        raise RunFolderError(f"{path.parent} is not a run folder: it has no {path.name}.") from None
    except NotADirectoryError:
        raise RunFolderError(f"{path.parent} is a file, not a run folder.") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {why(error)}. Put the right file back, or remove it.") from error


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a JSON file of a run folder that must be an object with these keys; RunFolderError for anything else."""
    values = read_json(path)
    if not isinstance(values, dict) or not values.keys() >= set(keys):
        what = f"an object with {', '.join(keys)}" if keys else "an object"
        raise RunFolderError(f"{path} is damaged: it is not {what}. Remove it and run the command that wrote it again.")
    return values


def iterate_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON-lines file, as in ``read_lines``, one at a time."""
    try:
        for number, line in enumerate(each_line(path) if path.exists() else (), 1):
            if not line.endswith(b"\n"):
                return
            value = parse_json(line)
            if not isinstance(value, dict):
                raise ValueError(f"line {number} is not an object")
            yield value
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged: {why(error)}. Put the right file back, or remove it.") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, none if it does not exist; a last line truncated by a kill is skipped."""
    return list(iterate_lines(path))


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one JSON line in a single write, so that lines from several processes do not mix."""
    content = _json_line(line).encode()
    try:
        with open_to_append(path) as file:
            if file.write(content) < len(content):  # how a disk that has just become full reacts
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise cannot_write(path, error) from error


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines atomically, one at a time; numbers that are not finite become null."""
    write_atomically(path, lambda file: file.writelines(_json_line(line).encode() for line in lines))


def table_paths(places: Iterable[str], table: Path) -> Iterator[str]:
    """The places of images as a table has to name them to be data itself: relative to its own folder, or absolute.

    Paths of files that are relative to the current folder become absolute if the table is in another folder.
    """
    is_elsewhere = table.parent.resolve() != Path.cwd().resolve()
    for place in places:
        yield str(Path(place).absolute()) if is_elsewhere and is_file(place) else place


def csv_lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Rows as lines of a CSV file, which end in line feeds.

    A value with a carriage return is quoted like one with a line feed: if lines end in line feeds only, Python's writer
    omits the quotes, and its reader takes the value for two lines.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    for row in rows:
        writer.writerow(row)
        yield buffer.getvalue().removesuffix("\r\n") + "\n"
        buffer.seek(0)
        buffer.truncate()


def _json_line(line: dict[str, Any]) -> str:
    return json.dumps(_finite(line), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with None in place of numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_to_replace(path: Path) -> None:
    """Raises FileExistsError for a device such as /dev/null, which a rename would replace by a file.

    /dev/stdout is a system link, even if it points to a file.
    """
    of_system = path.is_symlink() and any(path.parent.resolve().is_relative_to(folder) for folder in _OF_SYSTEM)
    if of_system or (path.exists() and not path.is_file()):
        raise FileExistsError(errno.EEXIST, "it exists and is not a file")
