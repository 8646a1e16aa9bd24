"""The figures of a comparison: every method keeps one colour, dash and marker throughout. Imports no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from matrix_ssl.report import svg
from matrix_ssl.report.comparison.data import Arm, Comparison, Group
from matrix_ssl.report.comparison.words import points
from matrix_ssl.report.run.figures import Figurine, duration, number
from matrix_ssl.report.svg import colour

MAX_POINTS = 200  # of one line; more would not be seen at this width
# 10 colours, 7 markers and 4 dashes with lengths that share no divisor but 1 and 2: neighbours differ in all three
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_STEPS = [1, 2, 2.5, 5, 10]


@dataclass(frozen=True)
class Line:
    """A quantity of one arm along an axis: mean, least and largest value over ``seeds`` runs at each point."""

    arm: Arm
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    seeds: int


@dataclass(frozen=True)
class Panel:
    """One pair of axes; ``text`` writes a point (x, y) in words."""

    label: str
    lines: Sequence[Line]
    text: Callable[[float, float], str]


def look(arm: Arm) -> dict[str, Any]:
    """Colour, marker and dash of an arm's method, different for 70 methods."""
    place = arm.place
    return {
        "color": colour(f"class-{place % 10}"),
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _DASHES[place % len(_DASHES)],
    }


def line(arm: Arm, x: str, y: str, *, scale: float = 1.0) -> Line | None:
    """The curve of an arm, averaged at the steps that all its runs with that quantity have; None without any."""
    curves = []
    for run in arm.runs:
        points_of_run = {p["step"]: (p[x], scale * p[y]) for p in run.curve if {"step", x, y} <= p.keys()}
        if points_of_run:
            curves.append(points_of_run)
    steps = sorted(set(curves[0]).intersection(*curves)) if curves else []
    if not steps:
        return None
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS)).round().astype(int))
    values = np.array([[curve[steps[i]] for i in kept] for curve in curves])  # (runs, points, 2)
    ys = values[..., 1]
    return Line(arm, values[..., 0].mean(0), ys.mean(0), ys.min(0), ys.max(0), len(curves))


