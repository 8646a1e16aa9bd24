"""The lines of metrics of a run, ``metrics.jsonl``, and the loggers that also receive them.

A resumed run first drops the lines after its checkpoint, and a last line truncated by a kill. A file may have a million
lines: they are read one at a time, and a training remembers only a few of the earlier ones.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs.files import append_line, iterate_lines, write_lines
from matrix_ssl.runs.folder import METRICS, check_owner, identity
from matrix_ssl.runs.loggers import failure, open_loggers

_NEWEST = 8  # lines that a history remembers


class Metrics:
    """The lines of a run, read from its file on every iteration.

    Iterating raises RunFolderError if they are damaged or of a different run. The first line carries the identity of
    the run.
    """

    def __init__(self, run: Path):
        self._run = run

    def __iter__(self) -> Iterator[dict[str, Any]]:
        path = self._run / METRICS
        for number, line in enumerate(iterate_lines(path), 1):
            if type(line.get("step")) is not int:
                raise RunFolderError(f"{path} is damaged: line {number} has no step. Remove it to go on without.")
            if number == 1:
                check_owner(path, line.get("run"), self._run)
            yield line


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run; RunFolderError as for ``Metrics``."""
    return list(Metrics(run))


class History:
    """What a training remembers of its lines of metrics: the first two, the newest, and the kinds of their alarms.

    Attributes:
        first: the first two lines.
        newest: the newest lines, at most eight.
        alarms: the kinds of all alarms; an alarm is "KIND: sentence".
    """

    def __init__(self) -> None:
        self.first: list[dict[str, Any]] = []
        self.newest: deque[dict[str, Any]] = deque(maxlen=_NEWEST)
        self.alarms: set[str] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, line: dict[str, Any]) -> None:
        """Adds the next line."""
        if self._count < 2:
            self.first.append(line)
        self.newest.append(line)
        self.alarms |= set(map(kind_of_alarm, line.get("alarm") or ()))
        self._count += 1

    def ends(self, newest: int, *, start: int) -> list[dict[str, Any]]:
        """Line number ``start``, 0 or 1, and at most ``newest`` of the newest lines after it."""
        after = min(newest, max(0, self._count - start - 1))
        return [*self.first[start : start + 1], *list(self.newest)[len(self.newest) - after :]]


def kind_of_alarm(text: str) -> str:
    """The KIND of an alarm "KIND: sentence"."""
    return text.partition(":")[0]


class MetricsWriter:
    """Drops the lines after ``after_step`` from ``metrics.jsonl``, then appends to it and passes lines to the loggers.

    Args:
        loggers: names of loggers, keys of ``loggers.LOGGERS``.
        say: called with a sentence on where each logger writes, and one on each that fails.

    Attributes:
        lines: all lines, read from the file.
        history: what is remembered about them.
    """

    def __init__(
        self, run: Path, *, after_step: int, loggers: Collection[str] = (), say: Callable[[str], None] = print
    ):
        self.lines, self.history = Metrics(run), History()
        self._path, self._say, self._identity = run / METRICS, say, identity(run)
        write_lines(self._path, self._kept(after_step))
        self._loggers = open_loggers(loggers, run, self.lines)
        for logger in self._loggers:
            say(logger.place)

    def _kept(self, after_step: int) -> Iterator[dict[str, Any]]:
        for line in self.lines:
            if line["step"] <= after_step:
                self.history.add(line)
                yield line

    def write(self, line: dict[str, Any]) -> dict[str, Any]:
        """Adds a line and returns it, the first with the run's identity; the file has null for non-finite numbers."""
        if not self.history and self._identity:
            line = {**line, "run": self._identity}
        self.history.add(line)
        append_line(self._path, line)
        for logger in list(self._loggers):
            try:
                logger.write(line)
            except Exception as error:
                self._say(failure(logger, error))
                self._loggers.remove(logger)
        return line

    def close(self, *, finished: bool) -> None:
        """Closes the loggers; ``finished`` is false if the training stopped before its last step."""
        while self._loggers:
            logger = self._loggers.pop()
            try:
                logger.close(finished=finished)
            except Exception as error:
                self._say(failure(logger, error))
