"""The display while a run trains: a bar on a terminal or in a notebook, else lines; nothing on other processes."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from matrix_ssl.runs.notebook import NotebookBar
from matrix_ssl.runs.terminal import Terminal

_SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Shows the progress of a run on standard error: a live bar on a terminal, a line every ten seconds elsewhere.

    In a notebook the bar appears in the output of the cell.

    Args:
        quiet: show nothing, for processes other than the first.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        self._console = console or Terminal(sys.stderr, quiet=quiet)
        self._bar: Progress | None = None
        self._notebook: NotebookBar | None = None
        self._last = 0.0

    def say(self, text: str) -> None:
        """Prints a sentence above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def training(self, *, done: int, total: int) -> Iterator["Display"]:
        """Shows steps from ``done`` to ``total`` until the block ends."""
        self._first, self._total, self._started, self._last = done, total, time.monotonic(), 0.0
        self._text = ""
        if self._in_notebook():
            self._notebook = NotebookBar()
            yield self
        elif self._console.is_terminal and not self._console.quiet:
            columns = (
                TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            )  # fmt: skip
            with Progress(*columns, console=self._console, transient=False, expand=True) as self._bar:
                self._task = self._bar.add_task("", total=total, completed=done, rate="", text="")
                yield self
            self._bar = None
        else:
            yield self

    def step(self, done: int, images: int, line: dict[str, Any] | None, terms: tuple[str, ...]) -> None:
        """Shows that ``done`` steps of ``images`` images are complete, with loss and ``terms`` of a new line."""
        if line is not None:
            names = {"loss": "loss"} | {t: t for t in terms} | {"effective_rank": "effective rank"}
            self._text = "  ".join(f"{names[key]} {line[key]:.4g}" for key in names if line.get(key) is not None)
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (done - self._first) / seconds
        left = _clock((self._total - done) / rate if rate else float("inf"))
        speed = f"{_speed(rate * images)} img/s"
        text = f"step {done}/{self._total}  {speed}  {left} left  {self._text}"
        if self._notebook is not None:
            self._notebook.update(done, self._total, text)
        elif self._bar is not None:
            self._bar.update(self._task, completed=done, rate=speed, text=self._text)
        elif seconds - self._last >= _SECONDS_BETWEEN_LINES or done == self._total:
            self._last = seconds
            self.say(text)

    @contextmanager
    def bar(self, what: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
        """A bar over images or another unit while the block runs; yields the function to call with (done, total)."""
        if self._in_notebook():
            notebook = NotebookBar()
            yield lambda done, total: notebook.update(done, total, f"{what} {done:,} of {total:,} {unit}")
            return
        if not self._console.is_terminal or self._console.quiet:
            yield lambda done, total: None
            return
        count = TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}")
        columns = (TextColumn(what), BarColumn(bar_width=24), count, TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("", total=0)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def _in_notebook(self) -> bool:
        return self._console.is_jupyter and not self._console.quiet


def _speed(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
