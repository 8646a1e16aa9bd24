"""Writes what was measured of views, losses and entropies into the docs, between their markers, and draws the figures.

python -m benchmarks.pages.tables             (reads benchmarks/results/; takes seconds)
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness import page_command_line
from benchmarks.pages import plots
from benchmarks.speed.loss_memory import FIRST_TERM
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.runs.files import read_json

NAMES = {
    "published": "published form",
    FIRST_TERM: "published form, its first term only",
    "exact, auto": "exact (auto)",
    "exact, eigh": "eigh",
    "exact, quadrature": "quadrature",
    "exact, polynomial": "polynomial",
    "taylor": "Taylor-equivalent",
    "products": "floor",
}
EXACT = [name for name in NAMES if name.startswith("exact")]

Row = dict[str, Any]
FUNCTIONS = "speed-functions.md"  # the page of losses and measures; speed.md has trainings


def main() -> None:
    arguments = page_command_line(__doc__).parse_args()
    figures = arguments.docs / "figures"
    names = ("losses", "views", "taylor_gradients", "entropies", "processes")
    losses, views, taylor, entropies, processes = (read_json(arguments.results / f"{name}.json") for name in names)
    plots.save(figures / "loss_cost.svg", plots.loss_cost(losses))
    plots.save(figures / "taylor_gradients.svg", plots.taylor_gradients(taylor))
    fill(arguments.docs / FUNCTIONS, "losses", loss_section(losses))
    fill(arguments.docs / "speed.md", "views", view_section(views))
    fill(arguments.docs / FUNCTIONS, "entropies", entropy_section(entropies))
    fill(arguments.docs / FUNCTIONS, "processes", process_section(processes))
    entropy = read_json(arguments.results / "matrix_entropy.json")
    fill(arguments.docs / FUNCTIONS, "matrix-entropy", matrix_entropy_section(entropy))
    fill(arguments.docs / FUNCTIONS, "methods", method_section(read_json(arguments.results / "method_losses.json")))
    fill(arguments.docs / "taylor.md", "taylor", taylor_section(taylor))
    fill(arguments.docs / "taylor.md", "training", training_section(arguments.results))


def fill(page: Path, name: str, text: str) -> None:
    """Replaces what stands between the markers of that name."""
    before, begin, rest = page.read_text("utf-8").partition(f"<!-- {name}:begin -->")
    _, end, after = rest.partition(f"<!-- {name}:end -->")
    if not (begin and end):
        raise ValueError(f"{page.name} has no markers {name}:begin and {name}:end")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", "utf-8")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def loss_section(results: Row) -> str:
    """All that was measured of the losses."""
    headline = [case for case in results["cases"] if (case["spectrum"], case["ridge"]) == ("mid-training", 0.1)]
    timed = [name for name in NAMES if name in headline[0]["variants"]]
    compared = [name for name in timed if name != "published"]
    times = [[size(case), *(milliseconds(case["variants"][name]) for name in timed)] for case in headline]
    ratios = [[size(case), *(times_published(case["variants"][name]) for name in compared)] for case in headline]
    columns = [
        "case",
        "largest eigenvalue",
        "auto chose",
        "published form",
        "exact (auto)",
        "speed-up",
        "Taylor-equivalent",
    ]
    every = [case_row(case) for case in results["cases"]]
    errors = [[name_of(case), *error_cells(case)] for case in results["cases"]]
    return "\n".join([
        made_on(results["environment"]),
        "Milliseconds (median over rounds), mid-training spectrum, ridge 0.1; * marks extrapolated times, see below:\n",
        table(["n, d", *(NAMES[name] for name in timed)], times),
        "Speed-up over the published form: median over rounds, quartiles in brackets:\n",
        table(["n, d", *(NAMES[name] for name in compared)], ratios),
        slower(results["cases"]),
        "![Cost as a function of n and of d](figures/loss_cost.svg)\n",
        "Milliseconds for all spectra and ridges:\n",
        table(columns, every),
        "Relative error of the float32 gradient with respect to the exact one in float64. For the Taylor-equivalent "
        "form, this is the truncation error of the series:\n",
        table(["case", *(NAMES[name] for name in [*EXACT, "taylor"])], errors),
        "Peak additional memory for one evaluation of value and gradient, MiB; > marks a lower bound:\n",
        memory_table(results["memory"]),
        "Share of each stage in the time of exact (auto), in percent:\n",
        profile_table(results["profile"]),
    ])  # fmt: skip


def made_on(environment: Row) -> str:
    """The sentence on the machine."""
    return (
        f"Measured on an {environment['processor']}, one thread, float32, PyTorch {environment['torch']}, commit "
        f"{environment['commit']}.\n"
    )


def size(case: Row) -> str:
    """n and d."""
    return f"{case['n']}, {case['d']}"


def name_of(case: Row) -> str:
    """Everything that tells a case from another."""
    return f"{size(case)}, {case['spectrum']}, ridge {case['ridge']:g}"


def milliseconds(row: Row) -> str:
    """Median, marked where it was not measured whole."""
    three_digits = float(f"{1000 * row['seconds']['median']:.3g}")
    return f"{three_digits:,.9g}" + "*" * row.get("extrapolated", False)


def times_published(row: Row) -> str:
    """Median of the paired ratios and their quartiles."""
    ratio = row["ratio"]
    if "lower_quartile" not in ratio:
        return f"{ratio['median']:.3g}*"
    return f"{ratio['median']:.3g} [{ratio['lower_quartile']:.3g}, {ratio['upper_quartile']:.3g}]"


def case_row(case: Row) -> list[str]:
    """One line of the table of all cases."""
    variants, auto = case["variants"], case["plans"]["auto"]
    units = {"polynomial": "degree {}", "quadrature": "{} nodes", "eigh": ""}
    took = f"{auto['algorithm']} {units[auto['algorithm']].format(auto['size'])}".strip()
    cells = [milliseconds(variants["published"]), milliseconds(variants["exact, auto"])]
    ratio = times_published(variants["exact, auto"])
    return [name_of(case), f"{case['largest_eigenvalue']:.2g}", took, *cells, ratio, milliseconds(variants["taylor"])]


def error_cells(case: Row) -> list[str]:
    """Errors of the gradient."""
    return [f"{case['variants'][name]['error']['gradient']:.1e}" for name in [*EXACT, "taylor"]]


def slower(cases: list[Row]) -> str:
    """Names every form of ours that took longer than the published one."""
    found = [
        f"{NAMES[name]} at {name_of(case)} ({row['ratio']['median']:.2g} times as fast)"
        for case in cases
        for name, row in case["variants"].items()
        if name not in ("published", "products") and row["ratio"]["median"] < 1
    ]
    return f"Slower than the published form: {'; '.join(found) or 'none at these sizes'}.\n"


def memory_table(rows: list[Row]) -> str:
    """Variants down, sizes across."""
    sizes = list(dict.fromkeys(size(row) for row in rows))
    cells = {(row["variant"], size(row)): f"{'> ' * row['lower_bound']}{row['mib']:.3g}" for row in rows}
    names = [name for name in NAMES if any(row["variant"] == name for row in rows)]
    return table(
        ["n, d", *sizes], [[NAMES[name], *(cells.get((name, column), "") for column in sizes)] for name in names]
    )


def profile_table(rows: list[Row]) -> str:
    """Sizes down, stages across."""
    stages = list(rows[0]["shares"])
    return table(["n, d", *stages], [[size(row), *(f"{100 * row['shares'][s]:.0f}" for s in stages)] for row in rows])


def view_section(results: Row) -> str:
    """Times of ours, by PyTorch and by OpenCV, and of torchvision's views, and how many times as fast ours are."""
    rows: dict[str, dict[str, Row]] = {}
    for row in results["rows"]:
        if row["what"].startswith("views"):
            rows.setdefault(row["size"], {})[row["what"].removeprefix("views, ")] = row
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    lines = [[size, *(f"{found[name]['median']:.2g}" for name in names)] for size, found in rows.items()]
    head = ["CPU seconds", *names]
    ours, _, pil = names
    ratios = (("ours", pil, "times_ours"), ("OpenCV", pil, "times_opencv"), ("OpenCV over ours", ours, "times_opencv"))
    for title, name, key in ratios:
        head.append(title if name == ours else f"{title} over PIL")
        for line, found in zip(lines, rows.values(), strict=True):
            line.append(times_published({"ratio": found[name][key]}))
    return made_on(results["environment"]) + "\n" + table(head, lines)


