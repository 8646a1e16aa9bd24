"""Files of questions and answers: JSON lines, compressed or not, a JSON list, or a dataset of the Hugging Face hub."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_ssl.data.hub import open_dataset
from matrix_ssl.errors import DataError, did_you_mean, import_extra
from matrix_ssl.llm.data.templates import Exchange

KNOWN = (("question", "answer"), ("query", "response"), ("prompt", "completion"), ("messages",))
_HUB = "hf:"


@dataclass(frozen=True)
class Rows:
    """The rows of a file, and the file's identity."""

    rows: list[dict[str, Any]]
    name: str
    sha256: str  # of the file; for a dataset of the hub, its fingerprint


def read_rows(data: str) -> Rows:
    """Reads ``FILE.jsonl``, ``FILE.jsonl.gz``, ``FILE.json`` or ``hf:NAME``, the split train of a dataset."""
    if data.startswith(_HUB):
        return _read_hub(data)
    path = Path(data)
    try:
        content = path.read_bytes()
        text_bytes = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    rows = _parse(path, text_bytes)
    if not rows:
        raise DataError(f"{path} is empty: it needs at least one question and its answer.")
    return Rows(rows, data, hashlib.sha256(content).hexdigest())


def find_columns(rows: Rows, columns: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns with questions and answers, or messages: those named, or the first of ``KNOWN`` in the first row."""
    present = list(rows.rows[0])
    if len(columns) > 2:
        raise DataError(f"--columns {','.join(columns)}: name a question and an answer, or one column of messages.")
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
    if len(columns) == 2:
        for name, value in zip(columns, values, strict=True):
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{where}: {name} is {value!r}; expected a non-empty string.")
        return Exchange.of(*values)
    (messages,) = values
    valid = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not valid or len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise DataError(
            f"{where}: {columns[0]} is not a list of messages, each with role and content, that ends with a non-empty "
            f"answer of the assistant."
        )
    return Exchange(messages[:-1], messages[-1]["content"])


def _parse(path: Path, content: bytes) -> list[dict[str, Any]]:
    """The objects of a file: one a line, or a list in a file named .json."""
    if path.name.removesuffix(".gz").endswith(".json"):
        rows = _json(content, str(path)) if content.strip() else []
        if not isinstance(rows, list):
            raise DataError(f"{path} is not a list of objects: a file with one object a line is named .jsonl.")
        objects = ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
    else:
        lines = ((f"{path}, line {number}", line) for number, line in enumerate(content.splitlines(), 1))
        objects = ((where, _json(line, where)) for where, line in lines if line.strip())
    result = []
    for where, row in objects:
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with columns, not {type(row).__name__}.")
        result.append(row)
    return result


def _json(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}.") from error


def _read_hub(data: str) -> Rows:
    datasets = import_extra("datasets", extra="llm")
    try:
        dataset = open_dataset(datasets.load_dataset, data.removeprefix(_HUB), place=data, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{data} cannot be loaded: {error}.") from error
    return Rows(list(dataset), data, dataset._fingerprint)
