"""A text file as windows of tokens, read piece by piece: memory does not grow with the file."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from matrix_ssl.errors import ConfigError, DataError

BLOCK = 1 << 16  # characters that are tokenised at a time, and bytes that are read


def read_blocks(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in blocks of up to ``BLOCK`` characters, each but the last ending in a line break.

    Where a block has none it ends in other white space, and without that anywhere.

    Raises:
        DataError: the file is absent, unreadable or empty, or a byte is not UTF-8; the error names its offset.
    """
    decoder, rest, offset = codecs.getincrementaldecoder("utf-8")(), "", 0
    try:
        with path.open("rb") as file:
            while piece := file.read(BLOCK):
                begun = len(decoder.getstate()[0])  # bytes of a character that the last piece has cut
                rest += _decode(decoder, piece, path, offset - begun)
                offset += len(piece)
                while len(rest) >= BLOCK:
                    end = _last_break(rest[:BLOCK])
                    yield rest[:end]
                    rest = rest[end:]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: name a text file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not offset:
        raise DataError(f"{path} is empty: name a file with text.")
    _decode(decoder, b"", path, offset - len(decoder.getstate()[0]))  # a character that the end has cut
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
    """The text as windows of ``length`` tokens, the special ones of ``before`` and ``after`` among them.

    What is left at the end and fills no window is dropped, unless there is no other window. Every window but such a
    single one has the same length, so batches need no padding.

    Args:
        encode: gives the tokens of a block, without special ones.
        max_tokens: of the text; None for all.

    Raises:
        ConfigError: the special tokens leave no room.
        DataError: the text has fewer than two tokens.
    """
    room = length - len(before) - len(after)
    if room < 1:
        raise ConfigError(f"window={length}: the tokenizer's special tokens fill it; choose a longer one.")
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
        raise DataError(f"the text has {total} {'token' if total == 1 else 'tokens'}: at least two are needed.")
    if not any_whole:
        yield [*before, *waiting, *after]


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Which tokens the tokenizer puts before and after a text that a model is to read."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    dressed = tokenizer("a").input_ids
    starts = [i for i in range(len(dressed)) if dressed[i : i + len(plain)] == plain]
    start = starts[0] if starts and plain else 0
    return dressed[:start], dressed[start + len(plain) :]


def batches(windows: Iterable[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Lists of ``size`` windows, the last one of what is left."""
    batch: list[list[int]] = []
    for window in windows:
        batch.append(window)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _decode(decoder: codecs.IncrementalDecoder, piece: bytes, path: Path, offset: int) -> str:
    """The piece as text; ``offset`` is where in the file the decoder's bytes begin."""
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset + error.start} "
            f"({error.reason}). Convert the file, for example with iconv -t UTF-8."
        ) from None


def _last_break(text: str) -> int:
    """Behind the last line break, or the last white space, or at the end."""
    end = text.rfind("\n") + 1
    return end or next((i + 1 for i in range(len(text) - 1, -1, -1) if text[i].isspace()), len(text))
