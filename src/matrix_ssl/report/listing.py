"""Images in a table: what a search in a dataset returns, for terminals, as CSV and as a page with thumbnails."""

import base64
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from matrix_ssl.config.untrusted import expanded
from matrix_ssl.errors import ConfigError
from matrix_ssl.report import template
from matrix_ssl.report.formats import common_folder, number
from matrix_ssl.report.terminal import empty_table
from matrix_ssl.runs.files import csv_lines, table_paths, write_atomically
from matrix_ssl.runs.terminal import printable

MOST_ROWS = 20  # on a terminal
MOST_IMAGES = 500  # on a page
ROWS, PAGE = (".csv",), (".html", ".htm")  # how the names of files end

Cell = str | int | float
Thumbnail = Callable[[str], bytes]  # the JPEG file of a small copy of the image at a place


@dataclass(frozen=True, eq=False)
class Listing:
    """Images in the order of an answer, with what is reported about each.

    Attributes:
        title: what it lists.
        sentences: about the whole listing.
        columns: the names of the columns; one is ``path``.
        rows: one row per image, with a cell for every column.
        group: the column by whose values the images are grouped; empty for none.
        shown: maximum number of images of each group on the page.
        thumbnail: reads an image for the page.
        facts: names and values for the page, such as the encoder.
    """

    title: str
    sentences: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    group: str = ""
    shown: int = MOST_IMAGES
    thumbnail: Thumbnail | None = None
    facts: tuple[tuple[str, str], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Cell]:
        """The cells of a column; ValueError if there is no column with that name."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    @property
    def paths(self) -> list[str]:
        """The places of the images."""
        return [str(cell) for cell in self.column("path")]

    def save(self, path: str | Path) -> None:
        """Writes a CSV file in UTF-8, with a header; bytes of file names that are not text stay as they are.

        In another folder than the current one, the paths are absolute, so that the table can be used as data.

        Raises:
            ConfigError: its name does not end in .csv.
            RunFolderError: it cannot be written.
        """
        check_ending(path, ROWS)
        table = expanded(path)
        place = self.columns.index("path")
        paths = table_paths(self.paths, table)
        rows = ((*row[:place], name, *row[place + 1 :]) for row, name in zip(self.rows, paths, strict=True))
        lines = (line.encode(errors="surrogateescape") for line in csv_lines(chain([self.columns], rows)))
        write_atomically(table, lambda file: file.writelines(lines))

    def page(self, path: str | Path) -> Path:
        """Writes a page that opens offline: thumbnails of at most 500 images, by group, with what the table says.

        Raises:
            ConfigError: its name does not end in .html or .htm.
            RunFolderError: it cannot be written.
            DataError: an image cannot be read.
        """
        check_ending(path, PAGE)
        shown = self._first_of_groups(self.shown)[:MOST_IMAGES]
        notes = [*self.sentences[1:]]
        if len(self.rows) > len(shown):
            each = " of the groups" if self.group else ""
            notes.append(f"The page shows the first {len(shown):,} of {len(self.rows):,} images{each}.")
        groups: dict[str, list[dict[str, Any]]] = {}
        folder = common_folder(self.paths) if self.rows else ""
        for row in shown:
            cells = dict(zip(self.columns, row, strict=True))
            heading = (
                f"{self.group.capitalize()} {str(cells.pop(self.group)).removeprefix(folder)}" if self.group else ""
            )
            groups.setdefault(heading, []).append(self._card(cells, folder))
        values = {
            "title": f"{self.title} – matrix-ssl", "heading": self.title, "kind": "matrix-ssl",
            "verdict": self.sentences[:1], "notes": [(text, "") for text in notes],
            "facts": [("Listed", f"{len(self.rows):,}"), *self.facts], "groups": list(groups.items()),
        }  # fmt: skip
        return template.write_page(expanded(path), "listing.html", values)

    def terminal(self, *, saved: Path | None = None) -> list[Any]:
        """A table of about 20 rows, some of every group, and the sentences, for a rich console.

        ``saved`` is the CSV file that all rows are written to; without one, the last sentence says how to get them.
        Places below the current folder are relative to it, and a single query is put above the table.
        """
        shown = self._first_of_groups(max(2, MOST_ROWS // max(1, self._groups())))[:MOST_ROWS]
        single = self.group if self.group == "query" and self._groups() == 1 else ""
        table = empty_table()
        columns = [place for place, name in enumerate(self.columns) if name != single]
        for name in (self.columns[place] for place in columns):
            values = self.column(name)
            table.add_column(name, justify="left" if any(isinstance(cell, str) for cell in values) else "right",
                             overflow="fold", no_wrap=name not in ("path", "query"))  # fmt: skip
        here = str(Path.cwd()) + os.sep
        for row in shown:
            table.add_row(*(_text(row[place]).removeprefix(here) for place in columns))
        more = len(self.rows) - len(shown)
        where = f"all are in {saved}" if saved else "--out FILE.csv writes all, --page FILE.html shows them"
        rest = [f"{more:,} more: {where}."] if more > 0 else []
        above = [f"{single}: {str(self.column(single)[0]).removeprefix(here)}"] if single else []
        return [*above, *([table] if self.rows else []), *self.sentences, *rest]

    def __repr__(self) -> str:
        lines = ["  ".join(map(_text, row)) for row in (self.columns, *self.rows[:MOST_ROWS])]
        return "\n".join([f"{self.title}: {len(self)} images", *map(printable, lines)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        rows = ("".join(f"<td>{escape(printable(_text(cell)))}</td>" for cell in row) for row in self.rows[:MOST_ROWS])
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        caption = escape(f"{self.title}: {len(self)} images")
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _groups(self) -> int:
        return len(set(self.column(self.group))) if self.group else 1

    def _first_of_groups(self, most: int) -> list[tuple[Cell, ...]]:
        """The first ``most`` rows of every group; all rows of a listing without groups."""
        if not self.group:
            return list(self.rows)
        counts: Counter[Cell] = Counter()
        kept = []
        for name, row in zip(self.column(self.group), self.rows, strict=True):
            counts[name] += 1
            kept += [row] if counts[name] <= most else []
        return kept

    def _card(self, cells: dict[str, Cell], folder: str) -> dict[str, Any]:
        """What the page shows of an image, with its place relative to the folder common to all."""
        place = str(cells.pop("path"))
        image = "" if self.thumbnail is None else base64.b64encode(self.thumbnail(place)).decode("ascii")
        return {
            "place": printable(place.removeprefix(folder)),
            "image": f"data:image/jpeg;base64,{image}" if image else "",
            "lines": [(name, printable(_text(cell))) for name, cell in cells.items() if cell != ""],
        }


def numbered(rows: Sequence[Sequence[Cell]]) -> tuple[tuple[Cell, ...], ...]:
    """Rows preceded by their rank, from 1."""
    return tuple((rank, *row) for rank, row in enumerate(rows, 1))


def _text(cell: Cell) -> str:
    return number(cell) if isinstance(cell, float) else str(cell)


def check_ending(path: str | Path, endings: Sequence[str]) -> None:
    """Raises ConfigError unless a name ends, in upper or lower case, as files of its kind do: ``ROWS`` or ``PAGE``."""
    if not os.fspath(path).lower().endswith(tuple(endings)):
        what = "a table of all rows" if endings == ROWS else "a page"
        raise ConfigError(f"{path}: {what} is written to a {' or '.join(endings)} file.")
