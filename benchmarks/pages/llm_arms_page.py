"""What ``llm_arms.py`` found: the statistics, and the section of docs/results/llm-arms.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages.tables import fill, table
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.report.comparison.statistics import holm, paired_difference

TITLES = {
    "ce": "CE",
    "closed": "CE + MCE, closed",
    "top": "CE + MCE, top 16",
    "twice": "CE, twice the rate",
    "smoothing": "CE, label smoothing 0.1",
}
PLAIN = "ce"

Row = dict[str, Any]


def chosen_rates(trials: Sequence[Row]) -> dict[str, float]:
    """For each arm the rate of the highest mean accuracy over the tuning seeds; of equal ones the lower rate."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in trials:
        found.setdefault(row["arm"], {}).setdefault(row["rate"], []).append(row["accuracy"])
    return {
        arm: max(sorted(by_rate), key=lambda rate: sum(by_rate[rate]) / len(by_rate[rate]))
        for arm, by_rate in found.items()
    }


def summarise_arms(rows: Sequence[Row]) -> dict[str, Row]:
    """Mean and spread over the seeds of every arm, and its paired difference to ``PLAIN`` with Holm's p values.

    Every arm must have been run with the same seeds.
    """
    by_arm: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        by_arm.setdefault(row["arm"], []).append(row)
    plain = [row["accuracy"] for row in by_arm[PLAIN]]
    differences = {
        arm: paired_difference([row["accuracy"] for row in mine], plain) for arm, mine in by_arm.items() if arm != PLAIN
    }
    adjusted = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    found: dict[str, Row] = {}
    for arm, mine in by_arm.items():
        found[arm] = {key: summarise([row[key] for row in mine]) for key in ("accuracy", "ce", "seconds")}
        found[arm] |= {"rate": mine[0]["rate"]}
        if arm != PLAIN:
            found[arm] |= {"difference": differences[arm]._asdict(), "adjusted_p": adjusted[arm]}
    return found


def publish(result: Row, page: Path) -> None:
    """Fills the page between its markers; what stands around them stays."""
    fill(page, "arms", section(result))


def section(result: Row) -> str:
    """Everything that a reader needs to judge the comparison."""
    return "\n".join([
        made_on(result),
        arms_table(result["arms"]),
        verdict(result["arms"]),
        "Accuracy in % for each seed:\n",
        seeds_table(result["rows"]),
        rows_of_the_head(result),
        "Trials: accuracy in % on held-out problems, mean over the tuning seeds; the selected rates are in bold.\n",
        trials_table(result["trials"]),
    ])  # fmt: skip


def made_on(result: Row) -> str:
    """The sentence on the machine and the sizes."""
    e, s = result["environment"], result["settings"]
    commits = ", ".join(sorted({str(row["commit"]) for row in result["rows"]}))
    return (
        f"{len(s['seeds'])} seeds, {result['models'][0]['parameters']:,} parameters; {s['pretraining_steps']} "
        f"pre-training steps of {s['pretraining_batch']} × {s['window']} tokens, {s['steps']} fine-tuning steps of "
        f"{s['batch']} problems out of {s['problems']}, {s['test']} test problems. Measured on an "
        f"{e['processor']}, one thread, float32, PyTorch {e['torch']}, transformers {e['transformers']}, commit "
        f"{commits}.\n"
    )


def arms_table(arms: Mapping[str, Row]) -> str:
    """Accuracy, difference, cross-entropy and time of every arm."""
    head = ["arm", "rate", "accuracy, %", "− CE, points", "p (Holm)", "token CE, nats", "CPU seconds"]
    lines = []
    for arm, row in arms.items():
        cells = [spread(row["accuracy"], 100, 1), *difference_cells(row), spread(row["ce"], 1, 4)]
        lines.append([TITLES[arm], f"{row['rate']:g}", *cells, spread(row["seconds"], 1, 0)])
    note = (
        "Mean ± standard deviation over the seeds; paired differences with their 95 % t intervals, p values by the "
        "paired t test, adjusted for the four comparisons. Token CE is that of the right answers' tokens on the test "
        "problems. Seconds are for the fine-tuning; the arm CE evaluates the matrix term, too, but is not trained on "
        "it.\n"
    )
    return f"{table(head, lines)}\n{note}"


