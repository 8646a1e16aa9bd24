"""The results of fine-tuning a real model, from ``llm_real.json``, as the part ``real`` of llm-evidence.md.

python -m benchmarks.pages.llm_real_page
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages.tables import fill, table
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.report.comparison.statistics import holm, paired_difference
from matrix_ssl.report.diagnosis import layer_name
from matrix_ssl.runs.files import read_json

ARMS = {"ce": "CE", "closed": "CE + MCE, closed", "top": "CE + MCE, top 16"}
PLAIN = "ce"
LAYERS = 7  # shown of a diagnosis, evenly spread

Row = dict[str, Any]


def main() -> None:
    page = ROOT / "docs" / "results" / "llm-evidence.md"
    fill(page, "real", section(read_json(RESULTS / "llm_real.json")))
    Console().print("written: docs/results/llm-evidence.md", markup=False)


def chosen_rates(trials: Sequence[Row]) -> dict[str, float]:
    """For each arm the rate of the lowest mean cross-entropy of held-out problems; of equal ones the lower rate."""
    by_arm: dict[str, dict[float, list[float]]] = {arm: {} for arm in ARMS}
    for row in trials:
        by_arm[row["arm"]].setdefault(row["rate"], []).append(row["after"]["eval_ce"])
    return {
        arm: min(sorted(by_rate), key=lambda rate: sum(by_rate[rate]) / len(by_rate[rate]))
        for arm, by_rate in by_arm.items()
    }


def complete_seeds(rows: Sequence[Row]) -> list[Row]:
    """The rows of seeds that have all arms, in the order of seeds and arms."""
    by_seed: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {})[row["arm"]] = row
    return [by_seed[seed][arm] for seed in sorted(by_seed) if by_seed[seed].keys() == ARMS.keys() for arm in ARMS]


def section(result: Row) -> str:
    """Everything that a reader needs to judge the comparison."""
    rows, s, e = result["rows"], result["settings"], result["rows"][0]["environment"]
    commits = ", ".join(sorted({str(row["environment"]["commit"]) for row in (*rows, *result["trials"])}))
    seeds = sorted({row["seed"] for row in rows})
    stopped = "" if len(seeds) == len(s["seeds"]) else f" Of {len(s['seeds'])} planned seeds {len(seeds)} are complete."
    tokens = summarise([row["counts"]["tokens"] for row in rows])["mean"]
    n = result["problems"]
    return "\n".join([
        f"{len(seeds)} seeds of {result['model']}, {rows[0]['parameters']:,} parameters; {rows[0]['steps']} steps of "
        f"{s['batch']} problems, {tokens:,.0f} tokens; rates selected on {n['held_out']} held-out problems; "
        f"{n['test']} test problems, of which {min(s['scored'], n['test'])} are answered. Measured on an "
        f"{e['processor']}, one thread, float32, PyTorch {e['torch']}, transformers {e['transformers']}, commit "
        f"{commits}.{stopped}\n",
        arms_table(rows, result["base"]),
        "Token CE for each seed:\n",
        seeds_table(rows, seeds),
        "Trials: token CE of the held-out problems; the selected rates are in bold.\n",
        trials_table(result["trials"]),
        diagnosis_table(rows),
    ])  # fmt: skip


def arms_table(rows: Sequence[Row], base: Row) -> str:
    """Likelihood and accuracy of every arm, with paired differences to cross-entropy."""
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    ce = {arm: [row["after"]["eval_ce"] for row in mine] for arm, mine in by_arm.items()}
    right = {arm: [accuracy(row["score"]) for row in mine] for arm, mine in by_arm.items()}
    before = next((row["before"] for row in rows if row["before"]), None)
    first = [f"{before['eval_ce']:.4f}", "–", "–", f"{before['eval_mce']:.4f}"] if before else ["–"] * 4
    lines = [["before", "–", *first, f"{100 * accuracy(base):.1f}", "–", "–"]]
    several = len(ce[PLAIN]) > 1
    differences, accuracies = (
        {arm: paired_difference(x[arm], x[PLAIN]) for arm in ARMS if arm != PLAIN} if several else {}
        for x in (ce, right)
    )
    adjusted = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    for arm, mine in by_arm.items():
        mce = summarise([row["after"]["eval_mce"] for row in mine])
        difference = [interval(differences[arm], 1, 4), f"{adjusted[arm]:.2g}"] if arm in differences else ["–", "–"]
        points = interval(accuracies[arm], 100, 1) if arm in accuracies else "–"
        lines.append([
            ARMS[arm], f"{mine[0]['rate']:g}", spread(summarise(ce[arm]), 1, 4), *difference, f"{mce['mean']:.4f}",
            spread(summarise(right[arm]), 100, 1), points, f"{summarise([row['seconds'] for row in mine])['mean']:.0f}",
        ])  # fmt: skip
    head = ["arm", "rate", "token CE, nats", "− CE", "p (Holm)", "MCE", "right, %", "− CE, points", "seconds"]
    note = (
        "Mean ± standard deviation over the seeds; paired differences with their 95 % t intervals, p values by the "
        "paired t test on token CE, adjusted for both arms. Token CE, MCE and the share of right answers are those of "
        "test problems, evaluated once per row; MCE is in the form of the arm, closed for CE. Seconds cover training "
        "and the evaluation of the likelihood.\n"
    )
    return f"{table(head, lines)}\n{note}"


def accuracy(score: Row) -> float:
    """The share of answers with the right number behind ####."""
    return float(score["extractions"]["strict-match"]["accuracy"])


