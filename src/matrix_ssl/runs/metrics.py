"""The lines of metrics of a run, ``metrics.jsonl``, and TensorBoard events.

A resumed run first drops the lines after its checkpoint, and a last line cut by a kill.
"""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from matrix_ssl.errors import MissingExtra
from matrix_ssl.runs.files import append_line, read_lines, write_lines
from matrix_ssl.runs.folder import METRICS


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and to TensorBoard events, after it has dropped the lines after ``after_step``."""

    def __init__(self, run: Path, *, after_step: int, events: Path | None = None):
        self.history = [line for line in read_lines(run / METRICS) if line["step"] <= after_step]
        self._path = run / METRICS
        write_lines(self._path, self.history)
        self._events: Any = None
        if events is not None:
            check_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(events, purge_step=after_step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line; numbers that are not finite become null."""
        self.history.append(line)
        append_line(self._path, line)
        if self._events is not None:
            for key, value in line.items():
                if isinstance(value, (int, float)) and key != "step":
                    self._events.add_scalar(key, value, line["step"])
            self._events.flush()


def check_tensorboard() -> None:
    """Raises MissingExtra where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("tensorboard", "tensorboard")
