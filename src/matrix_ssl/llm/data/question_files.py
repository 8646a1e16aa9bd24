"""Questions and answers from files and datasets of the Hugging Face hub, in the forms that people have."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_ssl.data.hub import open_dataset
from matrix_ssl.errors import DataError, did_you_mean, import_extra
from matrix_ssl.llm.data.tables import read_lines, read_table
from matrix_ssl.llm.data.templates import Exchange

ALPACA = ("instruction", "input", "output")  # the input may be empty
KNOWN = (
    ("question", "answer"), ("query", "response"), ("prompt", "completion"), ALPACA, ("instruction", "output"),
    ("instruction", "response"), ("messages",), ("conversations",),
)  # fmt: skip
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_HUB = "hf:"


@dataclass(frozen=True)
class Rows:
    """The rows of a file, and the file's identity."""

    rows: list[dict[str, Any]]
    name: str
    sha256: str  # of the file; for a dataset of the hub, its fingerprint


def read_rows(data: str) -> Rows:
    """Reads a file of ``read_table``, or ``hf:NAME[:CONFIGURATION[:SPLIT]]``, by default the split train."""
    if data.startswith(_HUB):
        return _read_hub(data)
    rows, content = read_table(Path(data))
    if not rows:
        raise DataError(f"{data} is empty: it needs at least one question and its answer.")
    return Rows(rows, data, hashlib.sha256(content).hexdigest())


def read_questions(data: str, columns: Sequence[str] = ()) -> list[str]:
    """The questions of a file or dataset, with or without answers, or the lines of a text file (.txt)."""
    if data.lower().endswith(".txt") and not data.startswith(_HUB):
        lines = read_lines(Path(data))
        return [_encodable(line, f"{data}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    rows = read_rows(data)
    name = next(iter(columns), None) or next((names[0] for names in KNOWN if names[0] in rows.rows[0]), None)
    if name is None or name not in rows.rows[0]:
        present = ", ".join(rows.rows[0])
        raise DataError(f"{rows.name} has the columns {present}, of which none is known to hold questions: name one "
                        f"with --columns.")  # fmt: skip
    questions = []
    for number, row in enumerate(rows.rows, 1):
        text, where = row.get(name), f"{rows.name}, row {number}"
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: {name} is {text!r}; expected a non-empty string.")
        extra = row.get(ALPACA[1]) if name == ALPACA[0] else None
        questions.append(_encodable(f"{text}\n\n{extra}" if extra else text, where))
    return questions


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Questions of a command line; DataError for one without text, or with bytes that are none."""
    if any(not text.strip() for text in prompts):
        raise DataError("--prompt is empty: write a question.")
    return [_encodable(text, "--prompt") for text in prompts]


def find_columns(rows: Rows, columns: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns with questions and answers, or messages: those named, or the first of ``KNOWN`` in the first row."""
    present = list(rows.rows[0])
    if len(columns) > 2:
        raise DataError(f"--columns {','.join(columns)}: name a question and an answer, or one column of messages.")
    if len(set(columns)) < len(columns):
        raise DataError(f"--columns {','.join(columns)}: question and answer are the same column; name two.")
    for name in columns:
        if name not in present:
            raise DataError(f"{rows.name} has no column {name!r}.{did_you_mean(name, present)}")
    if columns:
        return tuple(columns)
    for names in KNOWN:
        if set(names) <= set(present):
            return names
    known = ", ".join("/".join(names) for names in KNOWN)
    raise DataError(f"{rows.name} has the columns {', '.join(present)}, but none of {known}: name them with --columns.")


def exchanges(rows: Rows, columns: tuple[str, ...]) -> list[Exchange]:
    """Every row as messages and the answer to them: the second column, or the last message."""
    return [_exchange(row, columns, f"{rows.name}, row {number}") for number, row in enumerate(rows.rows, 1)]


def _exchange(row: dict[str, Any], columns: tuple[str, ...], where: str) -> Exchange:
    values: list[Any] = [row.get(name) for name in columns]
    if len(columns) == 1:
        return _conversation(values[0], columns[0], where)
    texts = []
    for name, value in zip(columns, values, strict=True):
        if columns == ALPACA and name == "input" and (value is None or not str(value).strip()):
            continue
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {name} is {value!r}; expected a non-empty string.")
        texts.append(_encodable(value, f"{where}: {name}"))
    return Exchange.of("\n\n".join(texts[:-1]), texts[-1])


def _conversation(value: Any, name: str, where: str) -> Exchange:
    """Messages, with role and content, or as of ShareGPT with from and value."""
    if isinstance(value, dict) and all(isinstance(x, list) for x in value.values()):  # as some versions of datasets
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    read = [_message(one) for one in value] if isinstance(value, list) else []
    messages = [one for one in read if one is not None]
    whole = len(messages) == len(read) >= 2 and messages[-1]["role"] == "assistant"
    if not whole or not messages[-1]["content"].strip():
        raise DataError(
            f"{where}: {name} is not a list of messages, each with role and content (or from and value), that ends "
            f"with a non-empty answer of the assistant (gpt)."
        )
    checked = [{key: _encodable(text, f"{where}: {name}") for key, text in one.items()} for one in messages]
    return Exchange(checked[:-1], checked[-1]["content"])


def _message(one: Any) -> dict[str, str] | None:
    if not isinstance(one, dict):
        return None
    role, content = (one["from"], one.get("value")) if "from" in one else (one.get("role"), one.get("content"))
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    return {"role": _ROLES.get(role, role), "content": content}


def _encodable(text: str, where: str) -> str:
    """A text that tokenizers take: JSON allows half of a pair of surrogates, as of an emoji that was cut, UTF-8 not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half of a character at position {error.start} ({text[error.start]!a}), which is no Unicode "
            f"text: remove it, or cut the text elsewhere."
        ) from error
    return text


def _read_hub(data: str) -> Rows:
    datasets = import_extra("datasets", extra="llm")
    place = data.removeprefix(_HUB)
    name, *parts = [place] if Path(place).exists() else place.split(":")
    if not name or len(parts) > 2:
        raise DataError(f"{data}: expected hf:NAME, hf:NAME:CONFIGURATION or hf:NAME:CONFIGURATION:SPLIT.")
    configuration, split = [*parts, "", ""][:2]
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
    if not len(dataset):
        raise DataError(f"{data} is empty: it needs at least one question and its answer.")
    return Rows(list(dataset), data, dataset._fingerprint)
