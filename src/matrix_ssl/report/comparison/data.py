"""Reads ``compare.json`` as arms: the runs of one method for one number of epochs, one for each seed. Imports no torch.

What is absent is empty; what cannot be read is counted. A row that repeats method, epochs and seed replaces the
earlier one.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from matrix_ssl.errors import RunFolderError
from matrix_ssl.report.comparison.statistics import PairedDifference, paired_difference
from matrix_ssl.report.run.data import finite_number, mapping
from matrix_ssl.report.run.results import MEASURES, Measure

RESULTS = "compare.json"
COSTS = ("seconds", "cpu_seconds", "images_per_second", "peak_memory_mib")


class Summary(NamedTuple):
    """Mean and standard deviation (n - 1 in its denominator; 0 for n = 1) over n seeds."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Run:
    """One pre-training that ended well: accuracies in [0, 1] by measure, costs, and its curve point by point."""

    seed: int
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    settings: Mapping[str, Any]
    bad_steps: float


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error: which one, and what it said."""

    label: str
    what: str
    message: str


@dataclass(frozen=True)
class Arm:
    """A method with a number of epochs; ``place`` is that of the method among all methods, and decides its look."""

    label: str
    method: str
    epochs: float | None
    place: int
    runs: Sequence[Run]
    failures: Sequence[Failure]

    def scores(self, measure: str) -> dict[int, float]:
        """Accuracy in [0, 1] by seed, of the runs that have it."""
        return {run.seed: run.scores[measure] for run in self.runs if measure in run.scores}

    def summary(self, measure: str) -> Summary | None:
        """Mean and standard deviation over the seeds; None without a run that has the measure."""
        return summarise(list(self.scores(measure).values()))

    def cost(self, key: str) -> float | None:
        """Mean of a cost over the runs that recorded it; None when none did."""
        found = summarise([run.costs[key] for run in self.runs if key in run.costs])
        return found.mean if found else None


@dataclass(frozen=True)
class Group:
    """Arms to be ranked with each other: those of one number of epochs, and the reference."""

    title: str
    arms: Sequence[Arm]


@dataclass(frozen=True)
class Comparison:
    """The contents of ``compare.json``; ``results`` is the file itself."""

    results: Mapping[str, Any]
    names: Mapping[str, str]  # method as given -> its name on the page
    arms: Sequence[Arm]  # in the order of the methods, fewer epochs first
    reference: Arm | None
    measures: Sequence[Measure]  # those that at least one run has
    main: Measure
    unreadable: int = 0
    planned: int | None = None
    tuning_failures: Sequence[Failure] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Runs that have ended, failed ones among them."""
        return sum(len(arm.runs) + len(arm.failures) for arm in self.arms)

    @property
    def seeds(self) -> int:
        """The largest number of seeds that an arm has a result for."""
        return max((len(arm.runs) for arm in self.arms), default=0)

    @property
    def failures(self) -> list[Failure]:
        """Everything that failed, runs before trials of tuning."""
        return [failure for arm in self.arms for failure in arm.failures] + list(self.tuning_failures)

    @cached_property
    def ranked(self) -> list[Arm]:
        """The arms by descending mean of the main measure, those without it last."""
        means = {id(arm): s.mean if (s := arm.summary(self.main.key)) else -1.0 for arm in self.arms}
        return sorted(self.arms, key=lambda arm: -means[id(arm)])

    def difference(self, arm: Arm, measure: str) -> PairedDifference | None:
        """The arm minus the reference over common seeds; None for the reference itself and without a common seed."""
        if self.reference is None or arm is self.reference:
            return None
        a, b = arm.scores(measure), self.reference.scores(measure)
        seeds = sorted(a.keys() & b.keys())
        return paired_difference([a[s] for s in seeds], [b[s] for s in seeds]) if seeds else None

    def groups(self) -> list[Group]:
        """The arms of each number of epochs with the reference, the budget of the comparison first."""
        found: dict[float | None, list[Arm]] = {}
        for arm in self.arms:
            found.setdefault(arm.epochs, []).append(arm)
        budget = finite_number(self.results.get("budget"))
        groups = []
        for epochs in sorted(found, key=lambda e: (e != budget, e is None, e or 0)):
            arms = found[epochs]
            title = _epochs(epochs)
            if self.reference and self.reference not in arms:
                title += f" ({self.reference.label} {_epochs(self.reference.epochs)})"
                arms = [self.reference, *arms]
            groups.append(Group(title, arms))
        return [group for group in groups if len(group.arms) > 1] or groups[:1]


def summarise(values: Sequence[float]) -> Summary | None:
    """Mean, standard deviation and number of values; None without any."""
    if not values:
        return None
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, len(values))


