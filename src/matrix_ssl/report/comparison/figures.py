"""The figures of a comparison: every method keeps one colour, dash and marker throughout."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from matrix_ssl.report import svg
from matrix_ssl.report.comparison.data import Comparison, Entry, Group
from matrix_ssl.report.comparison.statistics import PairedDifference
from matrix_ssl.report.figures import MARKERS, STEPS, Curve, Figurine, Panel, shortened, stacked
from matrix_ssl.report.formats import duration, number, points
from matrix_ssl.report.svg import colour

# 10 colours, 7 markers and 4 dashes with lengths that share no divisor but 1 and 2: neighbours differ in all three
_BANDS = "Lines are means over the seeds of a method, bands span all its seeds."
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def look(entry: Entry) -> dict[str, Any]:
    """Colour, marker and dash of an entry's method, distinct for 70 methods."""
    place = entry.place
    return {
        "color": colour(f"class-{place % 10}"),
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": _DASHES[place % len(_DASHES)],
    }


def curve(entry: Entry, x: str, y: str, *, scale: float = 1.0) -> Curve | None:
    """The mean curve of an entry at the steps shared by all its runs with that quantity; None if there are none.

    The band spans all runs.
    """
    curves = []
    for run in entry.runs:
        finite = [{key: value for key, value in point.items() if value is not None} for point in run.curve]
        curves.append({p["step"]: (p[x], scale * p[y]) for p in finite if {"step", x, y} <= p.keys()})
    curves = list(filter(None, curves))
    steps = sorted(set(curves[0]).intersection(*curves)) if curves else []
    if not steps:
        return None
    values = np.array([[run[step] for step in steps] for run in curves], np.float64)  # (runs, points, 2)
    ys = values[..., 1]
    name = entry.label.partition(", ")[0]
    return Curve(entry.label, values[..., 0].mean(0), ys.mean(0), ys.min(0), ys.max(0), style=look(entry), legend=name)


def intervals(c: Comparison) -> Figurine | None:
    """Differences from the reference in the main measure, with their intervals; None if there are none."""
    differences = [(entry, d) for entry in c.ranked if (d := c.difference(entry, c.main.key))]
    if not differences or c.reference is None:
        return None
    title = f"Difference from {c.reference.label}, {c.main.heading}"
    with svg.drawing():
        figure = svg.new_figure(70 + 30 * len(differences))
        axes = figure.add_subplot()
        svg.plain_axes(axes, values="x")
        axes.axvline(0, color=colour("soft"), linewidth=1)
        for y, (entry, d) in enumerate(differences):
            style = look(entry)
            if d.low is not None and d.high is not None:
                axes.plot([100 * d.low, 100 * d.high], [y, y], color=style["color"], linewidth=2.2)
            axes.plot(100 * d.mean, y, color=style["color"], marker=style["marker"], markersize=7, linestyle="")
        axes.set_yticks(range(len(differences)), [_broken(entry.label) for entry, _ in differences])
        axes.set_ylim(len(differences) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.set_xlabel("percentage points", loc="right", color=colour("soft"))
        description = " ".join(f"{e.label}: {points(d.mean, sign='+')} points{_interval(d)}." for e, d in differences)
        drawing = svg.inline_svg(figure, "intervals", title=title, description=description)
    caption = (
        f"Right of the line: better than {c.reference.label}. A mark is the mean over the seeds that both have, a bar "
        "its 95% interval (paired t), where there are two seeds or more. A bar that crosses the line is no clear "
        "difference."
    )
    return Figurine("intervals", title, caption, drawing)


def accuracy_over_time(groups: Sequence[Group]) -> Figurine | None:
    """Accuracy on held-out training images against the time of the pre-training; None if it was not followed."""
    return stacked(
        "time", "Accuracy against time",
        _panels(groups, {"20-NN accuracy in %": lambda entry: curve(entry, "seconds", "knn_20_held_out", scale=100)}),
        "20-NN accuracy on training images that are not among the labelled neighbours, against the time of the "
        "pre-training. Higher and further left is better: more accuracy for less computation. No test image is used. "
        + _BANDS,
        point=lambda x, y: f"{y:.1f}% after {duration(x)}", axis="seconds", shared=len(groups) == 1,
    )  # fmt: skip


def rank_and_entropy(groups: Sequence[Group]) -> Figurine | None:
    """Effective rank and matrix entropy of the features over the epochs; None if they were not followed."""
    return stacked(
        "rank", "Effective rank and matrix entropy",
        _panels(groups, {
            "effective rank": lambda entry: curve(entry, "epoch", "effective_rank"),
            "matrix entropy (nats)": lambda entry: curve(entry, "epoch", "matrix_entropy"),
        }),
        "Entropy of the eigenvalues of the trace-one covariance of the features, and its exponential, the effective "
        "rank: how many directions the features use. A rank that falls towards 1 is collapse; a higher one is not by "
        "itself better. " + _BANDS,
        point=lambda x, y: f"{number(y)} at epoch {number(x)}", axis="epoch", shared=len(groups) == 1,
    )  # fmt: skip


def _panels(groups: Sequence[Group], curves: Mapping[str, Callable[[Entry], Curve | None]]) -> list[Panel]:
    """A panel for each quantity and group."""
    return [
        Panel(
            label if len(groups) == 1 else f"{label}: {group.title.partition(' (')[0]}",
            [line for entry in group.entries if (line := make(entry))],
        )
        for group in groups for label, make in curves.items()
    ]  # fmt: skip


def _interval(d: PairedDifference) -> str:
    return "" if d.low is None or d.high is None else f" ({points(d.low)} to {points(d.high)}, {d.n} seeds)"


def _broken(label: str) -> str:
    """The label with the epochs on a second line."""
    name, comma, epochs = label.partition(", ")
    return f"{shortened(name)}{comma.strip()}\n{epochs}" if comma else shortened(name)