def entropy_section(results: Row) -> str:
    """How many times as fast as the naive forms, quantities down, sizes across."""
    sizes = list(dict.fromkeys(size(row) for row in results["rows"]))
    found = {(row["quantity"], row["form"], size(row)): row for row in results["rows"]}
    lines = []
    for quantity, form in dict.fromkeys((row["quantity"], row["form"]) for row in results["rows"]):
        if form != "naive":
            rows = [found.get((quantity, form, column)) for column in sizes]
            cells = ("" if row is None else f"{row['times_faster']['median']:.2g}" for row in rows)
            lines.append([quantity, form, *cells])
    return made_on(results["environment"]) + "\n" + table(["speed-up over the naive form", "form", *sizes], lines)


def method_section(results: Row) -> str:
    """Losses of the other methods beside lightly's."""
    head = ["loss", "n, d", "ours, ms", "lightly, ms", "speed-up", "ours, MiB", "lightly, MiB"]
    lines = [
        [
            row["method"],
            size(row),
            *(
                milliseconds({"seconds": row["seconds"][name]}) if name in row["seconds"] else "–"
                for name in ("ours", "lightly")
            ),
            times_published(row) if row["ratio"] else "–",
            *(f"{row['mib'][name]:.3g}" if name in row["mib"] else "–" for name in ("ours", "lightly")),
        ]
        for row in results["rows"]
    ]
    version = results["environment"]["lightly"]
    return f"{made_on(results['environment'])}lightly {version}.\n\n{table(head, lines)}"


