"""A text file as windows of tokens, read piece by piece: memory does not grow with the file."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader, TextIOWrapper
from pathlib import Path

from matrix_ssl.config.untrusted import MOST_TEXT, open_file, read_file, why
from matrix_ssl.errors import ConfigError, DataError

BLOCK = 1 << 16  # characters that are tokenised at a time


def read_blocks(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in blocks of up to ``BLOCK`` characters, each but the last ending in a line break.

    A block without one ends in other white space, or anywhere if it has none.
    """
    rest, characters = "", 0
    try:
        with TextIOWrapper(BufferedReader(open_file(path)), encoding="utf-8-sig", newline="") as file:
            while piece := file.read(BLOCK):
                rest += piece
                characters += len(piece)
                while len(rest) >= BLOCK:
                    end = _last_break(rest[:BLOCK])
                    yield rest[:end]
                    rest = rest[end:]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: pass a text file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {why(error)}.") from error
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    if not characters:
        raise DataError(f"{path} is empty: pass a file with text.")
    if rest:
        yield rest


def token_windows(
    blocks: Iterable[str],
    encode: Callable[[str], list[int]],
    *,
    length: int,
    before: list[int],
    after: list[int],
    max_tokens: int | None,
) -> Iterator[list[int]]:
    """The text as windows of ``length`` tokens, including the special ones in ``before`` and ``after``.

    An incomplete last window is dropped, unless it is the only one. All windows of a text therefore have the same
    length, and batches need no padding. ``encode`` returns the tokens of a block without special ones.
    """
    room = length - len(before) - len(after)
    if room < 1:
        raise ConfigError(f"window={length}: the tokenizer's special tokens fill the window; choose a longer one.")
    waiting: list[int] = []
    total, any_whole = 0, False
    for block in blocks:
        tokens = encode(block)
        tokens = tokens if max_tokens is None else tokens[: max_tokens - total]
        total += len(tokens)
        waiting += tokens
        whole = len(waiting) // room * room
        for start in range(0, whole, room):
            any_whole = True
            yield [*before, *waiting[start : start + room], *after]
        del waiting[:whole]
        if total == max_tokens:
            break
    if total < 2:
        raise DataError(f"The text has {total} {'token' if total == 1 else 'tokens'}; pass at least two.")
    if not any_whole:
        yield [*before, *waiting, *after]


def _not_utf8(path: Path) -> DataError:
    """The error for a file that is not UTF-8, with the first wrong byte of the whole file."""
    try:
        read_file(path, most=MOST_TEXT).decode()
    except UnicodeDecodeError as error:
        place = f"byte 0x{error.object[error.start]:02x} at offset {error.start} ({error.reason})"
        kind = "UTF-16" if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "WINDOWS-1252"
        return DataError(f"{path} is not UTF-8: {place}. Convert the file, for example with iconv -f {kind} -t UTF-8.")
    return DataError(f"{path} changed while it was read: run the command again.")


def _last_break(text: str) -> int:
    """The position after the last line break, else after the last white space, else the end."""
    end = text.rfind("\n") + 1
    return end or next((i for i in range(len(text), 0, -1) if text[i - 1].isspace()), len(text))
