"""The page on what a real model's head and gradients say of the matrix term, from ``llm_evidence.json``.

    python -m benchmarks.pages.llm_evidence_page

Writes the part between the markers ``evidence`` of ``docs/results/llm-evidence.md`` and the figures
``llm_evidence_rows.svg``, ``llm_evidence_mass.svg`` and ``llm_evidence_gradients.svg`` in ``docs/figures``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages.plots import STYLE, matplotlib, save
from benchmarks.pages.tables import fill, table
from matrix_ssl.runs.files import read_json

NEAR = (0.2, 0.3, 0.4, 0.5, 0.7)  # cosines from which on a row is called near
WEIGHTS = (0.3, 1.0, 3.0)  # of the matrix term
BANDS = {"all tokens": (0, math.inf), "the 10 most frequent": (0, 10), "11th to 100th": (10, 100),
         "101st to 1000th": (100, 1000), "rarer": (1000, math.inf)}  # fmt: skip
FORMS = {"closed": "closed", "top": "top 16"}

Row = dict[str, Any]


def main() -> None:
    result = read_json(RESULTS / "llm_evidence.json")
    figures = ROOT / "docs" / "figures"
    save(figures / "llm_evidence_rows.svg", rows_figure(result["head"]))
    save(figures / "llm_evidence_mass.svg", mass_figure(result["bands"]))
    save(figures / "llm_evidence_gradients.svg", gradient_figure(result["bands"]))
    fill(ROOT / "docs" / "results" / "llm-evidence.md", "evidence", section(result))
    Console().print("written: docs/results/llm-evidence.md", markup=False)


def summarise_positions(rows: Sequence[Row], ranks: Sequence[int], *, digits: Sequence[int]) -> dict[str, Row]:
    """Means over the positions of all answers, by the target: how frequent it is, and whether it is a digit.

    ``ranks`` are those of all tokens by frequency, from 0.

    The cosine of a band is that of the gradients of all its positions, one long vector: Σ<g, h> / √(Σ‖g‖² Σ‖h‖²).
    """
    targets = np.array([token for row in rows for token in row["targets"]])
    place, digit = np.asarray(ranks)[targets], np.isin(targets, digits)
    chosen = {name: (place >= low) & (place < high) for name, (low, high) in BANDS.items()}
    chosen |= {"digits": digit, "all but digits": ~digit}
    values = {
        "q": join(rows, lambda row: row["q"]),
        "spellings": join(rows, lambda row: row["spellings"]),
        **{f"{which} {key}": join(rows, lambda row, which=which, key=key: row[which][key])
           for which in ("near", "near_another") for key in (*map(str, NEAR), "credit")},
        "cosine_of_the_likeliest": join(rows, lambda row: row["cosine_of_the_likeliest"]),
    }  # fmt: skip
    plain = join(rows, lambda row: row["gradients"]["ce_ce"])
    bands: dict[str, Row] = {}
    for name, mine in chosen.items():
        if mine.any():
            means = {key: float(x[mine].mean()) for key, x in values.items()}
            terms = {form: compare(rows, form, plain, mine) for form in FORMS}
            ce = float(-np.log(np.maximum(values["q"][mine], 1e-30)).mean())
            bands[name] = {"positions": int(mine.sum()), "ce": ce, **means, "gradients": terms}
    return bands


def join(rows: Sequence[Row], part: Any) -> np.ndarray:
    """One value for each position of all answers."""
    return np.concatenate([np.asarray(part(row), dtype=float) for row in rows])


def compare(rows: Sequence[Row], form: str, plain: np.ndarray, mine: np.ndarray) -> Row:
    """How far the term's gradient is from that of the cross-entropy on the chosen positions."""
    both, own = (join(rows, lambda row, key=key: row["gradients"][form][key])[mine] for key in ("ce_term", "term_term"))
    ce = plain[mine]
    each = both / np.sqrt(np.maximum(ce * own, 1e-300))
    sums = {}
    for w in WEIGHTS:
        length = ce.sum() + 2 * w * both.sum() + w * w * own.sum()
        sums[str(w)] = float((ce.sum() + w * both.sum()) / math.sqrt(ce.sum() * length))
    return {
        "cosine": float(both.sum() / math.sqrt(ce.sum() * own.sum())),
        "norm": float(math.sqrt(own.sum() / ce.sum())),
        "sum": sums,
        "quartiles": np.percentile(each, (25, 50, 75)).tolist(),
    }