def matrix_entropy_section(results: Row) -> str:
    """The matrix entropy beside other losses, and the error of its gradient."""
    names = list(results["rows"][0]["seconds"])
    others = list(results["rows"][0]["ratios"]["order 1"])
    head = ["n, d", *(f"{name}, ms" for name in names), *(f"order 1, speed-up over {name}" for name in others)]
    lines = [
        [
            size(row),
            *(milliseconds({"seconds": row["seconds"][name]}) for name in names),
            *(times_published({"ratio": row["ratios"]["order 1"][name]}) for name in others),
        ]
        for row in results["rows"]
    ]
    sizes = list(dict.fromkeys(size(row) for row in results["errors"]))
    found = {(row["spectrum"], size(row), row["algorithm"]): f"{row['error']:.0e}" for row in results["errors"]}
    spectra = list(dict.fromkeys(row["spectrum"] for row in results["errors"]))
    errors = [
        [name, *(f"{found[name, column, 'eigh']}, {found[name, column, 'resolvents']}" for column in sizes)]
        for name in spectra
    ]
    load = results["load_average"][0]
    return (
        f"{made_on(results['environment'])}The machine was shared (load average {load:g}), so times are CPU "
        f"time.\n\n{table(head, lines)}\nRelative error of the float32 gradient at order 1, with eigendecomposition "
        f"and with resolvents:\n\n{table(['spectrum', *sizes], errors)}"
    )


def process_section(results: Row) -> str:
    """Milliseconds, processes and sizes down, ways of sharing across."""
    rows = results["rows"]
    ways = list(dict.fromkeys(row["variant"] for row in rows))
    found = {(row["processes"], size(row), row["variant"]): row for row in rows}
    lines = []
    for count, column in dict.fromkeys((row["processes"], size(row)) for row in rows):
        cells = [found.get((count, column, way)) for way in ways]
        lines.append([str(count), column, *("" if row is None else milliseconds(row) for row in cells)])
    cores = f"Milliseconds on {results['cores']} cores.\n"
    return made_on(results["environment"]) + cores + "\n" + table(["processes", "n, d", *ways], lines)


def taylor_section(results: Row) -> str:
    """Numbers of the figure, in words and tables."""
    found = {(row["term"], row["spectrum"], row["ridge"]): row["orders"] for row in results["rows"]}
    ridges = [ridge for ridge in (0.1, 0.5, 1.0) if ridge in results["ridges"]]
    terms = ("uniformity", "alignment")
    head = [f"{term}, μ = {ridge:g}" for term in terms for ridge in ridges]

    def cells(spectrum: str, order: int) -> list[str]:
        return [cell(found[term, spectrum, ridge][str(order)]) for term in terms for ridge in ridges]

    return "\n".join([
        f"Relative error of the gradient with 4 terms, cosine with the exact gradient in brackets; n = {results['n']}, "
        f"d = {results['d']}, mean over {results['seeds']} seeds:\n",
        table(["spectrum", *head], [[name, *cells(name, 4)] for name in results["spectra"]]),
        "The same for the spectrum 1/k and other numbers of terms:\n",
        table(["terms", *head], [[f"{k} terms" if k > 1 else "1 term", *cells("1/k", k)] for k in results["orders"]]),
    ])  # fmt: skip


TRAINED = {"ridge_digits": "Handwritten digits", "taylor_cifar10": "CIFAR-10 (JPEG copy), 10,000 images at 16 px"}
ACCURACIES = {"low_shot_1": "1 label", "low_shot_10": "10 labels", "linear": "linear", "knn_20": "20-NN"}


def training_section(results: Path) -> str:
    """Accuracies of encoders that were trained with either logarithm, for every set that was measured."""
    parts = []
    for name, title in TRAINED.items():
        sweep = read_json(results / f"{name}.json")
        arms: dict[str, list[Row]] = {}
        for row in sweep["rows"]:
            arms.setdefault(row["arm"], []).append(row)
        lines = [[arm, str(len(rows)), *(percent(rows, key) for key in ACCURACIES)] for arm, rows in arms.items()]
        commit, steps = sweep["environment"]["commit"], sweep["rows"][0]["steps"]
        parts.append(f"{title}, {steps} steps, commit {commit}:\n")
        parts.append(table(["logarithm, ridge = weight", "n", *ACCURACIES.values()], lines))
    return "\n".join(parts)


def percent(rows: list[Row], key: str) -> str:
    """Mean ± sd over the seeds."""
    summary = summarise([row["accuracy"][key] for row in rows])
    return f"{100 * summary['mean']:.1f} ± {100 * summary['sd']:.1f}"


def cell(row: Row) -> str:
    """Error and cosine."""
    error = row["error"]["mean"]
    return (
        f"{error:.2f} ({row['cosine']['mean']:.2f})" if error > 0.01 else f"{error:.0e} ({row['cosine']['mean']:.2f})"
    )


if __name__ == "__main__":
    main()
