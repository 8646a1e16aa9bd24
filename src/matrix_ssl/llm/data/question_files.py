"""Files of questions and answers: JSON lines, compressed or not, a JSON list, or a set of the Hugging Face hub."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_ssl.data.hub import open_dataset
from matrix_ssl.errors import DataError, MissingExtra, did_you_mean
from matrix_ssl.llm.data.templates import Exchange

KNOWN = (("question", "answer"), ("query", "response"), ("prompt", "completion"), ("messages",))
_HUB = "hf:"


@dataclass(frozen=True)
class Rows:
    """What a file holds, and which file it was."""

    rows: list[dict[str, Any]]
    name: str
    sha256: str  # of the file; of a set of the hub, its fingerprint


def read_rows(data: str) -> Rows:
    """Reads ``FILE.jsonl``, ``FILE.jsonl.gz``, ``FILE.json`` or ``hf:NAME``, the split train of a set of the hub.

    Raises:
        DataError: it is missing, empty, not UTF-8, or not JSON; the message names the line.
        MissingExtra: a set of the hub is asked for, and datasets is not installed.
    """
    if data.startswith(_HUB):
        return _read_hub(data)
    path = Path(data)
    try:
        content = path.read_bytes()
        text_bytes = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    listed = path.name.removesuffix(".gz").endswith(".json")
    rows = _parse_list(path, text_bytes) if listed else _parse_lines(path, text_bytes)
    if not rows:
        raise DataError(f"{path} is empty: it needs at least one question and its answer.")
    return Rows(rows, data, hashlib.sha256(content).hexdigest())


def find_columns(rows: Rows, columns: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns with questions and answers, or the one with conversations.

    Args:
        columns: their names; none for the first of ``KNOWN`` that the first row has.

    Raises:
        DataError: the columns are not there, or more than two are named.
    """
    there = list(rows.rows[0])
    if not columns:
        found = next((names for names in KNOWN if set(names) <= set(there)), None)
        if found is None:
            known = ", ".join("/".join(names) for names in KNOWN)
            raise DataError(
                f"{rows.name} has the columns {', '.join(there)}, but none of {known}: name them by --columns."
            )
        return found
    if len(columns) > 2:
        raise DataError(f"--columns {','.join(columns)}: name a question and an answer, or one column of messages.")
    for name in columns:
        if name not in there:
            raise DataError(f"{rows.name} has no column {name!r}.{did_you_mean(name, there)}")
    return tuple(columns)


def exchanges(rows: Rows, columns: tuple[str, ...]) -> list[Exchange]:
    """Every row as what was said and the answer to it: the second column, or the last message.

    Raises:
        DataError: a row lacks a column, or holds something else there.
    """
    return [_exchange(row, columns, f"{rows.name}, row {number}") for number, row in enumerate(rows.rows, 1)]


def _exchange(row: dict[str, Any], columns: tuple[str, ...], where: str) -> Exchange:
    values: list[Any] = [row.get(name) for name in columns]
    if len(columns) == 2:
        for name, value in zip(columns, values, strict=True):
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{where}: {name} is {value!r}, but a text that is not empty is needed.")
        return Exchange.of(*values)
    (messages,) = values
    well = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not well or len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise DataError(
            f"{where}: {columns[0]} is not a list of messages, each with role and content, of which the last is the "
            f"assistant's and not empty."
        )
    return Exchange(messages[:-1], messages[-1]["content"])


def _parse_lines(path: Path, content: bytes) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            rows.append(_object(_parse(line, f"{path}, line {number}"), f"{path}, line {number}"))
    return rows


def _parse_list(path: Path, content: bytes) -> list[dict[str, Any]]:
    if not content.strip():
        return []
    found = _parse(content, str(path))
    if not isinstance(found, list):
        raise DataError(f"{path} is not a list of objects: a file with one object a line is named .jsonl.")
    return [_object(row, f"{path}, row {number}") for number, row in enumerate(found, 1)]


def _parse(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}.") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with columns, found {type(value).__name__}.")
    return value


def _read_hub(data: str) -> Rows:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtra("datasets", "llm") from error
    name = data.removeprefix(_HUB)
    try:
        found = open_dataset(load_dataset, name, place=data, split="train")
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"{data} cannot be loaded: {error}.") from error
    return Rows(list(found), data, found._fingerprint)
