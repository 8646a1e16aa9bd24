"""A progress bar in the output of a notebook cell."""

import time
from html import escape
from typing import Any

_SECONDS_BETWEEN_UPDATES = 0.25


class NotebookBar:
    """A bar in HTML that is replaced in place; needs IPython, which every notebook has, and no widgets."""

    def __init__(self) -> None:
        from IPython import display

        self._html = display.HTML
        self._handle: Any = display.display(display.HTML(""), display_id=True)
        self._updated = float("-inf")

    def update(self, done: int, total: int, text: str) -> None:
        """Shows the progress with a text next to it, at most a few times a second and always at the end."""
        now = time.monotonic()
        if done < total and now - self._updated < _SECONDS_BETWEEN_UPDATES:
            return
        self._updated = now
        bar = f"<progress value={done} max={max(total, 1)}></progress>"
        self._handle.update(self._html(f"{bar} <code>{escape(text)}</code>"))
