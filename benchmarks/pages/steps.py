"""Writes what was measured of whole steps, loader, probe and report into the pages of speed, and draws how costs grow.

python -m benchmarks.pages.steps             (reads benchmarks/results/; takes seconds)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.experiments import paths, precision, view_backends
from benchmarks.harness import page_command_line
from benchmarks.pages.plots import STYLE, save
from benchmarks.pages.tables import FUNCTIONS, fill, made_on, percent, table, times_published
from matrix_ssl.runs.files import read_json

Row = dict[str, Any]
LOOPS = ("published", "ours", "ours, bfloat16", "lightly, BYOL", "ours, BYOL", "ours, BYOL, bfloat16")
AXES = {
    "batch": "batch size", "width": "network width", "side": "image side, pixels", "images": "dataset size, images",
    "processes": "processes",
}  # fmt: skip


def main() -> None:
    arguments = page_command_line(__doc__).parse_args()
    for name, section in SECTIONS.items():
        page = FUNCTIONS if name in ("loss_peak", "loss_profile") else "speed.md"
        fill(arguments.docs / page, name, section(read_json(arguments.results / f"{name}.json")))
    fill(arguments.docs / "speed.md", "precision", precision_section(arguments.results))
    fill(arguments.docs / "speed.md", "view_backends", view_backends_section(arguments.results))
    save(arguments.docs / "figures" / "growth.svg", growth(read_json(arguments.results / "growth.json")))


def machine(results: Row) -> str:
    """The sentences on the machine, which was shared."""
    load = results["load_average"][0]
    where = made_on(results["environment"])
    return f"{where}The machine was shared (load average {load:g}), so times are CPU time.\n\n"


def step_section(results: Row) -> str:
    """Images per CPU second of every loop, and how many times as fast ours is as the loop that it stands beside."""
    lines = []
    for case in sorted(results["cases"], key=_place):
        rows = {row["loop"]: row for row in case["rows"]}
        rates = [f"{rows[name]['images_per_cpu_second']['median']:.3g}" for name in LOOPS]
        ratios = [
            f"{rows[name]['times_per_cpu_second']['median']:.2f}" if "over" in rows[name] else "" for name in LOOPS
        ]
        cells = [f"{rate} ({ratio})" if ratio else rate for rate, ratio in zip(rates, ratios, strict=True)]
        settings = case["case"]
        place = "memory" if case["images"] == "memory" else f"files, {_workers(settings['workers'])}"
        network = f"{settings['encoder']}, {settings['side']} px, batch {settings['batch']}"
        lines.append([network, place, str(len(case["rounds"])), *cells])
    loops = (name.replace("lightly, BYOL", "lightly's BYOL") for name in LOOPS)
    head = ["network", "images read from", "rounds", *loops]
    return f"{machine(results)}lightly {results['environment']['lightly']}.\n\n{table(head, lines)}"


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"


def _place(case: Row) -> tuple[int, bool, int]:
    return case["case"]["side"], case["images"] != "memory", case["case"]["workers"]


def loader_section(results: Row) -> str:
    """Milliseconds of a worker and of the main process for an image, and the ratios."""
    lines = []
    for row in results["rows"]:
        others = [row.get(f"times {name}") for name in ("an image at a time", "torchvision on PIL")]
        ratios = [times_published({"ratio": ratio}) if ratio else "" for ratio in others]
        spent = [f"{row[name]['median']:.3f}" for name in ("worker_milliseconds", "main_process_milliseconds")]
        lines.append([f"{row['side']} px", row["from"], *spent, *ratios])
    head = ["images", "read from", "worker, ms", "main process, ms", "speed-up over one image at a time", "over PIL"]
    return machine(results) + table(head, lines)


def probe_section(results: Row) -> str:
    """Seconds of a fit."""
    lines = [
        [
            row["problem"], row["variant"], f"{row['seconds']['median']:.3g}", f"{row['times_ours']['median']:.2f}",
            f"{row['largest_gradient']:.0e}", f"{row['largest_difference_of_log_probabilities']:.0e}",
        ]
        for row in results["rows"]
    ]  # fmt: skip
    head = ["classes", "fit", "CPU seconds", "relative to ours", "largest gradient", "log-probabilities differ by"]
    return machine(results) + table(head, lines)


def report_section(results: Row) -> str:
    """Seconds and memory by the number of lines."""
    lines = [
        [f"{row['lines']:,}", row["what"], f"{row['seconds']:.3g}", f"{row['mib']:.0f}", f"{row['file_mib']:.3g}"]
        for row in results["rows"]
    ]
    return machine(results) + table(["lines", "work", "CPU seconds", "memory, MiB", "file, MiB"], lines)


def growth_section(results: Row) -> str:
    """The ends of every curve."""
    lines = []
    for along in AXES:
        for row in (row for row in results["rows"] if row["along"] == along):
            step, floor = row["step"]["median"], row["floor"]["median"]
            first = f"{row['first']:.3g}"
            lines.append([AXES[along], f"{row['size']:,}", f"{step:.3g}", f"{floor:.3g}", f"{step / floor:.2f}", first])
    head = ["varied quantity", "value", "step", "floor", "step / floor", "first step"]
    base = results["base"]
    text = (
        f"The base case is {base['encoder']} of width {base['width']} on batches of {base['batch']} images of "
        f"{base['side']} px; datasets of\ndifferent sizes have images of 8 px. The first step includes drawing the "
        "order of the epoch.\n\n"
    )
    return machine(results) + text + table(head, lines)


def compiled_section(results: Row) -> str:
    """A step with and without the compiler, and the first one."""
    lines = []
    for plain, fast in zip(results["rows"][::2], results["rows"][1::2], strict=True):
        steps = [f"{row['seconds']['median']:.3g}" for row in (plain, fast)]
        ratio = times_published({"ratio": fast["times_as_fast"]})
        first = [f"{row['first']['cpu_seconds']:.3g}" for row in (plain, fast)]
        lines.append([plain["precision"], *steps, ratio, *first])
    head = ["precision", "step", "compiled step", "speed-up", "first step", "first compiled step"]
    return machine(results) + table(head, lines)


def peak_section(results: Row) -> str:
    """The peak of every phase of the loss, and what is in memory at the highest one."""
    phases = list(dict.fromkeys(phase for row in results["rows"] for phase in row["phases"]))
    lines = [
        [
            f"{row['n']}, {row['d']}",
            *(f"{row['phases'][phase]['mib']:.3g}" for phase in phases),
            ", ".join(f"`{held['function']}` {held['count']}" for held in row["highest"]),
        ]
        for row in results["rows"]
    ]
    return made_on(results["environment"]) + "\n" + table(["n, d", *phases, "matrices held at the peak"], lines)


def profile_section(results: Row) -> str:
    """Where the time of the loss goes, and the ratio that products alone would allow."""
    lines = []
    for row in results["rows"]:
        spent = [_milliseconds(row["seconds"][name]["median"]) for name in ("published", row["variant"])]
        kinds = ("products", "lu, inverse", "elementwise and the rest")
        parts = [_milliseconds(row["parts"].get(kind, 0.0)) for kind in kinds]
        pace = f"{row['square_products']:.1f} × {_milliseconds(row['seconds']['one product']['median'])}"
        ratios = [times_published(row), f"{row['times']:g}", f"{row['products_alone']:.2f}"]
        lines.append([f"{row['variant']} at {row['n']}, {row['d']}", *spent, *ratios, *parts, pace])
    head = ["form at n, d", "published form, ms", "ours, ms", "speed-up", "aim", "with products alone"]
    head += ["products, ms", "LU and inverse, ms", "other, ms", "square products, ms"]
    return machine(results) + table(head, lines)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def precision_section(results: Path) -> str:
    """Accuracy in float32 and in bfloat16 on a CPU, and what the rule says of it; of what has been measured."""
    lines = []
    for name in precision.DATASETS:
        path = results / f"precision_{name}.json"
        rows = [row for row in read_json(path)["rows"] if "accuracy" in row] if path.exists() else []
        arms = [[row for row in rows if row["arm"] == arm.partition(":")[0]] for arm in precision.ARMS]
        lines.append([name, *(percent(arm, "linear") if arm else "" for arm in arms), precision.verdict(rows)])
    return table(["dataset", *(arm.partition(":")[0] for arm in precision.ARMS), "decision"], lines)


def view_backends_section(results: Path) -> str:
    """Accuracy with views by PyTorch and by OpenCV, and what the rule says of it; of what has every seed."""
    lines = []
    for name in precision.DATASETS:
        arms = view_backends.both_arms(name, results)
        cells = (percent(arm, "linear") if len(arm) == len(precision.SEEDS) else "" for arm in arms)
        lines.append([name, *cells, view_backends.verdict(*arms)])
    return table(["dataset", "views by PyTorch", "views by OpenCV", "decision"], lines)


def paths_section(results: Row) -> str:
    """Accuracy of the plain path and of the fast ones, and whether they agree."""
    lines = []
    for arm in paths.ARMS:
        rows = [row for row in results["rows"] if row["arm"] == arm]
        decided = None if arm == "plain" else paths.agreement(results["rows"], arm, "plain")
        verdict = ["", ""]
        if decided is not None:
            verdict = [f"{100 * decided['difference']:+.2f} / {100 * decided['spread']:.2f}"]
            verdict.append("yes" if decided["agree"] else "no")
        seconds = sum(row["cpu_seconds"] for row in rows) / len(rows)
        lines.append([arm, str(len(rows)), percent(rows, "linear"), *verdict, f"{seconds:.0f}"])
    head = ["path", "seeds", "linear", "difference / spread", "agree", "CPU seconds per seed"]
    return machine(results) + table(head, lines)


def growth(results: Row) -> Figure:
    """CPU seconds of a step and of its floor against everything that grows."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        axes = figure.subplots(2, 3).ravel()
        for axis, (along, label) in zip(axes, AXES.items(), strict=False):
            rows = [row for row in results["rows"] if row["along"] == along]
            sizes = [row["size"] for row in rows]
            for name, line in (("step", "o-"), ("floor", "k--")):
                axis.loglog(sizes, [row[name]["median"] for row in rows], line, label=name, markersize=4)
            if along == "images":
                axis.loglog(sizes, [row["first"] for row in rows], "^-", label="first step", markersize=4)
                axis.legend()
            axis.set(xlabel=label)
            axis.set_xticks(sizes, [f"{size:,}" if size < 10_000 else f"{size // 1000:,}k" for size in sizes])
            axis.minorticks_off()
        axes[0].set_ylabel("CPU seconds")
        axes[3].set_ylabel("CPU seconds")
        axes[0].legend()
        axes[-1].set_visible(False)
    return figure


SECTIONS: dict[str, Callable[[Row], str]] = {
    "step": step_section, "growth": growth_section, "loader": loader_section,
    "linear_probe": probe_section, "report": report_section, "compiled": compiled_section,
    "loss_peak": peak_section, "loss_profile": profile_section, "paths_digits": paths_section,
    "paths_imagenette": paths_section,
}  # fmt: skip

if __name__ == "__main__":
    main()