def interval(d: Any, times: float, digits: int) -> str:
    """A difference and its interval."""
    values = [
        f"{times * x:+.{digits}f}".replace("-", "−") for x in (d.mean, *(x for x in (d.low, d.high) if x is not None))
    ]
    return f"{values[0]} [{', '.join(values[1:])}]" if len(values) > 1 else values[0]


def spread(summary: Mapping[str, float], times: float, digits: int) -> str:
    """Mean ± sd."""
    return f"{times * summary['mean']:.{digits}f} ± {times * summary['sd']:.{digits}f}"


def seeds_table(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """Arms down, seeds across."""
    values = {(row["arm"], row["seed"]): row["after"]["eval_ce"] for row in rows}
    lines = [[ARMS[arm], *(f"{values[arm, seed]:.4f}" for seed in seeds)] for arm in ARMS]
    return table(["seed", *map(str, seeds)], lines)


def trials_table(trials: Sequence[Row]) -> str:
    """Arms down, rates across."""
    best, rates = chosen_rates(trials), sorted({row["rate"] for row in trials})
    lines = []
    for arm in ARMS:
        cells = []
        for rate in rates:
            mine = [row["after"]["eval_ce"] for row in trials if (row["arm"], row["rate"]) == (arm, rate)]
            text = f"{sum(mine) / len(mine):.4f}"
            cells.append(f"**{text}**" if rate == best[arm] else text)
        lines.append([ARMS[arm], *cells])
    ends = ", ".join(ARMS[arm] for arm, rate in best.items() if rate in (rates[0], rates[-1])) or "none"
    return f"{table(['rate', *(f'{rate:g}' for rate in rates)], lines)}\nBest rate at an end of the grid: {ends}.\n"


def diagnosis_table(rows: Sequence[Row]) -> str:
    """eRank of some layers before and after, of the first seed."""
    after = {row["arm"]: row["diagnosis"] for row in rows if "diagnosis" in row}
    layers = after[PLAIN]
    shown = sorted({round(i * (len(layers) - 1) / (LAYERS - 1)) for i in range(LAYERS)})
    lines = [["before", *(f"{layers[i]['reference']['erank']:.1f}" for i in shown)]]
    lines += [[ARMS[arm], *(f"{after[arm][i]['erank']:.1f}" for i in shown)] for arm in ARMS]
    head = ["eRank", *(layer_name(layers[i]["layer"]) for i in shown)]
    return f"Diagnosis of seed {rows[0]['seed']} on the test problems:\n\n{table(head, lines)}"


if __name__ == "__main__":
    main()
