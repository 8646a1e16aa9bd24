"""Turns JSON that matrix-ssl wrote into typed records: what is missing has its default, what is wrong is an error."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import FiniteFloat, InstanceOf, TypeAdapter, ValidationError

from matrix_ssl.errors import RunFolderError

T = TypeVar("T")
Text = InstanceOf[str]  # unlike str it admits file names that are not Unicode
Number = FiniteFloat


def parse(kind: type[T], value: Any, path: Path, *, remedy: str) -> T:
    """The value as a record.

    Args:
        kind: a dataclass.
        value: what JSON of the file holds.
        path: the file, for the error.
        remedy: what to do about a damaged file.

    Raises:
        RunFolderError: the value does not fit; the error names the file and the place in it.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        reason = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise RunFolderError(f"{path} is damaged at {place}: {reason}; {remedy}.") from None