def intervals(c: Comparison) -> Figurine | None:
    """Differences of the main measure to the reference with their intervals; None without any."""
    found = [(arm, d) for arm in c.ranked if (d := c.difference(arm, c.main.key))]
    if not found or c.reference is None:
        return None
    title = f"Difference from {c.reference.label}, {c.main.heading}"
    with svg.drawing():
        figure = svg.new_figure(70 + 30 * len(found))
        axes = figure.add_subplot()
        _sideways(axes)
        axes.axvline(0, color=colour("soft"), linewidth=1)
        for y, (arm, d) in enumerate(found):
            style = look(arm)
            if d.low is not None and d.high is not None:
                axes.plot([100 * d.low, 100 * d.high], [y, y], color=style["color"], linewidth=2.2)
            axes.plot(100 * d.mean, y, color=style["color"], marker=style["marker"], markersize=7, linestyle="")
        axes.set_yticks(range(len(found)), [_broken(arm.label) for arm, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.set_xlabel("percentage points", loc="right", color=colour("soft"))
        description = " ".join(f"{arm.label}: {points(d.mean, sign='+')} points{_reach(d)}." for arm, d in found)
        drawing = svg.inline_svg(figure, "intervals", title=title, description=description)
    caption = f"Right of the line: better than {c.reference.label}. A mark is the mean over the seeds that both have"
    if any(d.low is not None for _, d in found):
        caption += ", a bar its 95% interval (paired t). A bar that crosses the line is no clear difference."
    else:
        caption += "; with one seed there is no interval."
    return Figurine("intervals", title, caption, drawing)


def accuracy_over_time(groups: Sequence[Group]) -> Figurine | None:
    """Accuracy on held-out training images against the time of the pre-training; None where it was not followed."""
    panels = [
        Panel(
            _panel_label("20-NN accuracy in %", group, groups),
            _present(line(arm, "seconds", "knn_20_held_out", scale=100) for arm in group.arms),
            lambda x, y: f"{y:.1f}% after {duration(x)}",
        )
        for group in groups
    ]
    caption = (
        "20-NN accuracy on training images that are not among the labelled neighbours, against the time of the "
        "pre-training. Higher and further left is better: more accuracy for less computing. No test image takes part."
    )
    return _lines("time", "Accuracy against time", caption, panels, axis="seconds", shared=len(groups) == 1)


def rank_and_entropy(groups: Sequence[Group]) -> Figurine | None:
    """Effective rank and matrix entropy of the features over the epochs; None where they were not followed."""
    panels = []
    for group in groups:
        for key, label in (("effective_rank", "effective rank"), ("matrix_entropy", "matrix entropy (nats)")):
            lines = _present(line(arm, "epoch", key) for arm in group.arms)
            text = lambda x, y: f"{number(y)} at epoch {number(x)}"  # noqa: E731
            panels.append(Panel(_panel_label(label, group, groups), lines, text))
    caption = (
        "Entropy of the eigenvalues of the trace-one covariance of the features, and its exponential, the effective "
        "rank: how many directions the features use. A rank that falls towards 1 is collapse; a higher one is not by "
        "itself better."
    )
    return _lines("rank", "Effective rank and matrix entropy", caption, panels, axis="epoch", shared=len(groups) == 1)


def _lines(name: str, title: str, caption: str, panels: Sequence[Panel], *, axis: str, shared: bool) -> Figurine | None:
    """Panels below each other; ``shared``: over one horizontal axis, else each over its own."""
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return None
    arms = list({entry.arm.label: entry.arm for panel in panels for entry in panel.lines}.values())
    methods = list({arm.place: arm for arm in arms}.values())
    names = [_shortened(arm.label.partition(", ")[0] if len(panels) > 1 else arm.label) for arm in methods]
    with svg.drawing():
        columns = max(1, min(len(names), 54 // (max(map(len, names)) + 8)))
        height = 60 + 17 * -(-len(names) // columns) + (220 if len(panels) == 1 else 170 * len(panels))
        figure = svg.new_figure(height)
        all_axes = figure.subplots(len(panels), 1, sharex=shared, squeeze=False)[:, 0]
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw(axes, panel)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        all_axes[-1].set_xlabel(axis, loc="right", color=colour("soft"))
        _legend(figure, methods, names, columns)
        described = " ".join(f"{p.label}: {'; '.join(_describe(p, entry) for entry in p.lines)}." for p in panels)
        drawing = svg.inline_svg(figure, name, title=title, description=described)
    seeds = max(entry.seeds for panel in panels for entry in panel.lines)
    spread = f" Lines are means over up to {seeds} seeds, bands span all seeds." if seeds > 1 else " One seed a method."
    return Figurine(name, title, caption + spread, drawing, _table(panels))


def _draw(axes: Axes, panel: Panel) -> None:
    svg.plain_axes(axes)
    for entry in panel.lines:
        style = look(entry.arm)
        if entry.seeds > 1 and len(entry.x) > 1:
            axes.fill_between(entry.x, entry.low, entry.high, color=style["color"], alpha=0.12, linewidth=0)
        every = max(1, len(entry.x) // 5)
        first = entry.arm.place % every  # markers of lines that run close to each other do not cover one another
        axes.plot(entry.x, entry.mean, **style, linewidth=1.7, markersize=5, markevery=(first, every))
    axes.set_title(panel.label, loc="left", color=colour("ink"), fontsize=svg.TEXT, pad=8)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _legend(figure: Figure, arms: Sequence[Arm], names: Sequence[str], columns: int) -> None:
    """Below the axes, with handles long enough to show dash and marker."""
    handles = [Line2D([], [], **look(arm), linewidth=1.7, markersize=5) for arm in arms]
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, labelcolor=colour("ink"),
        fontsize=svg.TEXT, handlelength=3.2, handletextpad=0.6, columnspacing=1.3,
    )  # fmt: skip


def _sideways(axes: Axes) -> None:
    """Axes for marks in rows: vertical grid lines, names in the colour of text."""
    svg.plain_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=colour("rule"), linewidth=0.8)
    axes.tick_params(axis="y", labelcolor=colour("ink"))


def _describe(panel: Panel, entry: Line) -> str:
    first, last = panel.text(entry.x[0], entry.mean[0]), panel.text(entry.x[-1], entry.mean[-1])
    text = f"{entry.arm.label} {first}, {last}"
    if entry.seeds == 1:
        return text
    return f"{text} (from {number(entry.low[-1])} to {number(entry.high[-1])} over {entry.seeds} seeds)"


def _table(panels: Sequence[Panel]) -> list[list[str]]:
    """Each line at its first, middle and last point."""
    rows = [["", "first", "middle", "last"]]
    for panel in panels:
        for entry in panel.lines:
            cells = [panel.text(entry.x[i], entry.mean[i]) for i in (0, len(entry.x) // 2, -1)]
            name = entry.arm.label if len(panels) == 1 else f"{entry.arm.label}: {panel.label.partition(' (')[0]}"
            rows.append([name, *cells])
    return rows


def _panel_label(label: str, group: Group, groups: Sequence[Group]) -> str:
    return label if len(groups) == 1 else f"{label}: {group.title.partition(' (')[0]}"


def _reach(d: Any) -> str:
    return "" if d.low is None or d.high is None else f" ({points(d.low)} to {points(d.high)}, {d.n} seeds)"


def _present(lines: Any) -> list[Line]:
    return [entry for entry in lines if entry is not None]


def _broken(label: str) -> str:
    name, comma, epochs = label.partition(", ")
    return f"{_shortened(name)}{comma.strip()}\n{epochs}" if comma else _shortened(name)


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else "…" + name[-19:]
