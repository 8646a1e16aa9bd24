"""What weight, ridge and form of the matrix term change: on held-out problems, as a lead and not as a result.

    python -m benchmarks.experiments.llm_constants            (a quarter of an hour on one core, after llm_arms.py)
    python -m benchmarks.experiments.llm_constants --quick    (seconds: whether it runs)

The models, problems and learning rates of ``llm_arms.py`` with its seeds for tuning, which are not reported; the test
problems are not read. Every variant changes one constant of CE + MCE, closed. Several processes may run the command at
once. Results go to ``benchmarks/results/llm_constants.json`` and to ``docs/results/llm-arms.md``; of a quick run, to
the folder alone.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.experiments.llm_arms import ARMS, ROOT, Arm, open_experiment, share
from benchmarks.harness import RESULTS, command
from benchmarks.pages.llm_arms_page import PLAIN, TITLES, signed, spread
from benchmarks.pages.tables import fill, table
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.runs.files import read_json, write_json

RESULT = "llm_constants.json"
RATES = slice(2, 4)  # of those that llm_arms.py tries: the best of CE and the best of CE + MCE
CLOSED = ARMS["closed"].objective
VARIANTS = {
    "weight 0.3": dataclasses.replace(CLOSED, weight=0.3),
    "weight 3": dataclasses.replace(CLOSED, weight=3.0),
    "ridge 0.001": dataclasses.replace(CLOSED, ridge=0.001),
    "ridge 0.1": dataclasses.replace(CLOSED, ridge=0.1),
    "lanczos, 2 steps": dataclasses.replace(CLOSED, form="lanczos", steps=2),
}
BESIDE = (PLAIN, "closed", "top")  # trials of llm_arms.py

Row = dict[str, Any]


def main() -> None:
    experiment, quick = open_experiment(str(__doc__))
    rates = experiment.settings.rates[-2:] if quick else experiment.settings.rates[RATES]

    def explore(seed: int) -> None:
        experiment.tune(seed)
        model, problems = experiment.pretrained(seed), experiment.learned_from(seed)
        held_out = problems[experiment.settings.problems :]
        for (name, objective), rate in itertools.product(VARIANTS.items(), rates):
            experiment.run(model, problems, held_out, name, Arm(objective), rate=rate, seed=seed)

    seeds = experiment.settings.tuning_seeds
    share(seeds, experiment.folder, explore)
    cases = itertools.product(seeds, (*BESIDE, *VARIANTS), rates)
    result = {
        "command": command(),
        "objectives": {name: dataclasses.asdict(objective) for name, objective in VARIANTS.items()},
        "environment": experiment.environment,
        "rows": [read_json(experiment.path(*case)) for case in cases],
    }
    write_json((experiment.work if quick else RESULTS) / RESULT, result)
    if not quick:
        fill(ROOT / "docs" / "results" / "llm-arms.md", "constants", section(result["rows"]))
    Console().print(Markdown(section(result["rows"])))


def section(rows: Sequence[Row]) -> str:
    """Accuracy and cross-entropy of every variant at every rate, and the paired difference to CE at the same rate."""
    found = {(row["arm"], row["rate"], row["seed"]): row for row in rows}
    names, rates, seeds = (list(dict.fromkeys(values)) for values in zip(*found, strict=True))
    lines = []
    for name in names:
        cells = []
        for rate in rates:
            mine, plain = ([found[arm, rate, seed] for seed in seeds] for arm in (name, PLAIN))
            gain = summarise([a["accuracy"] - b["accuracy"] for a, b in zip(mine, plain, strict=True)])
            cells.append(spread(summarise([row["accuracy"] for row in mine]), 100, 1))
            cells.append(spread(summarise([row["ce"] for row in mine]), 1, 4))
            cells.append("–" if name == PLAIN else f"{signed(gain['mean'])} ± {100 * gain['sd']:.1f}")
        lines.append([TITLES.get(name, name), *cells])
    head = [f"{what}, rate {rate:g}" for rate in rates for what in ("accuracy, %", "token CE", "− CE, points")]
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    return f"{table(['variant', *head], lines)}\n{len(seeds)} seeds, mean ± standard deviation, commits {commits}.\n"


if __name__ == "__main__":
    main()
