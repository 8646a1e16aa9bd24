"""Questions and answers from files and datasets of the Hugging Face hub, in the usual formats."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from matrix_ssl.data.hub import check_pretrained, is_saved, open_dataset
from matrix_ssl.errors import DataError, did_you_mean, import_extra
from matrix_ssl.llm.data.messages import (
    Message,
    is_conversation,
    last_answer,
    read_messages,
    read_tools,
    shown,
    up_to_last_answer,
)
from matrix_ssl.llm.data.tables import is_separated, read_lines, read_table
from matrix_ssl.llm.data.templates import Exchange

Result = TypeVar("Result")

_CONVERSATIONS = (("messages",), ("conversations",))
_INPUTS = (("input",), ("context",), ())  # of an instruction, as in Alpaca and Dolly; they may be empty
KNOWN = (
    ("question", "answer"), ("query", "response"), ("prompt", "completion"),
    *(("instruction", *some, answer) for answer in ("output", "response") for some in _INPUTS), *_CONVERSATIONS,
)  # fmt: skip
_TOOLS = "tools"  # descriptions of tools, next to a conversation
_HUB = "hf:"
_COLON = re.compile(r":(?![^\[]*\])")  # not one inside a part of a split, as in train[:5]


@dataclass(frozen=True)
class Rows:
    """The rows of a file, and the file's identity."""

    rows: list[dict[str, Any]]
    name: str
    sha256: str  # of the file; for a dataset of the hub, its fingerprint


def read_rows(data: str) -> Rows:
    """Reads a file with ``read_table``, or ``hf:NAME[:CONFIGURATION[:SPLIT]]``, by default the split train."""
    if data.startswith(_HUB):
        return _read_hub(data)
    if Path(data).is_dir():
        raise DataError(f"{data} is a folder: name a file in it, or use hf:{data} for a dataset of several files.")
    rows, content = read_table(Path(data))
    if not rows:
        raise DataError(f"{data} is empty: it needs at least one question and its answer.")
    return Rows(rows, data, hashlib.sha256(content).hexdigest())


def read_questions(data: str, columns: Sequence[str] = ()) -> list[Exchange]:
    """The questions of a file or dataset, with or without answers, or the lines of a text file (.txt).

    The question of a conversation is everything except a final answer by the assistant. The answers are empty. If the
    file has answers, too, the questions are those that ``exchanges`` reads from it.
    """
    if data.lower().endswith(".txt") and not data.startswith(_HUB):
        texts = [(number, line) for number, line in enumerate(read_lines(Path(data)), 1) if line.strip()]
        if not texts:
            raise DataError(f"{data} is empty: it needs at least one question.")
        return [Exchange.of(_encodable(line, f"{data}, line {number}"), "") for number, line in texts]
    rows = read_rows(data)
    present = _names(rows)
    if columns:
        candidates = [tuple(columns[:1])]
    else:  # first what would be learned
        candidates = [names if len(names) == 1 else names[:-1] for names in (*_complete(present), *KNOWN)]
    asked = next((names for names in candidates if names[0] in present), None)
    if asked is None:
        raise DataError(f"{rows.name} has the columns {', '.join(present)}, none of which is known to hold "
                        f"questions: name one with --columns.")  # fmt: skip
    return _each_row(rows, partial(_question, columns=asked))


def check_prompts(prompts: Sequence[str]) -> list[Exchange]:
    """Questions from the command line; DataError for one that is blank or has bytes that are not text."""
    if any(not text.strip() for text in prompts):
        raise DataError("--prompt is empty: write a question.")
    return [Exchange.of(_encodable(text, "--prompt"), "") for text in prompts]


