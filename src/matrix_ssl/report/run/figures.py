"""The figures of the report: each takes plain numbers and gives an inline SVG with caption and text alternative."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from matrix_ssl.report import svg
from matrix_ssl.report.svg import colour

MAX_POINTS = 400  # of one curve; more would not be seen at this width
MAX_MAP_POINTS = 3000
MAX_MOMENTS = 6  # spectra in one figure, one for each colour of the ramp
MAX_NAMED_CLASSES = 20
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # 7 shapes against 10 colours: the pair is unique for 70 classes


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps; ``skipped`` counts the logged values that were not finite."""

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    skipped: int = 0


@dataclass(frozen=True)
class Panel:
    """One pair of axes: curves of one unit, and where its y axis must begin or end, if anywhere."""

    label: str
    curves: Sequence[Curve]
    bottom: float | None = None
    top: float | None = None


@dataclass(frozen=True)
class Figurine:
    """What the page shows: drawing, caption, and the same numbers as a table (its first row is the header)."""

    name: str
    title: str
    caption: str
    svg: str
    table: Sequence[Sequence[str]] = ()


def number(value: float) -> str:
    """Up to four significant digits with a true minus sign."""
    return f"{value:.4g}".replace("-", "−")


def whole(value: float) -> str:
    """A whole number with commas between the thousands."""
    return f"{int(value):,}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def curves_over_steps(name: str, *, title: str, caption: str, panels: Sequence[Panel]) -> Figurine:
    """Panels below each other over a common step axis."""
    with svg.drawing():
        figure = svg.new_figure(45 + (205 if len(panels) == 1 else 120 * len(panels)))
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        beyond = sum(_draw_panel(ax, panel) for ax, panel in zip(axes, panels, strict=True))
        axes[-1].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
        axes[-1].xaxis.set_major_formatter(FuncFormatter(_step_tick))
        axes[-1].set_xlabel("step", loc="right", color=colour("soft"))
        curves = [curve for panel in panels for curve in panel.curves]
        description = " ".join(_describe(curve) for curve in curves)
        drawing = svg.inline_svg(figure, name, title=title, description=description)
    return Figurine(name, title, caption + _remarks(curves, beyond), drawing, _table(curves))


def spectrum(moments: Sequence[tuple[int, NDArray[np.float64]]]) -> Figurine:
    """Eigenvalues of the trace-one covariance, descending, one curve for each moment (step, eigenvalues)."""
    chosen = [moments[i] for i in _evenly(len(moments), MAX_MOMENTS)]
    largest = max(float(values.max(initial=0.0)) for _, values in chosen) or 1.0
    floor = largest * 1e-8  # single precision rounds at about 1e-7 of the largest
    title = "Spectrum of the features"
    with svg.drawing():
        figure = svg.new_figure(270)
        axes = figure.add_subplot()
        svg.plain_axes(axes)
        for i, (step, values) in zip(_evenly(6, len(chosen)) if len(chosen) > 1 else [5], chosen, strict=True):
            shown = np.where(values > floor, values, np.nan)
            marker = "o" if np.count_nonzero(values > floor) == 1 else ""
            index = np.arange(1, len(values) + 1)
            label = f"step {whole(step)}"
            axes.plot(index, shown, color=colour(f"ramp-{i}"), linewidth=1.8, marker=marker, label=label)
        _log_axes(axes, lowest=max(floor, min(_smallest_above(values, floor) for _, values in chosen)), highest=largest)
        _legend(figure, [f"step {whole(step)}" for step, _ in chosen])
        description = " ".join(_describe_spectrum(step, values) for step, values in chosen)
        drawing = svg.inline_svg(figure, "spectrum", title=title, description=description)
    caption = (
        "Eigenvalues of the trace-one covariance of the features, in descending order, both axes logarithmic; early to "
        "late as in the legend. The flatter the curve, the more directions the features use. A healthy run lifts the "
        "tail over time; a curve that drops steeply after a few eigenvalues means dimensional collapse."
    )
    if any(bool(np.any(values <= floor)) for _, values in chosen):
        caption += " Eigenvalues below 10⁻⁸ of the largest are zero up to rounding and are not drawn."
    return Figurine("spectrum", title, caption, drawing, _spectrum_table(chosen))


