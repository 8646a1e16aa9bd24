"""The lines of metrics of a run, ``metrics.jsonl``, and the loggers that get them, too.

A resumed run first drops the lines after its checkpoint, and a last line cut by a kill. A file may have a million
lines: they are read one at a time, and of those that are past a training remembers a few.
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
    """The lines of a run, read from its file each time that they are gone through.

    To go through them raises RunFolderError where they are damaged, or of a different run. The first line carries the
    identity of the run.
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
    """All lines of a run; RunFolderError as ``Metrics``."""
    return list(Metrics(run))


class History:
    """What a training remembers of its lines of metrics: the first two, the newest, and the kinds of their alarms.

    Attributes:
        first: the first two lines.
        newest: the newest lines, eight at most.
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
        """Takes the next line."""
        if self._count < 2:
            self.first.append(line)
        self.newest.append(line)
        self.alarms |= set(map(kind_of_alarm, line.get("alarm") or ()))
        self._count += 1

    def ends(self, newest: int, *, start: int) -> list[dict[str, Any]]:
        """Line number ``start``, 0 or 1, and the newest ones after it, at most so many."""
        after = min(newest, max(0, self._count - start - 1))
        return [*self.first[start : start + 1], *list(self.newest)[len(self.newest) - after :]]


def kind_of_alarm(text: str) -> str:
    """The KIND of an alarm "KIND: sentence"."""
    return text.partition(":")[0]


class MetricsWriter:
    """Appends to ``metrics.jsonl``, after it has dropped the lines after ``after_step``, and tells the loggers.

    Args:
        loggers: names, keys of ``loggers.LOGGERS``.
        say: gets a sentence on where each logger writes, and one on each that fails.

    Attributes:
        lines: all lines, read from the file.
        history: what is remembered of them.
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
        """Adds a line and returns it, the first with the identity; in the file, numbers not finite are null."""
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
        """Ends the loggers; ``finished`` is false where the training stopped before its last step."""
        while self._loggers:
            logger = self._loggers.pop()
            try:
                logger.close(finished=finished)
            except Exception as error:
                self._say(failure(logger, error))
