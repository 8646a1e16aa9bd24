"""Untrusted files and texts: only regular files are opened, and the size of files and the depth of JSON are bounded.

A run folder, a dataset, a checkpoint or a model may come from somebody else. A pipe or a device in place of a file, or
a link in place of a file to write, raises ``OSError`` at once; text that none of our programs writes raises
``ValueError``. ``docs/security.md`` states the bounds.
"""

import codecs
import errno
import hashlib
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from io import BufferedReader, FileIO, StringIO
from pathlib import Path
from typing import IO, Any

MIB, GIB = 2**20, 2**30
MOST_JSON = 64 * MIB  # of one JSON file of a run or a model
MOST_TEXT = 2 * GIB  # of one file of questions or annotations, and of what it unpacks to
DEEPEST_JSON = 64  # levels of lists and objects
_MOST_DIGITS = 19  # of a 64-bit integer
MOST_DIGITS = 1000  # where the reader checks its numbers itself
_PIECE = 16 * MIB  # bytes that are read or unpacked at a time


class NestingError(ValueError):
    """JSON is nested too deeply."""


def expanded(path: str | Path) -> Path:
    """A path with ``~`` replaced by the home folder; a ``~name`` without such a user stays, as in a shell."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, which fails for ~nobody


def is_there(path: str | Path) -> bool:
    """Whether there is a file or a folder; False for an invalid name, one that is too long or has a zero byte."""
    return os.path.exists(path)  # noqa: PTH110, which fails for such a name


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file; False for an invalid name, as with ``is_there``."""
    return os.path.isfile(path)  # noqa: PTH113, as above


def open_file(path: str | Path) -> FileIO:
    """Opens a regular file, and nothing else, for reading: it never waits for a pipe or touches a device.

    Raises:
        OSError: as ``open`` does; IsADirectoryError for a folder, EINVAL for a pipe, a device or a socket.
    """
    _check_regular(os.stat(path))  # noqa: PTH116, before: to open a device may do something
    return _opened(path, os.O_RDONLY, "rb")


def open_to_append(path: str | Path) -> FileIO:
    """Opens a regular file, or a new one, for appending; OSError as for ``open_file``, and ELOOP for a link."""
    return _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK, "ab")


def append(path: str | Path, content: bytes) -> None:
    """Appends bytes, all of them, to a regular file; OSError as for ``open_to_append``."""
    rest = memoryview(content)
    with open_to_append(path) as file:
        while rest:
            rest = rest[file.write(rest) or 0 :]


def open_lock(path: str | Path) -> FileIO:
    """Opens a regular file, or a new one, for locking, and keeps its content; OSError as for ``open_to_append``."""
    return _opened(path, os.O_RDWR | os.O_CREAT | _NO_LINK, "r+b")


def read_file(path: str | Path, *, most: int = MOST_JSON) -> bytes:
    """The content of a regular file; OSError as for ``open_file``, and EFBIG for more than ``most`` bytes."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise _too_large(most)
        return read_at_most(file, most)


def each_line(path: str | Path) -> Iterator[bytes]:
    """The lines of a regular file with their ends, one at a time; OSError as for ``read_file``."""
    with open_file(path) as file, BufferedReader(file) as lines:
        if os.fstat(file.fileno()).st_size > MOST_TEXT:
            raise _too_large(MOST_TEXT)
        yield from lines


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a regular file, 64 hexadecimal digits; OSError as for ``open_file``."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_end(path: str | Path, *, most: int) -> bytes:
    """The last ``most`` bytes of a regular file, or all of a smaller one; OSError as for ``open_file``."""
    with open_file(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most) or b""


def read_at_most(file: IO[bytes] | FileIO, most: int) -> bytes:
    """The rest of an open file; OSError with EFBIG if that is more than ``most`` bytes."""
    parts, size = [], 0
    while part := file.read(min(_PIECE, most + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > most:
            raise _too_large(most)
    return b"".join(parts)


def decompress(content: bytes, *, most: int = MOST_TEXT) -> bytes:
    """The content of a gzip file, which may have several members.

    Raises:
        OSError: it unpacks to more than ``most`` bytes.
        EOFError: it is truncated.
        zlib.error: it is damaged.
    """
    parts, size, rest = [], 0, content
    while rest:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            part = member.decompress(rest, min(_PIECE, most + 1 - size))
            rest = member.unconsumed_tail
            size += len(part)
            if size > most:
                raise _too_large(most)
            if not part and not rest and not member.eof:
                raise EOFError("the file is cut off")
            parts.append(part)
        rest = member.unused_data.lstrip(b"\0")  # some programs pad their files
    return b"".join(parts)


def text_lines(text: str) -> list[str]:
    """The lines of a text without their line ends, as in a file: form feeds and U+2028 do not end a line."""
    return [line.removesuffix("\n") for line in StringIO(text, newline=None)]


def parse_json(
    content: bytes | str,
    *,
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    digits: int = _MOST_DIGITS,
) -> Any:
    """The parsed value of JSON; ``change`` is applied to every object.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested deeper than ``DEEPEST_JSON``, repeats a key of an object, or has
            an integer of more than 64 bits or, if ``digits`` is given, of more characters than that.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"the key {key!r} is repeated")
        return values if change is None else change(values)

    def integer(text: str) -> int:
        within = len(text) <= digits if digits != _MOST_DIGITS else -(2**63) <= int(text[:30]) < 2**63
        if not within:
            raise ValueError(f"an integer of {len(text.lstrip('-'))} digits is too large")
        return int(text)

    text = content.removeprefix(codecs.BOM_UTF8).decode() if isinstance(content, bytes) else content
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=integer)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


def why(error: Exception) -> str:
    """What is wrong with a file, for a sentence: the reason alone, without number and path."""
    return getattr(error, "strerror", None) or str(error).rstrip(".") or type(error).__name__


_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither this flag nor the next ones
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def _opened(path: str | Path, flags: int, mode: str) -> FileIO:
    try:
        descriptor = os.open(path, flags | _NO_WAIT | _BINARY, 0o666)
    except OSError as error:
        if flags & _NO_LINK and error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link") from None
        raise
    try:
        _check_regular(os.fstat(descriptor))
        return FileIO(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file")


def _too_large(most: int) -> OSError:
    size = f"{most / GIB:g} GiB" if most >= GIB else f"{most / MIB:g} MiB"
    return OSError(errno.EFBIG, f"it is larger than {size}")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> NestingError:
    return NestingError(f"the values are nested too deeply, in more than {DEEPEST_JSON} levels")
