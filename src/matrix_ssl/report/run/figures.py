"""Spectrum of the features and map of the embeddings: plain numbers in, inline SVG with a caption out."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from matrix_ssl.report import svg
from matrix_ssl.report.figures import MARKERS, Figurine, evenly, legend, shortened
from matrix_ssl.report.formats import number, whole
from matrix_ssl.report.svg import colour

MAX_MAP_POINTS = 3000
MAX_MOMENTS = 6  # spectra in one figure, one per colour of the ramp
MAX_NAMED_CLASSES = 20

_SPECTRUM_OF_A_RUN = (
    "Eigenvalues of the trace-one covariance of the features, in descending order, both axes logarithmic; early to "
    "late as in the legend. The flatter the curve, the more directions the features use. A healthy run lifts the "
    "tail over time; a curve that drops steeply after a few eigenvalues means dimensional collapse."
)


def spectrum(curves: Sequence[tuple[str, NDArray[np.float64]]], *, caption: str = _SPECTRUM_OF_A_RUN) -> Figurine:
    """Eigenvalues of the trace-one covariance, descending, one curve for each (name, eigenvalues), early to late."""
    chosen = [curves[i] for i in evenly(len(curves), MAX_MOMENTS)]
    largest = max(float(values.max(initial=0.0)) for _, values in chosen) or 1.0
    floor = largest * 1e-8  # single precision rounds at about 1e-7 of the largest
    title = "Spectrum of the features"
    with svg.drawing():
        figure = svg.new_figure(270)
        axes = figure.add_subplot()
        svg.plain_axes(axes)
        lines: list[Line2D] = []
        for i, (_, values) in zip(evenly(6, len(chosen)) if len(chosen) > 1 else [5], chosen, strict=True):
            shown = np.where(values > floor, values, np.nan)
            marker = "o" if np.count_nonzero(values > floor) == 1 else ""
            index = np.arange(1, len(values) + 1)
            lines += axes.plot(index, shown, color=colour(f"ramp-{i}"), linewidth=1.8, marker=marker)
        smallest = min(float(values[values > floor].min(initial=1.0)) for _, values in chosen)
        _log_axes(axes, lowest=max(floor, smallest), highest=largest)
        legend(figure, [shortened(name) for name, _ in chosen], lines)
        description = " ".join(_describe_spectrum(name, values) for name, values in chosen)
        drawing = svg.inline_svg(figure, "spectrum", title=title, description=description)
    if any(bool(np.any(values <= floor)) for _, values in chosen):
        caption += " Eigenvalues below 10⁻⁸ of the largest are zero up to rounding and are not drawn."
    return Figurine("spectrum", title, caption, drawing, _spectrum_table(chosen))


def embedding_map(points: NDArray[np.floating], labels: NDArray[np.integer], classes: Sequence[str]) -> Figurine:
    """Images placed in two dimensions, coloured by label; label -1 is "none"."""
    finite = np.isfinite(points).all(axis=1)
    total = int(finite.sum())
    keep = np.flatnonzero(finite)[evenly(total, MAX_MAP_POINTS)]
    points, labels = points[keep], labels[keep]
    present = [int(c) for c in np.unique(labels) if c >= 0]
    names = {c: shortened(classes[c] if c < len(classes) else str(c)) for c in present}
    with svg.drawing():
        figure = svg.new_figure(330 + (0 if len(present) > MAX_NAMED_CLASSES else 8 * len(present)))
        axes = figure.add_subplot(aspect="equal", adjustable="datalim")
        axes.set_axis_off()
        size = float(np.clip(12000 / max(len(points), 1), 7, 28))
        _scatter(axes, points[labels < 0], colour("series-0"), "o", size)
        drawn = []
        for c in present:
            named = len(present) <= MAX_NAMED_CLASSES
            fill = colour(f"class-{c % 10}" if named else f"hue-{7 * c % 24}")
            marker = MARKERS[c % len(MARKERS)] if named else "o"
            drawn.append(_scatter(axes, points[labels == c], fill, marker, size))
        if 0 < len(present) <= MAX_NAMED_CLASSES:
            legend(figure, list(names.values()), drawn)
            _name_clusters(figure, axes, points, labels, names)
        groups = "" if not present else f" of {len(present)} classes"
        description = f"{whole(len(points))} images{groups} as points in a plane. {_count_classes(labels, names)}"
        drawing = svg.inline_svg(figure, "map", title="Map of the embeddings", description=description)
    caption = _map_caption(shown=len(points), given=len(finite), finite=total, classes=len(present))
    return Figurine("map", "Map of the embeddings", caption, drawing)


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


def _scatter(axes: Axes, points: NDArray[np.floating], fill: str, marker: str, size: float) -> PathCollection:
    return axes.scatter(points[:, 0], points[:, 1], s=size, c=fill, marker=marker, linewidths=0, alpha=0.8)


def _name_clusters(
    figure: Figure, axes: Axes, points: NDArray[np.floating], labels: NDArray[np.integer], names: dict[int, str]
) -> None:
    """Writes each class at the median of its points unless it would cover another name; the legend has them all."""
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
    caption = "A t-SNE map: each point is one image, close to images with similar features. "
    if classes:
        caption += "In a healthy run points of one class form clusters, although no label was used to train. "
    else:
        caption += "A healthy run shows structure: several clusters or a curved sheet, not one dense spot. "
    caption += "Distances between clusters and the axes have no meaning."
    if classes > MAX_NAMED_CLASSES:
        caption += f" The {classes} classes share 24 hues."
    if finite < given:
        caption += f" Points skipped because they are not finite: {whole(given - finite)}."
    if shown < finite:
        caption += f" Shown are {whole(shown)} of {whole(finite)} points, evenly spaced in their order."
    return caption


def _count_classes(labels: NDArray[np.integer], names: dict[int, str]) -> str:
    if not names:
        return "They carry no labels."
    if len(names) > MAX_NAMED_CLASSES:
        return ""
    return "Points of each class: " + ", ".join(f"{n} {int((labels == c).sum())}" for c, n in names.items()) + "."


def _describe_spectrum(name: str, values: NDArray[np.float64]) -> str:
    return (
        f"{name[:1].upper()}{name[1:]}: largest of {len(values)} eigenvalues {number(values[0])}, "
        f"the first ten hold {100 * values[:10].sum() / max(values.sum(), 1e-300):.0f}% of the variance."
    )


def _spectrum_table(curves: Sequence[tuple[str, NDArray[np.float64]]]) -> list[list[str]]:
    longest = max(len(values) for _, values in curves)
    indices = [i for i in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if i < longest] + [longest]
    rows = [["index", *(name for name, _ in curves)]]
    for i in indices:
        rows.append([whole(i), *(f"{v[i - 1]:.2g}".replace("-", "−") if i <= len(v) else "–" for _, v in curves)])
    return rows
