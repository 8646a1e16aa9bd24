"""Figures of the documentation from the results, as SVG files that are the same for the same numbers."""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by all eyes
STYLE: Any = {
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters as letters: a third of the size
    "svg.hashsalt": "matrix-ssl",
}


def save(path: Path, figure: Figure) -> None:
    """Writes an SVG without a date, with two decimals of a point."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None}, facecolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", text.getvalue()), "utf-8")


def loss_cost(results: dict[str, Any]) -> Figure:
    """Cost against n and against d, with the floor."""
    lines = {"published": "o-", "exact, auto": "s-", "taylor": "^-", "products": "k--"}
    names = {"exact, auto": "exact", "taylor": "Taylor-equivalent", "products": "floor: two matrix products"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, along in zip(axes, ("n", "d"), strict=True):
            points = results["curves"][along]
            for name, line in lines.items():
                here = [point for point in points if name in point["seconds"]]
                seconds = [point["seconds"][name] for point in here]
                axis.loglog([point[along] for point in here], seconds, line, label=names.get(name, name), markersize=4)
            other = "d" if along == "n" else "n"
            axis.set(xlabel=f"{along}   ({other} = {points[0][other]})")
            sizes = [point[along] for point in points]
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.minorticks_off()
        axes[0].set_ylabel("CPU seconds, one thread")
        axes[0].legend()
    return figure


def taylor_gradients(results: dict[str, Any], *, order: int = 4, spectrum: str = "1/k") -> Figure:
    """Error and cosine of one order by spectrum, and the error of every order on one spectrum; a row for each term."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        axes = figure.subplots(2, 3, sharex=True)
        for (by_spectrum, cosine, by_order), term in zip(axes, ("uniformity", "alignment"), strict=True):
            for name in results["spectra"]:
                mine = _select(results, term, name)
                _line(by_spectrum, mine, order, "error", name)
                _line(cosine, mine, order, "cosine", name)
            for k in results["orders"]:
                _line(by_order, _select(results, term, spectrum), k, "error", str(k), shade=False)
            by_spectrum.set(ylabel=f"{term}\nrelative error of the gradient")
            for axis in (by_spectrum, by_order):
                axis.set(yscale="log", ylim=(1e-4, 100))
                axis.axhline(1, color="black", linewidth=0.8)
                axis.minorticks_off()
            cosine.set(ylim=(-0.3, 1.05))
        axes[0, 0].set_title(f"error, {order} terms")
        axes[0, 1].set_title(f"cosine, {order} terms")
        axes[0, 2].set_title(f"error, spectrum {spectrum}")
        axes[0, 1].legend(title="spectrum")
        axes[0, 2].legend(title="terms", loc="lower left")
        for axis in axes[1]:
            axis.set_xlabel("ridge μ")
            axis.set_xticks(range(len(results["ridges"])), [f"{ridge:g}" for ridge in results["ridges"]])
    return figure


def _select(results: dict[str, Any], term: str, spectrum: str) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if (row["term"], row["spectrum"]) == (term, spectrum)]


def _line(axis: Axes, rows: list[dict[str, Any]], order: int, key: str, label: str, *, shade: bool = True) -> None:
    """Means over the seeds and their range; the ridges stand at equal distances."""
    values = [row["orders"][str(order)][key] for row in rows]
    (line,) = axis.plot([value["mean"] for value in values], linewidth=1.2, label=label)
    if shade:
        low, high = ([value[name] for value in values] for name in ("least", "most"))
        axis.fill_between(range(len(rows)), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
