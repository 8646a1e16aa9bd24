"""Loggers that write files into the run folder: a table, and events for TensorBoard."""

import csv
import io
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from matrix_ssl.config.untrusted import append
from matrix_ssl.runs.files import cannot_write, write_atomically
from matrix_ssl.runs.loggers.base import Line, Logger, numbers


class CSVLogger(Logger):
    """``metrics.csv``: a row for each line; a number that first appears later adds a column to the whole table."""

    name = "csv"

    def __init__(self, run: Path, history: Iterable[Line]):
        self.path = run / "metrics.csv"
        self.place = f"Metrics as a table: {self.path}."
        self._history = history
        self._columns: list[str] = []
        self._write_all()

    def write(self, line: Line) -> None:
        if numbers(line).keys() <= set(self._columns):
            try:
                append(self.path, self._row(line))
            except OSError as error:
                raise cannot_write(self.path, error) from error
        else:
            self._write_all()  # the history already includes the line

    def close(self, *, finished: bool) -> None:
        """Does nothing: every row has been written."""

    def _write_all(self) -> None:
        self._columns = ["step", *dict.fromkeys(key for line in self._history for key in numbers(line))]
        head = ",".join(self._columns) + "\n"
        rows = (self._row(line) for line in self._history)
        write_atomically(self.path, lambda file: file.writelines(chain([head.encode()], rows)))

    def _row(self, line: Line) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow({"step": line["step"], **numbers(line)})
        return text.getvalue().encode()


class TensorBoardLogger(Logger):
    """Events in ``tensorboard/``; each session writes all lines so far and hides the events of earlier sessions.

    So repeated steps appear once, and steps without a logger, or with one that failed, appear as well.
    """

    name = "tensorboard"
    packages = ("tensorboard",)

    def __init__(self, run: Path, history: Iterable[Line]):
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        self.place = f"TensorBoard events: tensorboard --logdir {folder}"
        self._writer = SummaryWriter(folder, purge_step=0 if any(folder.glob("events.*")) else None)
        for line in history:
            self._add(line)

    def write(self, line: Line) -> None:
        self._add(line)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()

    def _add(self, line: Line) -> None:
        for key, value in numbers(line).items():
            self._writer.add_scalar(key, value, line["step"])
