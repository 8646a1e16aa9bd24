"""Questions and answers from files and datasets of the Hugging Face hub, in the usual formats."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matrix_ssl.data.hub import check_pretrained, is_saved, open_dataset
from matrix_ssl.errors import DataError, did_you_mean, import_extra
from matrix_ssl.llm.data.tables import is_separated, read_lines, read_table
from matrix_ssl.llm.data.templates import Exchange

ALPACA = ("instruction", "input", "output")  # the input may be empty
KNOWN = (
    ("question", "answer"), ("query", "response"), ("prompt", "completion"), ALPACA, ("instruction", "output"),
    ("instruction", "input", "response"), ("instruction", "response"), ("messages",), ("conversations",),
)  # fmt: skip
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_HUB = "hf:"
_COLON = re.compile(r":(?![^\[]*\])")  # not one inside a part of a split, as in train[:5]
_SHOWN = 80  # characters of a value in an error


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
    known = [names[0] for names in (*_complete(present), *KNOWN)]  # first what would be learned
    name = next((name for name in columns[:1] or known if name in present), None)
    if name is None:
        raise DataError(f"{rows.name} has the columns {', '.join(present)}, none of which is known to hold "
                        f"questions: name one with --columns.")  # fmt: skip
    return _each_row(rows, partial(_question, columns=ALPACA[:2] if name == ALPACA[0] and not columns else (name,)))


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
    shown = ", ".join(name if name == name.strip() else repr(name) for name in present)
    first = " The first line of a table holds their names." if is_separated(Path(rows.name)) else ""
    raise DataError(
        f"{rows.name} has the columns {shown}, but none of {known}: name them with --columns QUESTION,ANSWER.{first}"
    )


def exchanges(rows: Rows, columns: tuple[str, ...]) -> list[Exchange]:
    """Every row as messages and the answer to them: the second column, or the last message."""
    return _each_row(rows, partial(_exchange, columns=columns))


def _names(rows: Rows) -> list[str]:
    """All columns; a row of JSON may lack those that are empty, such as Alpaca's input."""
    return list(dict.fromkeys(name for row in rows.rows for name in row))


def _complete(present: Sequence[str]) -> list[tuple[str, ...]]:
    """Those of ``KNOWN`` whose columns are all present."""
    return [names for names in KNOWN if set(names) <= set(present)]


def _each_row(rows: Rows, read: Callable[..., Exchange]) -> list[Exchange]:
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


def _exchange(row: dict[str, Any], *, columns: tuple[str, ...], where: str) -> Exchange:
    if len(columns) == 1:
        messages = _messages(row.get(columns[0]), columns[0], where)
        if not messages or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            messages = []
        if len(messages) < 2:
            raise _no_conversation(columns[0], where, "ends with a non-empty answer of the assistant (gpt)")
        return Exchange(messages[:-1], messages[-1]["content"])
    return Exchange.of(_asked(row, columns[:-1], where), _text(row, columns[-1], where))


def _question(row: dict[str, Any], *, columns: tuple[str, ...], where: str) -> Exchange:
    name = columns[0]
    if isinstance(row.get(name), list | dict):
        messages = _messages(row[name], name, where)
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise _no_conversation(name, where, "holds a question of the user (human)")
        return Exchange(messages, "")
    return Exchange.of(_asked(row, columns, where), "")


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
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        remedy = f': write it in quotes, "{value}"' if isinstance(value, float) else ""
        raise DataError(f"{where}: {name} is {shown}; expected a non-empty string{remedy}.")
    return _encodable(value, f"{where}: {name}")


def _messages(value: Any, name: str, where: str) -> list[dict[str, str]]:
    """Messages, with role and content, or with from and value as in ShareGPT; an empty list for anything else."""
    if isinstance(value, dict) and all(isinstance(x, list) for x in value.values()):  # in some versions of datasets
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    read = [_message(one) for one in value] if isinstance(value, list) else []
    messages = [one for one in read if one is not None]
    if len(messages) < len(read):
        return []
    return [{key: _encodable(text, f"{where}: {name}") for key, text in one.items()} for one in messages]


def _no_conversation(name: str, where: str, end: str) -> DataError:
    return DataError(
        f"{where}: {name} is not a list of messages, each with role and content (or from and value), that {end}."
    )


def _message(one: Any) -> dict[str, str] | None:
    if not isinstance(one, dict):
        return None
    role, content = (one["from"], one.get("value")) if "from" in one else (one.get("role"), one.get("content"))
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    return {"role": _ROLES.get(role, role), "content": content}


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
