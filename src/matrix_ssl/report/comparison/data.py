"""Reads ``compare.json``: every method with a number of epochs is an entry with its runs, one per seed.

What is missing is empty. A row that repeats a method, epochs and seed replaces the earlier one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from matrix_ssl.config.method_names import method_names
from matrix_ssl.report.comparison.statistics import Pair, PairedDifference, against, over_common_seeds, pairwise
from matrix_ssl.report.measures import MEASURES, Measure
from matrix_ssl.report.records import Number, Text, parse, read

RESULTS = "compare.json"
_LINEAR = next(m for m in MEASURES if m.key == "linear")


@dataclass(frozen=True)
class Score:
    """An accuracy in [0, 1]: mean and standard deviation over n draws of the labelled images, or over n seeds."""

    mean: Number
    sd: Number = 0.0
    n: int = 1


@dataclass(frozen=True)
class Run:
    """A row of the file: one pre-training run with its evaluation, or with the error that ended it."""

    method: Text
    seed: int
    epochs: Number | None = None
    accuracy: Mapping[Text, Score] = field(default_factory=dict)
    seconds: Number | None = None
    cpu_seconds: Number | None = None
    images_per_second: Number | None = None
    peak_memory_mib: Number | None = None
    bad_steps: int = 0
    curve: Sequence[Mapping[Text, Number | None]] = ()
    settings: Mapping[Text, Any] = field(default_factory=dict)
    environment: Mapping[Text, Any] = field(default_factory=dict)
    error: Text | None = None


@dataclass(frozen=True)
class Trial:
    """A tuning trial; accuracies in [0, 1] on held-out training images."""

    method: Text
    trial: int = 0
    settings: Mapping[Text, Any] = field(default_factory=dict)
    accuracy: Mapping[Text, Number] = field(default_factory=dict)
    seconds: Number | None = None
    chosen: bool = False
    error: Text | None = None


@dataclass(frozen=True)
class Tuning:
    """How the settings of every method were chosen."""

    budget: Number | None = None
    seeds: int = 1  # of a trial
    held_out: Number | None = None
    measure: Text = ""
    settings: Sequence[Text] = ()
    rows: Sequence[Trial] = ()


@dataclass(frozen=True)
class Data:
    """The images of a comparison."""

    name: Text = ""
    train: int | None = None
    test: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Public:
    """A frozen public encoder, evaluated and not trained, or the error that prevented it."""

    name: Text
    reference: Text
    sha256: Text
    tensors: Text
    accuracy: Mapping[Text, Score] = field(default_factory=dict)
    seconds: Number | None = None
    error: Text | None = None


@dataclass(frozen=True)
class Results:
    """The file; costs in seconds and MiB."""

    command: Text = ""
    recipe: Text = ""
    reference: Text = ""
    methods: Sequence[Text] = ()
    seeds: Sequence[int] = ()
    budget: Number | None = None
    rivals_budget: Number | None = None
    measure: Text = "linear"
    data: Data = Data()
    settings: Mapping[Text, Any] = field(default_factory=dict)
    environment: Mapping[Text, Any] = field(default_factory=dict)
    baselines: Mapping[Text, Mapping[Text, Score]] = field(default_factory=dict)
    public: Sequence[Public] = ()
    tuning: Tuning | None = None
    rows: Sequence[Run] = ()


@dataclass(frozen=True)
class Entry:
    """A method with a number of epochs; ``place``, the method's position among all methods, determines its look."""

    label: str
    method: str
    epochs: float | None
    place: int
    runs: Sequence[Run]
    failures: Sequence[Run]

    def scores(self, measure: str) -> dict[int, float]:
        """Accuracy in [0, 1] by seed, for the runs that have it."""
        return {run.seed: run.accuracy[measure].mean for run in self.runs if measure in run.accuracy}

    def summary(self, measure: str) -> Score | None:
        """Mean and standard deviation (n - 1 in its denominator) over the seeds; None if no run has the measure."""
        values = list(self.scores(measure).values())
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return Score(float(np.mean(values)), spread, len(values)) if values else None

    def cost(self, key: str) -> float | None:
        """Mean of a cost over the runs that recorded it; None when none did."""
        values = [value for run in self.runs if (value := getattr(run, key)) is not None]
        return float(np.mean(values)) if values else None

    @property
    def remark(self) -> str:
        """How many runs failed; empty when none did."""
        return f"{len(self.failures)} of {len(self.failures) + len(self.runs)} failed" if self.failures else ""


@dataclass(frozen=True)
class Group:
    """Entries to be ranked against each other: those with one number of epochs, and the reference."""

    title: str
    entries: Sequence[Entry]


