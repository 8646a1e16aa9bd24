"""The lines of metrics of a run, ``metrics.jsonl``, and the loggers that get them, too.

A resumed run first drops the lines after its checkpoint, and a last line cut by a kill.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs.files import append_line, read_lines, write_lines
from matrix_ssl.runs.folder import METRICS, check_owner, identity
from matrix_ssl.runs.loggers import failure, open_loggers


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run; RunFolderError where they are damaged, or of a different run.

    The first line carries the identity of the run.
    """
    lines = read_lines(run / METRICS)
    for number, line in enumerate(lines, 1):
        if type(line.get("step")) is not int:
            raise RunFolderError(f"{run / METRICS} is damaged: line {number} has no step. Remove it to go on without.")
    check_owner(run / METRICS, lines[0].get("run") if lines else None, run)
    return lines


class MetricsWriter:
    """Appends to ``metrics.jsonl``, after it has dropped the lines after ``after_step``, and tells the loggers.

    Args:
        loggers: names, keys of ``loggers.LOGGERS``.
        say: gets a sentence on where each logger writes, and one on each that fails.
    """

    def __init__(
        self, run: Path, *, after_step: int, loggers: Collection[str] = (), say: Callable[[str], None] = print
    ):
        lines = read_metrics(run)
        self.history = [line for line in lines if line["step"] <= after_step]
        self._path, self._say, self._identity = run / METRICS, say, identity(run)
        write_lines(self._path, self.history)
        self._loggers = open_loggers(loggers, run, self.history)
        for logger in self._loggers:
            say(logger.place)

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line; numbers that are not finite become null."""
        if not self.history and self._identity:
            line = {**line, "run": self._identity}
        self.history.append(line)
        append_line(self._path, line)
        for logger in list(self._loggers):
            try:
                logger.write(line)
            except Exception as error:
                self._say(failure(logger, error))
                self._loggers.remove(logger)

    def close(self, *, finished: bool) -> None:
        """Ends the loggers; ``finished`` is false where the training stopped before its last step."""
        while self._loggers:
            logger = self._loggers.pop()
            try:
                logger.close(finished=finished)
            except Exception as error:
                self._say(failure(logger, error))
