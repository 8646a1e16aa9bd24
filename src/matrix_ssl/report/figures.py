"""Curves over an axis, in stacked panels: inline SVG with a caption, a text alternative and a table of numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from matrix_ssl.report import svg
from matrix_ssl.report.formats import number, whole
from matrix_ssl.report.svg import colour
from matrix_ssl.runs.terminal import printable

MAX_POINTS = 400  # of one curve; more would not be visible at this width
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 shapes against 10 colours: the pair is unique for 70 names
STEPS = [1, 2, 2.5, 5, 10]  # distances between ticks, times a power of ten

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Figurine:
    """A figure on a page: drawing, caption, and its numbers as a table whose first row is the header."""

    name: str
    title: str
    caption: str
    svg: str
    table: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Curve:
    """A quantity along an axis; ``low`` and ``high`` bound a band around it.

    ``style`` has arguments for matplotlib's ``plot``; without them, the curves of a panel alternate between the series
    colours. ``legend`` is the name in the legend, if it is not the label. ``missing`` counts values that were not
    finite. A point is the mean of ``each`` neighbouring values, of which ``low`` and ``high`` are the extremes.
    """

    label: str
    x: NDArray[Any]
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    style: Mapping[str, Any] = field(default_factory=dict)
    legend: str = ""
    missing: int = 0
    each: int = 1


@dataclass(frozen=True)
class Panel:
    """One pair of axes with curves of one unit, and the fixed ends of the vertical axis, if any."""

    label: str
    curves: Sequence[Curve]
    bottom: float | None = None
    top: float | None = None


def at_step(x: float, y: float) -> str:
    """A point of a training curve in words."""
    return f"{number(y)} at step {whole(x)}"


def stacked(
    name: str,
    title: str,
    panels: Sequence[Panel],
    caption: str,
    *,
    axis: str = "step",
    point: Callable[[float, float], str] = at_step,
    shared: bool = True,
    scale: Literal["linear", "log"] = "linear",
) -> Figurine | None:
    """Stacks the panels that have curves; None if there are none.

    Args:
        name: unique on the page.
        title: heading and short text alternative.
        caption: sentences; remarks on thinned, missing and hidden values follow.
        axis: name of the horizontal axis.
        point: writes a point (x, y) in words.
        shared: one horizontal axis for all panels.
        scale: of the horizontal axis; "log" has a tick at every point.
    """
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        return None
    styles = _styles(panels)
    named = {
        curve.legend or curve.label: styles[curve.label]
        for panel in panels for curve in panel.curves if curve.style or len(panel.curves) > 1
    }  # fmt: skip
    whole_numbers = all(np.issubdtype(curve.x.dtype, np.integer) for panel in panels for curve in panel.curves)
    with svg.drawing():
        rows = -(-len(named) // legend_columns([shortened(label) for label in named], handle=8)) if named else 0
        figure = svg.new_figure(45 + 17 * rows + (205 if len(panels) == 1 else 140 * len(panels)))
        all_axes = figure.subplots(len(panels), 1, sharex=shared, squeeze=False)[:, 0]
        hidden = sum(_draw(axes, panel, styles) for axes, panel in zip(all_axes, panels, strict=True))
        for axes in all_axes:
            axes.set_xscale(scale)
            if scale == "log":
                axes.xaxis.set_major_locator(FixedLocator(sorted({x for p in panels for c in p.curves for x in c.x})))
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=whole_numbers))
            axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        all_axes[-1].set_xlabel(axis, loc="right", color=colour("soft"))
        if named:
            handles = [Line2D([], [], linewidth=1.8, markersize=5, **style) for style in named.values()]
            legend(figure, [shortened(label) for label in named], handles, handle=8)
        lines = [(_name(panel, curve, panels), curve) for panel in panels for curve in panel.curves]
        description = " ".join(_describe(label, curve, point) for label, curve in lines)
        drawing = svg.inline_svg(figure, name, title=title, description=description)
    curves = [curve for _, curve in lines]
    return Figurine(name, title, caption + _remarks(curves, hidden), drawing, _table(lines, point))


def thin(curve: Curve, limit: int = MAX_POINTS) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """At most ``limit`` runs of neighbouring points: means of x and of y, smallest and largest value of each run."""
    starts = np.unique(np.linspace(0, len(curve.y), min(limit, len(curve.y)), endpoint=False).astype(np.int64))
    counts = np.diff(np.append(starts, len(curve.y)))
    low, high = _bounds(curve)
    return (
        np.add.reduceat(curve.x.astype(np.float64), starts) / counts,
        np.add.reduceat(curve.y, starts) / counts,
        np.minimum.reduceat(low, starts),
        np.maximum.reduceat(high, starts),
    )


def evenly(n: int, at_most: int) -> NDArray[np.int64]:
    """Up to ``at_most`` of the indices 0 to n - 1, evenly spaced, including the first and the last."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64)) if n else np.zeros(0, np.int64)