def find_columns(rows: Rows, columns: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns with questions and answers, or messages: those named, or the first of ``KNOWN`` that exist."""
    present = _names(rows)
    if len(columns) > 2:
        raise DataError(f"--columns {','.join(columns)}: name a question and an answer, or one column of messages.")
    if len(set(columns)) < len(columns):
        raise DataError(f"--columns {','.join(columns)}: question and answer are the same column; name two.")
    for name in columns:
        if name not in present:
            raise DataError(f"{rows.name} has no column {name!r}.{did_you_mean(name, present)}")
    if columns:
        return tuple(columns)
    if complete := _complete(present):
        return complete[0]
    known = ", ".join("/".join(names) for names in KNOWN)
    listed = ", ".join(name if name == name.strip() else repr(name) for name in present)
    first = " The first line of a table holds their names." if is_separated(Path(rows.name)) else ""
    raise DataError(
        f"{rows.name} has the columns {listed}, but none of {known}: name them with --columns QUESTION,ANSWER, or a "
        f"column of conversations with --columns NAME.{first}"
    )


def unused_columns(rows: Rows, columns: Sequence[str] = ()) -> list[str]:
    """The columns that ``exchanges`` does not read."""
    used = find_columns(rows, columns)
    first = rows.rows[0]
    reads_tools = any(is_conversation(first.get(name)) for name in used) or used in _CONVERSATIONS
    return [name for name in _names(rows) if name not in used and not (reads_tools and name == _TOOLS)]


def exchanges(rows: Rows, columns: tuple[str, ...]) -> list[Exchange]:
    """Every row as messages and the answer to them: the second column, or the last message."""
    return _each_row(rows, partial(_exchange, columns=columns))


def answered_exchanges(rows: Rows, columns: tuple[str, ...]) -> tuple[list[Exchange], int]:
    """``exchanges`` of rows whose conversations end with their last answer, and the number of rows with more than that.

    What follows the last answer, mostly a question of the user, has nothing to learn: others ignore it in the loss, or
    remove it, such as xtuner (``wizardlm_map_fn``).
    """
    pairs = _each_row(rows, partial(_answered, columns=columns))
    return [exchange for exchange, _ in pairs], sum(is_cut for _, is_cut in pairs)


def _names(rows: Rows) -> list[str]:
    """All columns; a row of JSON may lack those that are empty, such as Alpaca's input."""
    return list(dict.fromkeys(name for row in rows.rows for name in row))


def _complete(present: Sequence[str]) -> list[tuple[str, ...]]:
    """Those of ``KNOWN`` whose columns are all present."""
    return [names for names in KNOWN if set(names) <= set(present)]


def _each_row(rows: Rows, read: Callable[..., Result]) -> list[Result]:
    """Applies ``read`` to every row and its place; DataError for the first row it rejects, with the number of them."""
    result, refused = [], []
    for number, row in enumerate(rows.rows, 1):
        try:
            result.append(read(row, where=f"{rows.name}, row {number}"))
        except DataError as error:
            refused.append(error)
    if len(refused) > 1:
        raise DataError(f"{refused[0]} {len(refused)} of {len(rows.rows)} rows cannot be used: correct or remove them.")
    if refused:
        raise refused[0]
    return result


def _answered(row: dict[str, Any], *, columns: tuple[str, ...], where: str) -> tuple[Exchange, bool]:
    """A row up to its last answer, and whether messages follow that."""
    value = row.get(answered := columns[-1])
    if len(columns) > 1 and not is_conversation(value):
        return _exchange(row, columns=columns, where=where), False
    messages = read_messages(value, f"{where}: {answered}")
    kept = up_to_last_answer(messages)
    return _exchange(row | {answered: kept}, columns=columns, where=where), len(kept) < len(messages)


def _exchange(row: dict[str, Any], *, columns: tuple[str, ...], where: str) -> Exchange:
    *asked, answered = columns
    value = row.get(answered)
    if not asked or is_conversation(value):
        messages = read_messages(value, f"{where}: {answered}")
        if asked:
            messages = [*_asked_messages(row, tuple(asked), where), *messages]
        last = last_answer(messages, f"{where}: {answered}")
        rest = {key: x for key, x in last.items() if key not in ("role", "content")}
        return _checked(Exchange(messages[:-1], last["content"], _tools(row, where), rest), f"{where}: {answered}")
    if len(asked) == 1 and is_conversation(row.get(asked[0])):
        messages, tools = _asked_messages(row, tuple(asked), where), _tools(row, where)
        return _checked(Exchange(messages, _text(row, answered, where), tools), f"{where}: {asked[0]}")
    return Exchange.of(_asked(row, tuple(asked), where), _text(row, answered, where))


def _question(row: dict[str, Any], *, columns: tuple[str, ...], where: str) -> Exchange:
    name = columns[0]
    if columns in _CONVERSATIONS or is_conversation(row.get(name)):
        messages = read_messages(row.get(name), f"{where}: {name}")
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise DataError(f"{where}: {name} has only an answer of the assistant (gpt): write a question before it.")
        return _checked(Exchange(messages, "", _tools(row, where)), f"{where}: {name}")
    return Exchange.of(_asked(row, columns, where), "")


def _asked_messages(row: dict[str, Any], columns: tuple[str, ...], where: str) -> list[Message]:
    """The messages before an answer that is stored as messages, too."""
    name = columns[0]
    if not is_conversation(row.get(name)):
        raise DataError(
            f"{where}: {name} is {shown(row.get(name))}, but the answer is a list of messages: if these include the "
            f"question, name their column alone with --columns; otherwise write both in the same form."
        )
    return read_messages(row[name], f"{where}: {name}")


def _tools(row: dict[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    return read_tools(row.get(_TOOLS), f"{where}: {_TOOLS}")


def _asked(row: dict[str, Any], columns: tuple[str, ...], where: str) -> str:
    """The question in the first column and, below it, the input in a second one as in Alpaca, which may be empty."""
    inputs = (name for name in columns[1:] if row.get(name) is not None and str(row[name]).strip())
    return "\n\n".join(_text(row, name, where) for name in (columns[0], *inputs))


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """The text in a column; an integer is accepted as text."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        is_number = isinstance(value, float) and math.isfinite(value)
        remedy = f': write it in quotes, "{value}"' if is_number else ""
        raise DataError(f"{where}: {name} is {shown(value)}; expected a non-empty string{remedy}.")
    return _encodable(value, f"{where}: {name}")


def _encodable(text: str, where: str) -> str:
    """A text that tokenizers accept: JSON, unlike UTF-8, allows half of a surrogate pair, as of an emoji cut in two."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half of a character at position {error.start} ({text[error.start]!a}), which is not "
            f"valid Unicode: remove it, or cut the text elsewhere."
        ) from error
    return text


def _checked(exchange: Exchange, where: str) -> Exchange:
    """A conversation whose texts are all encodable."""
    for text in _texts(exchange):
        _encodable(text, where)
    return exchange


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested lists, tuples and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _read_hub(data: str) -> Rows:
    datasets = import_extra("datasets", extra="llm")
    place = data.removeprefix(_HUB)
    name, *parts = [place] if Path(place).exists() else _COLON.split(place)
    if Path(name).is_file():
        raise DataError(f"{data} is a file, not a dataset of the hub: write {name}.")
    if not name or len(parts) > 2:
        raise DataError(f"{data}: expected hf:NAME, hf:NAME:CONFIGURATION or hf:NAME:CONFIGURATION:SPLIT.")
    configuration, split = [*parts, "", ""][:2]
    if is_saved(Path(name)):
        return _read_saved(data, name, configuration, split)
    try:
        dataset = open_dataset(
            datasets.load_dataset, name, place=data, name=configuration or None, split=split or "train"
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{data} cannot be loaded: {reason}. A configuration and a split are named as hf:NAME:CONFIGURATION:SPLIT; "
            f"the split is train otherwise."
        ) from error
    return _hub_rows(dataset, data)


def _read_saved(data: str, folder: str, configuration: str, split: str) -> Rows:
    """What ``save_to_disk`` has written: one split without a name, or several with names."""
    import datasets

    check_pretrained(folder)
    try:
        saved = datasets.load_from_disk(folder)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:  # depending on what its files lack
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{data} cannot be loaded: {reason}: it is empty or damaged; save it again.") from error
    if configuration not in ("", "default"):
        raise DataError(f"{data}: a folder of save_to_disk has no configuration {configuration!r}: use hf:{folder}.")
    if not isinstance(saved, datasets.DatasetDict):
        if split:
            raise DataError(f"{data}: {folder} was saved as one dataset and has no split {split!r}: use hf:{folder}.")
        return _hub_rows(saved, data)
    if "[" in split:
        raise DataError(f"{data}: a part of a split cannot be read from a folder of save_to_disk: save that part.")
    if (split or "train") not in saved:
        raise DataError(
            f"{data}: {folder} has the splits {', '.join(saved)}, but no {split or 'train'!r}: name one as "
            f"hf:{folder}::{next(iter(saved), 'SPLIT')}."
        )
    return _hub_rows(saved[split or "train"], data)


def _hub_rows(dataset: Any, data: str) -> Rows:
    if not len(dataset):
        raise DataError(f"{data} is empty: it needs at least one question and its answer.")
    return Rows(list(dataset.with_format(None)), data, dataset._fingerprint)