def read_results(out: Path) -> dict[str, Any]:
    """What ``compare.json`` in the folder of a comparison holds.

    Raises:
        RunFolderError: the file is missing, damaged, or no JSON object.
    """
    path = out / RESULTS
    again = "move it away and run matrix-ssl compare again"
    try:
        results = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFolderError(f"{out} has no {RESULTS}: choose a folder that matrix-ssl compare has written.") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}; {again}.") from error
    if not isinstance(results, dict):
        raise RunFolderError(f"{path} is not a JSON object but a {type(results).__name__}: {again}.")
    return results


def read_arms(results: Mapping[str, Any]) -> Comparison:
    """The arms of what ``read_results`` gives."""
    rows = items(results.get("rows"))
    good = [row for row in rows if isinstance(row.get("method"), str) and isinstance(row.get("seed"), int)]
    tuning = [row for row in items(mapping(results.get("tuning")).get("rows")) if isinstance(row.get("method"), str)]
    methods = [m for m in _list(results.get("methods")) if isinstance(m, str)]
    names = method_names([*methods, *(row["method"] for row in [*good, *tuning])])
    arms = _arms(good, names, finite_number(results.get("budget")))
    measures = [m for m in MEASURES if any(arm.scores(m.key) for arm in arms)]
    main = next((m for m in MEASURES if m.key == results.get("measure")), _LINEAR)
    return Comparison(
        results=results,
        names=names,
        arms=arms,
        reference=_reference(arms, results),
        measures=measures,
        main=main,
        unreadable=len(_list(results.get("rows"))) - len(good),
        planned=_planned(results, methods),
        tuning_failures=[_failure(row, names[row["method"]], "tuning, trial") for row in tuning if _failed(row)],
    )


_LINEAR = next(m for m in MEASURES if m.key == "linear")


def method_names(methods: Iterable[str]) -> dict[str, str]:
    """Short and different names: a method's own, the stem of a file, or the whole path where stems coincide."""
    unique = list(dict.fromkeys(methods))
    stems = [re.split(r"[/\\]", m)[-1].removesuffix(".py") or m for m in unique]
    return {m: stem if stems.count(stem) == 1 else m for m, stem in zip(unique, stems, strict=True)}


def items(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a JSON list; empty for anything else."""
    return [entry for entry in _list(value) if isinstance(entry, Mapping)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _arms(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], budget: float | None) -> list[Arm]:
    places = {method: place for place, method in enumerate(names)}
    by_arm: dict[tuple[str, float | None], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault((row["method"], finite_number(row.get("epochs"))), {})[row["seed"]] = row
    arms = []
    for method, epochs in sorted(by_arm, key=lambda key: (places[key[0]], key[1] or 0)):
        mine = [row for _, row in sorted(by_arm[method, epochs].items())]
        label = names[method] if epochs == budget else f"{names[method]}, {_epochs(epochs)}"
        runs = [_run(row) for row in mine if not _failed(row)]
        failures = [_failure(row, label, "seed") for row in mine if _failed(row)]
        arms.append(Arm(label, method, epochs, places[method], runs, failures))
    return arms


def _run(row: Mapping[str, Any]) -> Run:
    scores = {m.key: finite_number(mapping(mapping(row.get("accuracy")).get(m.key)).get("mean")) for m in MEASURES}
    return Run(
        seed=row["seed"],
        scores=_known(scores),
        costs=_known({key: finite_number(row.get(key)) for key in COSTS}),
        curve=[_known({k: finite_number(v) for k, v in point.items()}) for point in items(row.get("curve"))],
        settings=mapping(row.get("settings")),
        bad_steps=finite_number(row.get("bad_steps")) or 0,
    )


def _failed(row: Mapping[str, Any]) -> bool:
    return row.get("error") is not None


def _failure(row: Mapping[str, Any], label: str, what: str) -> Failure:
    number = row.get("seed") if what == "seed" else row.get("trial")
    return Failure(label, f"{what} {number}", str(row.get("error")))


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def _epochs(epochs: float | None) -> str:
    if epochs is None:
        return "unknown epochs"
    return "1 epoch" if epochs == 1 else f"{epochs:,g} epochs"


def _reference(arms: Sequence[Arm], results: Mapping[str, Any]) -> Arm | None:
    """The arm of the reference method with the budget, else with the fewest epochs."""
    mine = [arm for arm in arms if arm.method == results.get("reference")]
    budget = finite_number(results.get("budget"))
    return next((arm for arm in mine if arm.epochs == budget), mine[0] if mine else None)


def _planned(results: Mapping[str, Any], methods: Sequence[str]) -> int | None:
    """How many runs the comparison will have: every method and seed, and the rivals again with their own budget."""
    if finite_number(results.get("planned")) is not None:
        return int(results["planned"])
    seeds = len(_list(results.get("seeds")))
    rivals = [m for m in methods if m != results.get("reference")]
    longer = results.get("rivals_budget") not in (None, 0, results.get("budget"))
    return seeds * (len(methods) + (len(rivals) if longer else 0)) or None