def embedding_map(points: NDArray[np.floating], labels: NDArray[np.integer], classes: Sequence[str]) -> Figurine:
    """Images placed in two dimensions, coloured by label; label -1 is "none"."""
    finite = np.isfinite(points).all(axis=1)
    total = int(finite.sum())
    keep = np.flatnonzero(finite)[_evenly(total, MAX_MAP_POINTS)]
    points, labels = points[keep], labels[keep]
    present = [int(c) for c in np.unique(labels) if c >= 0]
    names = {c: _short(classes[c] if c < len(classes) else str(c)) for c in present}
    with svg.drawing():
        figure = svg.new_figure(330 + (0 if len(present) > MAX_NAMED_CLASSES else 8 * len(present)))
        axes = figure.add_subplot(aspect="equal", adjustable="datalim")
        axes.set_axis_off()
        size = float(np.clip(12000 / max(len(points), 1), 7, 28))
        _scatter(axes, points[labels < 0], colour("series-0"), "o", size, None)
        for c in present:
            named = len(present) <= MAX_NAMED_CLASSES
            fill = colour(f"class-{c % 10}" if named else f"hue-{7 * c % 24}")
            marker = MARKERS[c % len(MARKERS)] if named else "o"
            _scatter(axes, points[labels == c], fill, marker, size, names[c] if named else None)
        if 0 < len(present) <= MAX_NAMED_CLASSES:
            _legend(figure, list(names.values()))
            _name_clusters(figure, axes, points, labels, names)
        groups = "" if not present else f" of {len(present)} classes"
        description = f"{whole(len(points))} images{groups} as points in a plane. {_count_classes(labels, names)}"
        drawing = svg.inline_svg(figure, "map", title="Map of the embeddings", description=description)
    caption = _map_caption(shown=len(points), given=len(finite), finite=total, classes=len(present))
    return Figurine("map", "Map of the embeddings", caption, drawing)


