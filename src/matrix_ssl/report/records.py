"""Turns JSON written by matrix-ssl into typed records: missing values get their defaults, wrong ones are errors."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import FiniteFloat, InstanceOf, TypeAdapter, ValidationError

from matrix_ssl.config.untrusted import MOST_DIGITS, parse_json, read_file, why
from matrix_ssl.errors import RunFolderError

T = TypeVar("T")
Text = InstanceOf[str]  # unlike str, it admits file names that are not Unicode
Number = FiniteFloat


def read(kind: type[T], path: Path, *, command: str) -> T:
    """The results in a file that a command writes; the RunFolderError for a missing or damaged one names the remedy."""
    remedy = f"move it away and run {command} again"
    try:
        return parse(kind, parse_json(read_file(path), digits=MOST_DIGITS), path, remedy=remedy)
    except FileNotFoundError:
        raise RunFolderError(f"{path.parent} has no {path.name}: choose a folder that {command} has written.") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {why(error)}; {remedy}.") from error


def parse(kind: type[T], value: Any, path: Path, *, remedy: str) -> T:
    """The value of a JSON file as a dataclass; the RunFolderError names the invalid place and the remedy."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        reason = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise RunFolderError(f"{path} is damaged at {place}: {reason}; {remedy}.") from None
