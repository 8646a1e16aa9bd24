"""Settings as keyword arguments of Python, by the last part of their names."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from matrix_ssl.config import Assignment
from matrix_ssl.errors import ConfigError

Name = TypeVar("Name", bound=str | Path)


def assign(
    keywords: Mapping[str, Any], settings: Mapping[str, Any] | Iterable[str], known: Sequence[str]
) -> list[Assignment]:
    """Assignments for ``config.override``; keywords that no setting has stay as they are, so that it refuses them.

    Args:
        keywords: values by a whole name, or by the last part of one where no other setting has the same; ``width`` is
            ``network.width``, whatever option of this name a method has.
        settings: values by whole names with dots, or texts ``key=value``.
        known: the whole names of all settings.

    Raises:
        ConfigError: a keyword is the last part of several names.
    """
    assignments: list[Assignment] = [(_whole(key, known), _plain(value)) for key, value in keywords.items()]
    if isinstance(settings, Mapping):
        return [*assignments, *((key, _plain(value)) for key, value in settings.items())]
    return [*assignments, *listed(settings)]


def assignments(settings: Mapping[str, Any] | Iterable[str] | None) -> Iterable[Assignment]:
    """Values by the whole names of settings, or texts ``key=value``, for ``config.override``; None: none."""
    if isinstance(settings, Mapping):
        return settings.items()
    return listed(settings or ())


def listed(names: Name | Iterable[Name]) -> list[Name]:
    """Names as a list, a single one too: a text is a sequence of letters otherwise."""
    return [names] if isinstance(names, (str, Path)) else list(names)


def _whole(name: str, known: Sequence[str]) -> str:
    """The name of a setting by its last part; an option of the method only where no other setting of the run has it.

    One of views comes last.
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
    """A value without types of NumPy."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value
