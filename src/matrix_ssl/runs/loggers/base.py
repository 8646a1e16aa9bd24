"""What every logger is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

Line = dict[str, Any]  # of ``metrics.jsonl``


class Logger(ABC):
    """Writes lines of metrics to a place of its own.

    Args:
        run: the run folder, claimed and locked.
        history: the lines up to the step from which the run goes on; later it has those that were written since.

    Attributes:
        name: what the user calls it.
        packages: those that it needs.
        place: where the user finds what it writes, in a sentence.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    place: str

    @abstractmethod
    def __init__(self, run: Path, history: Iterable[Line]):
        """Starts, or goes on where an earlier logger of this run stopped."""

    @abstractmethod
    def write(self, line: Line) -> None:
        """Takes the next line."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Writes what is left; ``finished`` is false where the training stopped before its last step."""


def numbers(line: Line) -> dict[str, float]:
    """The finite numbers of a line but its step."""
    return {
        key: value
        for key, value in line.items()
        if key != "step" and isinstance(value, (int, float)) and math.isfinite(value)
    }
