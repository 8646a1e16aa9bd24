"""Settings as Python keyword arguments, by the last part of their names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from matrix_ssl.config import Assignment
from matrix_ssl.errors import ConfigError

Name = TypeVar("Name", bound=str | Path)
Converted = TypeVar("Converted")


def assign(
    keywords: Mapping[str, Any], settings: Mapping[str, Any] | Iterable[str], known: Sequence[str]
) -> list[Assignment]:
    """Assignments for ``config.override``; keywords that match no setting are passed on so that it rejects them.

    Args:
        keywords: values by the full name of a setting, or by its last part if no other setting ends in the same one;
            ``width`` is ``network.width``, even if a method has an option of this name.
        settings: values by full dotted names, or strings ``key=value``.
        known: the full names of all settings.

    Raises:
        ConfigError: a keyword is the last part of more than one name.
    """
    return [*((_whole(key, known), _plain(value)) for key, value in keywords.items()), *assignments(settings)]


def assignments(settings: Mapping[str, Any] | Iterable[str] | None) -> list[Assignment]:
    """Assignments for ``config.override`` from values by full setting names or strings ``key=value``; None: none."""
    if isinstance(settings, Mapping):
        return [(key, _plain(value)) for key, value in settings.items()]
    return [*listed(settings or ())]


def listed(names: Name | Iterable[Name]) -> list[Name]:
    """Names as a list; a single name becomes a list of one, since a string would be taken as a sequence of letters."""
    return [names] if isinstance(names, (str, Path)) else list(names)


def optional(convert: Callable[[Any], Converted], value: Any) -> Converted | None:
    """The converted value of an argument; None, for one that was not given, stays None."""
    return None if value is None else convert(value)


def _whole(name: str, known: Sequence[str]) -> str:
    """The full name of a setting from its last part; other settings of the run win over options of the method.

    Settings of the views come last.
    """
    if name in known:
        return name
    same = [key for key in known if key.rpartition(".")[2] == name]
    for special in ("views.", "method."):
        same = [key for key in same if not key.startswith(special)] or same
    if len(same) > 1:
        raise ConfigError(f"{name} is a setting of {' and '.join(same)}: write settings={{{same[0]!r}: ...}}.")
    return same[0] if same else name


def _plain(value: Any) -> Any:
    """A value with NumPy types converted to Python's own."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value