@dataclass(frozen=True)
class Comparison:
    """What the file says about each method."""

    results: Results
    names: Mapping[str, str]  # names on the page, by method
    entries: Sequence[Entry]  # in the order of the methods, fewer epochs first
    reference: Entry | None
    measures: Sequence[Measure]  # those that at least one run has
    main: Measure

    @property
    def done(self) -> int:
        """Number of runs that have ended, including failed ones."""
        return sum(len(entry.runs) + len(entry.failures) for entry in self.entries)

    @property
    def planned(self) -> int:
        """Number of runs in all: every method and seed, and every one except the reference again for longer."""
        r = self.results
        again = len([m for m in r.methods if m != r.reference]) if r.rivals_budget not in (None, 0, r.budget) else 0
        return len(r.seeds) * (len(r.methods) + again)

    @property
    def seeds(self) -> int:
        """The largest number of seeds for which an entry has a result."""
        return max((len(entry.runs) for entry in self.entries), default=0)

    @property
    def trials(self) -> Sequence[Trial]:
        return self.results.tuning.rows if self.results.tuning else ()

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Label and error of everything that failed, runs before tuning trials."""
        runs = [(f"{e.label}, seed {run.seed}", run.error or "") for e in self.entries for run in e.failures]
        trials = [trial for trial in self.trials if trial.error is not None]
        runs += [(f"{self.names[t.method]}, tuning, trial {t.trial}", t.error or "") for t in trials]
        return runs + [(public.name, public.error) for public in self.results.public if public.error is not None]

    @cached_property
    def ranked(self) -> list[Entry]:
        """The entries by descending mean of the main measure, those without it last."""
        return sorted(self.entries, key=lambda entry: -(s.mean if (s := entry.summary(self.main.key)) else -1.0))

    def difference(self, entry: Entry, measure: str) -> PairedDifference | None:
        """The entry minus the reference over common seeds; None for the reference itself or without a common seed."""
        if self.reference is None or entry is self.reference:
            return None
        return over_common_seeds(entry.scores(measure), self.reference.scores(measure))

    def pairs(self, group: Group) -> dict[tuple[str, str], Pair]:
        """The paired differences in the main measure within a group, by labels."""
        return pairwise({entry.label: entry.scores(self.main.key) for entry in group.entries})

    @cached_property
    def against_reference(self) -> dict[str, Pair]:
        """Every other entry minus the reference in the main measure, by labels; tested together within each group."""
        if self.reference is None:
            return {}
        pairs: dict[str, Pair] = {}
        for group in self.groups():
            scores = {entry.label: entry.scores(self.main.key) for entry in group.entries}
            pairs |= against(scores, self.reference.label)
        return pairs

    def pair(self, group: Group, one: Entry, other: Entry) -> Pair | None:
        """One entry minus another of a group in the main measure; None without a common seed.

        A pair with the reference is tested together with the reference's pairs, any other with all pairs of the group.
        """
        if one is self.reference:
            pair = self.against_reference.get(other.label)
            return pair and pair.reversed()
        if other is self.reference:
            return self.against_reference.get(one.label)
        return self.pairs(group).get((one.label, other.label))

    def groups(self) -> list[Group]:
        """The entries for each number of epochs, with the reference; the budget of the comparison comes first."""
        by_epochs: dict[float | None, list[Entry]] = {}
        for entry in self.entries:
            by_epochs.setdefault(entry.epochs, []).append(entry)
        groups = []
        for epochs in sorted(by_epochs, key=lambda e: (e != self.results.budget, e is None, e or 0)):
            entries, title = by_epochs[epochs], _epochs(epochs)
            if self.reference and self.reference not in entries:
                title += f" ({self.reference.label} {_epochs(self.reference.epochs)})"
                entries = [self.reference, *entries]
            groups.append(Group(title, entries))
        return [group for group in groups if len(group.entries) > 1] or groups[:1]


def read_comparison(out: Path) -> Comparison:
    """The comparison in a folder; raises RunFolderError if ``compare.json`` is missing or damaged."""
    return _compare(read(Results, out / RESULTS, command="matrix-ssl compare"))


def parse_comparison(values: Any, path: Path) -> Comparison:
    """The comparison that the contents of ``path`` describe."""
    return _compare(parse(Results, values, path, remedy="move it away and run matrix-ssl compare again"))


def _compare(results: Results) -> Comparison:
    trials = results.tuning.rows if results.tuning else ()
    names = method_names([*results.methods, *(run.method for run in results.rows), *(t.method for t in trials)])
    entries = _entries(results, names)
    reference = [entry for entry in entries if entry.method == results.reference]
    return Comparison(
        results=results,
        names=names,
        entries=entries,
        reference=next((e for e in reference if e.epochs == results.budget), reference[0] if reference else None),
        measures=[m for m in MEASURES if any(entry.scores(m.key) for entry in entries)],
        main=next((m for m in MEASURES if m.key == results.measure), _LINEAR),
    )


def _entries(results: Results, names: Mapping[str, str]) -> list[Entry]:
    places = {method: place for place, method in enumerate(names)}
    by_entry: dict[tuple[str, float | None], dict[int, Run]] = {}
    for row in results.rows:
        by_entry.setdefault((row.method, row.epochs), {})[row.seed] = row
    entries = []
    for method, epochs in sorted(by_entry, key=lambda key: (places[key[0]], key[1] or 0)):
        label = names[method] if epochs == results.budget else f"{names[method]}, {_epochs(epochs)}"
        rows = [row for _, row in sorted(by_entry[method, epochs].items())]
        ended = [row for row in rows if row.error is None]
        failed = [row for row in rows if row.error is not None]
        entries.append(Entry(label, method, epochs, places[method], ended, failed))
    return entries


def _epochs(epochs: float | None) -> str:
    if epochs is None:
        return "unknown epochs"
    return "1 epoch" if epochs == 1 else f"{epochs:,g} epochs"