def thin(
    steps: NDArray[np.int64], values: NDArray[np.float64], limit: int = MAX_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Steps, means, minima and maxima of at most ``limit`` runs of neighbouring values."""
    starts = np.unique(np.linspace(0, len(values), min(limit, len(values)), endpoint=False).astype(np.int64))
    counts = np.diff(np.append(starts, len(values)))
    centre = np.add.reduceat(steps.astype(np.float64), starts) / counts
    mean = np.add.reduceat(values, starts) / counts
    return centre, mean, np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def _draw_panel(axes: Axes, panel: Panel) -> int:
    """Draws the curves; returns how many logged values lie beyond the axis."""
    svg.plain_axes(axes)
    for i, curve in enumerate(panel.curves):
        steps, mean, low, high = thin(curve.steps, curve.values)
        line = colour(f"series-{i}")
        if len(steps) < len(curve.values):
            axes.fill_between(steps, low, high, color=line, alpha=0.2, linewidth=0)
        style = "-" if i == 0 else "--"
        marker = "o" if len(steps) == 1 else ""
        axes.plot(steps, mean, color=line, linestyle=style, linewidth=1.8, marker=marker, label=curve.name)
    axes.set_title(panel.label, loc="left", color=colour("ink"), fontsize=svg.TEXT, pad=8)
    if len(panel.curves) > 1:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=2, frameon=False, labelcolor=colour("soft"),
            fontsize=svg.TEXT, handlelength=2, columnspacing=1.2, borderpad=0.2,
        )  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))
    return _limit(axes, panel)


def _limit(axes: Axes, panel: Panel) -> int:
    """Sets the y axis: the asked ends, and no room for rare outliers that would flatten the rest."""
    values = np.concatenate([curve.values for curve in panel.curves])
    low, high = np.quantile(values, [0.01, 0.99])
    margin = 0.5 * (high - low)
    beyond = 0
    if high > low and np.ptp(values) > 10 * (high - low):
        axes.set_ylim(max(values.min(), low - margin), min(values.max(), high + margin))
        beyond = int(np.count_nonzero((values < low - margin) | (values > high + margin)))
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom if panel.bottom is None else panel.bottom, top if panel.top is None else panel.top)
    return beyond


def _log_axes(axes: Axes, *, lowest: float, highest: float) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    top = np.ceil(np.log10(highest))
    axes.set_ylim(10 ** min(np.floor(np.log10(lowest)), top - 1), 10**top)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, numticks=6))
        axis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: whole(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(_power_tick))
    axes.set_title("eigenvalue", loc="left", color=colour("ink"), fontsize=svg.TEXT, pad=8)
    axes.set_xlabel("index", loc="right", color=colour("soft"))


def _power_tick(value: float, _position: int | None = None) -> str:
    exponent = round(float(np.log10(value)))
    if exponent in (0, -1):
        return f"{value:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _step_tick(value: float, _position: int | None = None) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit:
            return f"{value / unit:g}{name}"
    return f"{value:,.0f}"


def _legend(figure: Figure, names: Sequence[str]) -> None:
    """Below the axes, in as many columns as surely fit."""
    columns = max(1, min(len(names), 54 // (max(map(len, names)) + 5)))
    legend = figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, labelcolor=colour("ink"), fontsize=svg.TEXT,
        handlelength=1.3, handletextpad=0.5, columnspacing=1.3,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([30])


def _scatter(axes: Axes, points: NDArray[np.floating], fill: str, marker: str, size: float, label: str | None) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=size, c=fill, marker=marker, linewidths=0, alpha=0.8, label=label)


def _name_clusters(
    figure: Figure, axes: Axes, points: NDArray[np.floating], labels: NDArray[np.integer], names: dict[int, str]
) -> None:
    """Writes each class at the median of its points, where it would not cover another name; the legend has them all."""
    figure.draw_without_rendering()  # settles the layout, so that text can be measured
    taken: list[Bbox] = []
    for c, name in names.items():
        x, y = np.median(points[labels == c], axis=0)
        text = axes.text(
            x, y, name, color=colour("ink"), ha="center", va="center", weight="bold", gid=f"class-name-{c}"
        )
        box = text.get_window_extent().padded(2)
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)


def _map_caption(*, shown: int, given: int, finite: int, classes: int) -> str:
    caption = "A t-SNE map: each point is one image, close to the images that the encoder finds alike. "
    if classes:
        caption += "In a healthy run points of one class gather in groups, although no label was used to train. "
    else:
        caption += "A healthy run shows structure: several groups or a curved sheet, not one dense spot. "
    caption += "Distances between groups mean little, and the axes nothing."
    if classes > MAX_NAMED_CLASSES:
        caption += f" The {classes} classes share 24 hues."
    if finite < given:
        caption += f" Points left out because they are not finite: {whole(given - finite)}."
    if shown < finite:
        caption += f" Shown are {whole(shown)} of {whole(finite)} points, evenly spaced in their order."
    return caption


def _count_classes(labels: NDArray[np.integer], names: dict[int, str]) -> str:
    if not names:
        return "They carry no labels."
    if len(names) > MAX_NAMED_CLASSES:
        return ""
    return "Points of each class: " + ", ".join(f"{n} {int((labels == c).sum())}" for c, n in names.items()) + "."


def _describe(curve: Curve) -> str:
    v, s = curve.values, curve.steps
    low, high = int(v.argmin()), int(v.argmax())
    return (
        f"{curve.name}: {number(v[0])} at step {whole(s[0])}, {number(v[-1])} at step {whole(s[-1])}; "
        f"lowest {number(v[low])} at step {whole(s[low])}, highest {number(v[high])} at step {whole(s[high])}."
    )


def _describe_spectrum(step: int, values: NDArray[np.float64]) -> str:
    return (
        f"Step {whole(step)}: largest of {len(values)} eigenvalues {number(values[0])}, "
        f"the first ten hold {100 * values[:10].sum() / max(values.sum(), 1e-300):.0f}% of the variance."
    )


def _remarks(curves: Sequence[Curve], beyond: int) -> str:
    text = ""
    group = max(-(-len(curve.values) // MAX_POINTS) for curve in curves)
    if group > 1:
        text += f" The line is the mean of up to {group} neighbouring values, the band spans all of them."
    skipped = sum(curve.skipped for curve in curves)
    if skipped:
        text += f" Values left out because they are not finite: {whole(skipped)}."
    if beyond:
        text += f" Outliers beyond the vertical axis: {whole(beyond)}."
    return text


def _table(curves: Sequence[Curve]) -> list[list[str]]:
    """The values at six moments; a curve that was not logged at such a step shows its value just before it."""
    steps = curves[0].steps[_evenly(len(curves[0].steps), 6)]
    rows = [["step", *(curve.name for curve in curves)]]
    for step in steps:
        places = [int(np.searchsorted(curve.steps, step, side="right")) - 1 for curve in curves]
        values = [number(c.values[p]) if p >= 0 else "–" for c, p in zip(curves, places, strict=True)]
        rows.append([whole(step), *values])
    return rows


def _spectrum_table(moments: Sequence[tuple[int, NDArray[np.float64]]]) -> list[list[str]]:
    longest = max(len(values) for _, values in moments)
    indices = [i for i in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if i < longest] + [longest]
    rows = [["index", *(f"step {whole(step)}" for step, _ in moments)]]
    for i in indices:
        rows.append([whole(i), *(f"{v[i - 1]:.2g}".replace("-", "−") if i <= len(v) else "–" for _, v in moments)])
    return rows


def _evenly(n: int, at_most: int) -> NDArray[np.int64]:
    """Up to ``at_most`` of the indices 0 to n - 1, evenly spaced, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64)) if n else np.zeros(0, np.int64)


def _smallest_above(values: NDArray[np.float64], floor: float) -> float:
    return float(values[values > floor].min(initial=1.0))


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