def rows_figure(head: Row) -> Figure:
    """Cosines of two rows, and of a row with the one that is nearest."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (key, title) in zip(axes, (("drawn", "any token"), ("used", "tokens of the answers")), strict=True):
            edges = np.linspace(-0.5, 1.0, len(head[key]["histogram"]) + 1)
            for name, label in (("histogram", "all other rows"), ("nearest_histogram", "the nearest row")):
                axis.stairs(100 * np.asarray(head[key][name]), edges, fill=True, alpha=0.5, label=label)
            axis.set(xlabel="cosine of two rows of the head", title=title)
        axes[0].set_ylabel("share, %")
        axes[0].legend()
    return figure


def mass_figure(bands: Mapping[str, Row]) -> Figure:
    """Of the probability that is not on the target, the share on near rows, of the target and of another one."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        titles = {"near": "near the target", "near_another": "near another target (control)"}
        for axis, (key, title) in zip(axes, titles.items(), strict=True):
            for name, row in bands.items():
                shares = [100 * row[f"{key} {near}"] / max(1 - row["q"], 1e-12) for near in NEAR]
                axis.plot(NEAR, shares, "o-", markersize=4, label=name)
            axis.set(xlabel="cosine of at least", title=title)
        axes[0].set_ylabel("share of the probability that\nis not on the target, %")
        axes[1].legend(title="target")
    return figure


def gradient_figure(bands: Mapping[str, Row]) -> Figure:
    """Cosine with the cross-entropy's gradient, and relative length, by how frequent the target is."""
    names = list(bands)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots(1, 2)
        for shift, (form, label) in zip((-0.15, 0.15), FORMS.items(), strict=True):
            terms = [bands[name]["gradients"][form] for name in names]
            x = np.arange(len(names)) + shift
            middle = [term["quartiles"][1] for term in terms]
            low, high = ([abs(term["quartiles"][i] - term["quartiles"][1]) for term in terms] for i in (0, 2))
            axes[0].errorbar(x, middle, (low, high), fmt="o", capsize=3, label=label)
            axes[1].bar(x, [term["norm"] for term in terms], 0.3, label=label)
        for axis in axes:
            axis.set_xticks(range(len(names)), [name.replace(" to ", " to\n").replace("the 10 ", "the 10\n")
                                                for name in names], fontsize=7)  # fmt: skip
        axes[0].set(ylabel="cosine with the gradient of CE\n(median and quartiles of positions)")
        axes[1].set(ylabel="length, relative to CE")
        axes[0].legend(title="matrix term", loc="lower left")
    return figure


def section(result: Row) -> str:
    """All numbers of the page."""
    e, bands = result["environment"], result["bands"]
    return "\n".join([
        f"{result['model']}, {result['parameters']:,} parameters, a head of {result['vocabulary']:,} rows of width "
        f"{result['width']}; {result['answers']} answers with {bands['all tokens']['positions']:,} learned tokens. "
        f"Measured on an {e['processor']}, float32, PyTorch {e['torch']}, transformers {e['transformers']}, commit "
        f"{e['commit']}.\n",
        "### Rows of the head\n",
        "![Cosines of rows of the head](../figures/llm_evidence_rows.svg)\n",
        head_table(result),
        "### Probability near the target\n",
        "![Probability near the target](../figures/llm_evidence_mass.svg)\n",
        mass_table(bands),
        "### Gradient with respect to the hidden states\n",
        "![Gradients of both terms](../figures/llm_evidence_gradients.svg)\n",
        gradient_table(bands),
        "### Gradient with respect to all weights\n",
        weights_table(result["pairs"], result["answers_per_batch"]),
    ])  # fmt: skip


