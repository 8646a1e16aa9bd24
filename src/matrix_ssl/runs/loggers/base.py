"""The interface of all loggers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

Line = dict[str, Any]  # one line of ``metrics.jsonl``


class Logger(ABC):
    """Writes lines of metrics to a place of its own.

    Args:
        run: the run folder, claimed and locked.
        history: the lines up to the step from which the run continues; later, also those written since.

    Attributes:
        name: the name by which the user selects it.
        packages: the packages that it needs.
        place: a sentence on where the user finds what it writes.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    place: str

    @abstractmethod
    def __init__(self, run: Path, history: Iterable[Line]):
        """Starts, or continues where an earlier logger of this run stopped."""

    @abstractmethod
    def write(self, line: Line) -> None:
        """Writes the next line."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Writes what is left; ``finished`` is false if the training stopped before its last step."""


def numbers(line: Line) -> dict[str, float]:
    """The finite numbers of a line, except its step."""
    return {
        key: value
        for key, value in line.items()
        if key != "step" and isinstance(value, (int, float)) and math.isfinite(value)
    }