def difference_cells(row: Row) -> list[str]:
    """The difference with its interval, and its p value."""
    if "difference" not in row:
        return ["–", "–"]
    d = row["difference"]
    interval = "" if d["low"] is None else f" [{signed(d['low'])}, {signed(d['high'])}]"
    return [f"{signed(d['mean'])}{interval}", "–" if row["adjusted_p"] is None else f"{row['adjusted_p']:.2g}"]


def signed(fraction: float) -> str:
    """Points with their sign."""
    return f"{100 * fraction:+.1f}".replace("-", "−")


def spread(summary: Row, times: float, digits: int) -> str:
    """Mean ± sd."""
    return f"{times * summary['mean']:.{digits}f} ± {times * summary['sd']:.{digits}f}"


def verdict(arms: Mapping[str, Row]) -> str:
    """One sentence for every arm beside cross-entropy."""
    words = []
    for arm, row in arms.items():
        if arm == PLAIN:
            continue
        p, mean = row["adjusted_p"], row["difference"]["mean"]
        if p is None or p > 0.05:
            words.append(f"{TITLES[arm]}: no significant difference from CE")
        else:
            words.append(f"{TITLES[arm]}: {'better' if mean > 0 else 'worse'} than CE at its tuned rate")
    return f"{'; '.join(words)} (at the 5 % level, adjusted for all four comparisons).\n"


def seeds_table(rows: Sequence[Row]) -> str:
    """Arms down, seeds across: one seed that learned late must not hide in a mean."""
    found = {(row["arm"], row["seed"]): row["accuracy"] for row in rows}
    seeds = sorted({seed for _, seed in found})
    arms = [arm for arm in TITLES if (arm, seeds[0]) in found]
    lines = [[TITLES[arm], *(f"{100 * found[arm, seed]:.1f}" for seed in seeds)] for arm in arms]
    return table(["seed", *map(str, seeds)], lines)


def rows_of_the_head(result: Row) -> str:
    """How far from orthogonal the rows are from which every arm starts."""
    heads = [row["head"] for row in result["models"]]
    mean = {key: summarise([head[key] for head in heads]) for key in heads[0]}
    d = result["settings"]["d"]
    return (
        f"Rows of the head after pre-training, mean ± standard deviation over the seeds: the mean squared cosine is "
        f"{spread(mean['squared_cosine'], 1, 3)} between two rows ({1 / d:.3f} for random rows of this width), "
        f"{spread(mean['squared_cosine_numbers'], 1, 3)} between those of two numbers, and "
        f"{spread(mean['squared_cosine_next_numbers'], 1, 3)} between those of consecutive numbers; the effective rank "
        f"is {spread(mean['effective_rank'], 1, 1)} of {d}.\n"
    )


def trials_table(trials: Sequence[Row]) -> str:
    """Arms down, rates across."""
    chosen = chosen_rates(trials)
    rates = sorted({row["rate"] for row in trials})
    lines = []
    for arm in chosen:
        cells = []
        for rate in rates:
            mine = [row["accuracy"] for row in trials if (row["arm"], row["rate"]) == (arm, rate)]
            text = f"{100 * sum(mine) / len(mine):.1f}"
            cells.append(f"**{text}**" if rate == chosen[arm] else text)
        lines.append([TITLES[arm], *cells])
    ends = [TITLES[arm] for arm, rate in chosen.items() if rate in (rates[0], rates[-1])]
    note = f"Best rate at an end of the grid: {', '.join(ends) or 'none'}.\n"
    return f"{table(['rate', *(f'{rate:g}' for rate in rates)], lines)}\n{note}"