def head_table(result: Row) -> str:
    """What rows are near to what."""
    head = result["head"]
    drawn, used = head["drawn"], head["used"]
    lines = [[name, number(drawn[key]), number(used[key])] for name, key in (
        ("mean cosine with all other rows", "mean"), ("mean cosine²", "squared"),
        ("nearest row is a spelling of the same text", "nearest_is_a_spelling"))]  # fmt: skip
    for q, name in (("0.05", "5 %"), ("0.5", "median"), ("0.95", "95 %")):
        lines.append([f"cosine with the nearest row, {name}", number(drawn["nearest"][q]), number(used["nearest"][q])])
    for near in NEAR:
        key = str(near)
        lines.append([f"other rows at a cosine of at least {near:g}", f"{drawn['others_at_least'][key]:.1f}",
                      f"{used['others_at_least'][key]:.1f}"])  # fmt: skip
    counts = [f"{each['rows']} tokens {which}" for each, which in ((drawn, "at random"), (used, "of the answers"))]
    digits = head["digits"]
    about = (
        f"Rows of random directions would have a mean cosine² of {1 / result['width']:.4f}. The mean of all unit rows "
        f"has length {head['length_of_the_mean']:.2f}, and their effective rank is {head['effective_rank']:.0f} of "
        f"{result['width']}. "
    )
    if digits["cosine"] is not None:
        about += (
            f"Two of the {len(digits['tokens'])} digits have a mean cosine of {digits['cosine']:.2f}, and a mean "
            f"cosine² of {digits['squared_cosine']:.2f}. "
        )
    nearest = [f"`{word}`: " + ", ".join(f"`{text}` {value:.2f}" for text, value in rows)
            for word, rows in head["neighbours"].items()]  # fmt: skip
    return f"{table(['', *counts], lines)}\n{about}The nearest rows:\n\n" + "".join(f"- {line}\n" for line in nearest)


def mass_table(bands: Mapping[str, Row]) -> str:
    """Where the probability lies that is not on the target."""
    near = [f"cosine ≥ {n:g}" for n in NEAR]
    head = ["target", "positions", "CE, nats", "on the target", "on its spellings", *near, "≥ 0.5, control"]
    head += ["Σ q cos²", "Σ q cos², control"]
    lines = [
        [name, f"{row['positions']:,}", f"{row['ce']:.3f}", percent(row["q"]), percent(row["spellings"]),
         *(percent(row[f"near {near}"]) for near in NEAR),
         percent(row["near_another 0.5"]), percent(row["near credit"]),
         percent(row["near_another credit"])]
        for name, row in bands.items()
    ]  # fmt: skip
    return table(head, lines) + "\nProbabilities in %, means over positions. Near and Σ q cos² exclude the target.\n"


def gradient_table(bands: Mapping[str, Row]) -> str:
    """Cosine and length of the term's gradient, and of sums."""
    head = ["target", "form", "cosine", "length", *(f"CE with CE + {w:g} MCE" for w in WEIGHTS)]
    lines = [
        [name, label, number(term["cosine"]), number(term["norm"]), *(f"{term['sum'][str(w)]:.4f}" for w in WEIGHTS)]
        for name, row in bands.items()
        for form, label in FORMS.items()
        for term in [row["gradients"][form]]
    ]
    note = (
        "Cosine of the matrix term's gradient with that of CE and its length relative to it, with all positions as one "
        "vector; then the cosine between the gradients of CE and of the sum.\n"
    )
    return f"{table(head, lines)}\n{note}"


def weights_table(pairs: Sequence[Row], per_batch: int) -> str:
    """The same by all weights, means and ranges over pairs of batches."""
    if not pairs:
        return "Not measured.\n"
    head = ["gradient", "cosine with CE", "length", *(f"CE with CE + {w:g} MCE" for w in WEIGHTS), "signs that change"]
    lines = []
    for form, label in FORMS.items():
        mine = [row[form] for row in pairs]
        lines.append([f"matrix term, {label}", over(x["cosine"] for x in mine), over(x["norm"] for x in mine),
                      *(over(x["sum"][str(w)] for x in mine) for w in WEIGHTS),
                      over(x["signs_that_differ"] for x in mine)])  # fmt: skip
    other = over(row["other_answers"]["cosine"] for row in pairs)
    lines.append(["CE on other answers", other, *["–"] * (len(WEIGHTS) + 2)])
    note = (
        f"Mean (minimum to maximum) over {len(pairs)} pairs of batches of {per_batch} answers each. The last column is "
        f"the share of weights whose gradient changes its sign when the term is added with weight 1.\n"
    )
    return f"{table(head, lines)}\n{note}"


def over(values: Any) -> str:
    """Mean and range."""
    x = list(values)
    return f"{sum(x) / len(x):.3f} ({min(x):.3f} to {max(x):.3f})"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3f}"


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.2f}"


if __name__ == "__main__":
    main()
