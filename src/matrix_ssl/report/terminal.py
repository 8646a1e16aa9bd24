"""Tables for a terminal."""

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text


def empty_table(title: str | Text | None = None) -> Table:
    """A table without columns and rows, in the style of all commands."""
    return Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