def legend(figure: Figure, names: Sequence[str], handles: Sequence[Any], *, handle: int = 5) -> None:
    """The names of ``handles``, which are what was drawn, below the axes, row by row; ``handle``: width in letters."""
    columns = legend_columns(names, handle=handle)
    order = [place for column in range(columns) for place in range(column, len(names), columns)]  # as Matplotlib fills
    below = figure.legend(
        [handles[place] for place in order], [names[place] for place in order], loc="outside lower center",
        ncols=columns, frameon=False, labelcolor=colour("ink"), fontsize=svg.TEXT, handlelength=0.64 * handle - 1.9,
        handletextpad=0.5, columnspacing=1.3,
    )  # fmt: skip
    for mark in below.legend_handles:
        if isinstance(mark, PathCollection):
            mark.set_sizes([30])


def legend_columns(names: Sequence[str], *, handle: int) -> int:
    """How many columns of a legend are sure to fit: as few as its rows need."""
    fitting = max(1, min(len(names), 54 // (max(map(len, names)) + handle)))
    return -(-len(names) // -(-len(names) // fitting))


def shortened(name: str) -> str:
    """The name, without its middle if it is too long for a drawing, and with escapes for what is not printable."""
    name = printable(name)
    return name if len(name) <= 20 else f"{name[:10]}…{name[-9:]}"


def _styles(panels: Sequence[Panel]) -> dict[str, Mapping[str, Any]]:
    """Colour, dash and marker by label: the same in all panels."""
    labels = list(dict.fromkeys(c.label for panel in panels if len(panel.curves) > 1 for c in panel.curves))
    styles: dict[str, Mapping[str, Any]] = {}
    for curve in (curve for panel in panels for curve in panel.curves):
        place = labels.index(curve.label) if curve.label in labels else 0
        series = {"color": colour(f"series-{place % 2}"), "linestyle": "--" if place % 2 else "-"}
        styles[curve.label] = series | dict(curve.style)
    return styles


def _draw(axes: Axes, panel: Panel, styles: Mapping[str, Mapping[str, Any]]) -> int:
    """Draws the curves; returns how many values lie beyond the axis."""
    svg.plain_axes(axes)
    for i, curve in enumerate(panel.curves):
        x, y, low, high = thin(curve)
        style = styles[curve.label]
        if len(x) > 1 and np.any(high > low):
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        every = max(1, len(x) // 5)  # markers of curves that run close to each other do not cover one another
        marker = {"marker": "o"} if len(x) == 1 else {}
        axes.plot(x, y, linewidth=1.8, markersize=5, markevery=(i % every, every), **marker | dict(style))
    axes.set_title(panel.label, loc="left", color=colour("ink"), fontsize=svg.TEXT, pad=8)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))
    return _limit(axes, panel)


def _limit(axes: Axes, panel: Panel) -> int:
    """Limits the vertical axis: to the ends set by the panel, and without rare outliers that would flatten the rest."""
    values = np.concatenate([curve.y for curve in panel.curves])
    low, high = np.quantile(values, [0.01, 0.99])
    margin = 0.5 * (high - low)
    hidden = 0
    if high > low and np.ptp(values) > 10 * (high - low):
        axes.set_ylim(max(values.min(), low - margin), min(values.max(), high + margin))
        hidden = int(np.count_nonzero((values < low - margin) | (values > high + margin)))
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom if panel.bottom is None else panel.bottom, top if panel.top is None else panel.top)
    return hidden


def _tick(value: float, _position: int | None = None) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit:
            return f"{value / unit:g}{name}"
    return f"{value:,g}"


def _name(panel: Panel, curve: Curve, panels: Sequence[Panel]) -> str:
    """The label of a curve, after that of its panel if there are several panels."""
    return curve.label if len(panels) == 1 or curve.label == panel.label else f"{panel.label}: {curve.label}"


def _describe(label: str, curve: Curve, point: Callable[[float, float], str]) -> str:
    bounds = _bounds(curve)
    low, high = int(bounds[0].argmin()), int(bounds[1].argmax())
    return (
        f"{label}: {point(curve.x[0], curve.y[0])}, {point(curve.x[-1], curve.y[-1])}; "
        f"lowest {point(curve.x[low], bounds[0][low])}, highest {point(curve.x[high], bounds[1][high])}."
    )


def _bounds(curve: Curve) -> tuple[Numbers, Numbers]:
    return (curve.y if curve.low is None else curve.low), (curve.y if curve.high is None else curve.high)


def _remarks(curves: Sequence[Curve], hidden: int) -> str:
    text = ""
    group = max(curve.each * -(-len(curve.y) // MAX_POINTS) for curve in curves)
    if group > 1:
        text += f" The line is the mean of up to {group} neighbouring values, the band spans all of them."
    if missing := sum(curve.missing for curve in curves):
        text += f" Values skipped because they are not finite: {whole(missing)}."
    if hidden:
        text += f" Outliers beyond the vertical axis: {whole(hidden)}."
    return text


def _table(lines: Sequence[tuple[str, Curve]], point: Callable[[float, float], str]) -> list[list[str]]:
    """Every curve at five of its points."""
    rows = [["", "first", "25%", "50%", "75%", "last"]]
    for label, curve in lines:
        n = len(curve.y) - 1
        rows.append([label, *(point(curve.x[i], curve.y[i]) for i in (0, n // 4, n // 2, 3 * n // 4, n))])
    return rows
