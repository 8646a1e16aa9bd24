"""Matrices of similarities as heat maps, and as tables for a terminal. Uses no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from rich.table import Table

from matrix_ssl.report import svg
from matrix_ssl.report.figures import Figurine, evenly, shortened
from matrix_ssl.report.formats import ABSENT, fixed, number
from matrix_ssl.report.svg import colour
from matrix_ssl.report.terminal import empty_table

MATRICES = {
    "linear_cka": ("Linear CKA", "Unbiased linear CKA: the darker, the more alike, up to 1; values below 0 are "
                   "white."),
    "rsa": ("RSA", "Rank correlation of the dissimilarities of all pairs of images: the darker, the more alike, up to "
            "1."),
    "matrix_kl": ("Matrix KL", "Matrix KL divergence of the Gram matrix of the row from that of the column: the "
                  "darker, the less the column has of what the row tells apart; white is 0."),
}  # fmt: skip
_LABELLED = 16  # names along an axis, at most
_COLUMNS = 8  # of a table for a terminal of 80 columns


def heat_maps(
    table: Mapping[str, Any], rows: Sequence[str], columns: Sequence[str], *, name: str, title: str
) -> list[Figurine]:
    """A heat map for each of the matrices in ``table``, with its numbers below."""
    return [
        _heat_map(np.array(table[key], np.float64), rows, columns, f"{name}-{key}", f"{heading}, {title}", caption)
        for key, (heading, caption) in MATRICES.items() if key in table
    ]  # fmt: skip


def matrix_table(
    matrix: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], title: str
) -> Table:
    """A matrix for a terminal: columns by number, which is also that of the rows if both are the same."""
    table = empty_table(title)
    table.add_column("")
    shown = evenly(len(columns), _COLUMNS)
    for j in shown:
        table.add_column(shortened(columns[j]) if len(columns) <= 3 else f"{j + 1}", justify="right")
    for i, row in enumerate(matrix):
        table.add_row(f"{i + 1} {shortened(rows[i])}", *(_two_digits(row[j]) for j in shown))
    return table


def _heat_map(
    values: Any, rows: Sequence[str], columns: Sequence[str], name: str, title: str, caption: str
) -> Figurine:
    top = 1.0 if not name.endswith("matrix_kl") else float(np.nanmax(values, initial=0.0)) or 1.0
    red, green, blue, _ = to_rgba(colour("series-0"))
    colours = LinearSegmentedColormap.from_list("similarity", [(red, green, blue, 0.0), (red, green, blue, 1.0)])
    with svg.drawing():
        figure = svg.new_figure(40 + 300 * min(1.5, len(rows) / len(columns)) + 8 * max(map(len, columns)) / 3)
        axes = figure.subplots()
        axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=top, linewidth=0)
        axes.invert_yaxis()
        for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
            places = evenly(len(names), _LABELLED)
            axis.set_ticks(places + 0.5, [shortened(names[i]) for i in places])
        axes.tick_params(length=0, colors=colour("soft"), labelsize=svg.TEXT)
        axes.tick_params(axis="x", rotation=90)
        for side in axes.spines.values():
            side.set_color(colour("rule"))
        drawing = svg.inline_svg(figure, name, title=title, description=_describe(values, rows, columns))
    numbers = [["", *columns], *([row, *map(_number, line)] for row, line in zip(rows, values.tolist(), strict=True))]
    return Figurine(name, title, caption, drawing, numbers)


def _describe(values: Any, rows: Sequence[str], columns: Sequence[str]) -> str:
    """The extremes in words."""
    if not np.isfinite(values).any():
        return "Not defined for any pair."
    places = (("lowest", np.nanargmin(values)), ("highest", np.nanargmax(values)))
    texts = []
    for word, place in places:
        i, j = divmod(int(place), len(columns))
        texts.append(f"{word} {number(values[i, j])}, {rows[i]} and {columns[j]}")
    return f"{len(rows)} rows, {len(columns)} columns; {'; '.join(texts)}."


def _number(value: float) -> str:
    return ABSENT if np.isnan(value) else number(round(value, 4))


def _two_digits(value: float | None) -> str:
    return ABSENT if value is None else fixed(value, 2)
