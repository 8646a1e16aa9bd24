"""The page on what happens during training, from ``benchmarks/results/pictures.json``.

    python -m benchmarks.pages.publish_pictures

Writes ``docs/figures/training_ranks.svg``, ``docs/figures/training_information.svg`` and the table between the markers
``training`` of ``docs/results/training.md``, a page that is written by hand first.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages.plots import STYLE, matplotlib, save
from benchmarks.pages.tables import fill, table
from matrix_ssl.runs.files import read_json

COLUMNS = 4
RANKS = {"effective_rank": "features", "effective_rank_projection": "projections"}
INFORMATION = {"mir": "MIR", "hdr": "HDR"}
HEADINGS = {
    "effective_rank": "Effective rank, features",
    "effective_rank_projection": "Effective rank, projections",
    "matrix_entropy": "Matrix entropy (nats)",
    "mir": "MIR",
    "hdr": "HDR",
    "online_knn": "kNN, %",
}

Row = dict[str, Any]


def main() -> None:
    results = read_json(RESULTS / "pictures.json")
    figures = ROOT / "docs" / "figures"
    save(figures / "training_ranks.svg", small_multiples(results["rows"], RANKS, "effective rank"))
    save(figures / "training_information.svg", small_multiples(results["rows"], INFORMATION, "ratio"))
    fill(ROOT / "docs" / "results" / "training.md", "training", section(results))
    Console().print("written: docs/results/training.md", markup=False)


def small_multiples(rows: Sequence[Row], curves: dict[str, str], unit: str) -> Figure:
    """A small plot of every method, one line for each curve and seed."""
    names = methods(rows)
    height = -(-len(names) // COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1.5 * height + 0.3), layout="constrained")
        axes = figure.subplots(height, COLUMNS, sharex=True, squeeze=False).flatten()
        for axis, name in zip(axes, names, strict=False):
            for number, (curve, label) in enumerate(curves.items()):
                for i, row in enumerate(of_method(rows, name)):
                    points = row["curves"].get(curve, [])
                    axis.plot(*zip(*points, strict=True) if points else ([], []), color=f"C{number}",
                              linewidth=1, label=None if i else label)  # fmt: skip
            axis.set_title(name, fontsize=8)
            axis.tick_params(labelsize=7)
            axis.set_ylim(bottom=0)
        figure.supxlabel("step", fontsize=8)
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        for axis in axes[::COLUMNS]:
            axis.set_ylabel(unit, fontsize=7)
        axes[0].legend(fontsize=6)
    return figure


def section(results: dict[str, Any]) -> str:
    """The last values of every method, means over the seeds."""
    rows = results["rows"]
    body = [[name, *(last(of_method(rows, name), curve) for curve in HEADINGS)] for name in methods(rows)]
    seeds = sorted({row["seed"] for row in rows})
    return (
        f"Values after {rows[0]['steps']} steps, means over {len(seeds)} seeds:\n\n"
        + table(["Method", *HEADINGS.values()], body)
        + "\n\n"
        + f"`python -m benchmarks.experiments.pictures`; numbers, settings, versions and commit in "
        f"`benchmarks/results/pictures.json`, PyTorch {results['environment']['torch']}."
    )


def last(rows: Iterator[Row], curve: str) -> str:
    """The mean of the last values; a dash where a method has none, such as one with a single branch."""
    values = [row["curves"][curve][-1][1] for row in rows if row["curves"].get(curve)]
    if not values:
        return "–"
    mean = statistics.fmean(values)
    return f"{100 * mean:.1f}" if curve == "online_knn" else f"{mean:.3g}"


def methods(rows: Sequence[Row]) -> list[str]:
    """Names in the order of the alphabet."""
    return sorted({row["method"] for row in rows})


def of_method(rows: Sequence[Row], name: str) -> Iterator[Row]:
    return (row for row in rows if row["method"] == name)


if __name__ == "__main__":
    main()
