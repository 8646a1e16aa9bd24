"""The page of a comparison: ``compare.html``, a single file that needs no network or script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matrix_ssl.report.comparison import figures
from matrix_ssl.report.comparison.data import Comparison, Group, Trial, Tuning, read_comparison
from matrix_ssl.report.comparison.statistics import SIGNIFICANT
from matrix_ssl.report.comparison.table import difference_cell, rows, table_note
from matrix_ssl.report.comparison.words import notes, p_value, verdict
from matrix_ssl.report.formats import ABSENT, Cell, device_name, duration, percent, present, settings, whole
from matrix_ssl.report.measures import MEASURES
from matrix_ssl.report.template import write_page

PAGE = "compare.html"


class Matrix(NamedTuple):
    """For each pair of entries in a group, whether one is better, in words, with the adjusted p value."""

    title: str
    labels: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]


def write_comparison(out: Path) -> Path:
    """Writes ``compare.html`` next to ``compare.json``, even for a comparison that is still running."""
    c = read_comparison(out)
    groups, count = c.groups(), len({entry.method for entry in c.entries})
    values = {
        "c": c,
        "title": f"{count} methods – matrix-ssl",
        "heading": f"{count} methods compared" if count > 1 else "Comparison",
        "kind": " · ".join(filter(None, [c.results.recipe and f"{c.results.recipe} recipe", c.results.data.name])),
        "verdict": verdict(c),
        "notes": [(note, "") for note in notes(c)],
        "facts": _facts(c),
        "table": [(row.label, row.remark, row.cells) for row in rows(c)],
        "table_note": table_note(c),
        "intervals": figures.intervals(c),
        "differences": _differences(c),
        "matrices": [matrix for group in groups if (matrix := _matrix(c, group))],
        "significant": SIGNIFICANT,
        "training": list(filter(None, [figures.accuracy_over_time(groups), figures.rank_and_entropy(groups)])),
        "trials": [(c.names[trial.method], *_trial(c, trial)) for trial in c.trials],
        "tuning_note": _tuning_note(c, c.results.tuning) if c.results.tuning else "",
        "settings": settings(c.results.settings),
        "own_settings": [(e.label, _assignments(e.runs[0].settings)) for e in c.entries if e.runs],
        "environment": settings(c.results.environment),
    }
    return write_page(out / PAGE, "comparison.html", values)


def _facts(c: Comparison) -> list[tuple[str, str]]:
    """Short answers below the headline."""
    r = c.results
    failed = sum(len(entry.failures) for entry in c.entries)
    time = sum(run.seconds or 0.0 for entry in c.entries for run in entry.runs)
    return present({
        "Training images": whole(r.data.train),
        "Test images": whole(r.data.test),
        "Classes": whole(r.data.classes),
        "Epochs": whole(r.budget),
        "Epochs of longer runs": whole(r.rivals_budget or None),
        "Seeds": whole(len(r.seeds) or None),
        "Runs done": f"{c.done} of {c.planned}" if c.planned else "",
        "Runs failed": whole(failed or None),
        "Time of all runs": duration(time) if time else "",
        "Device": device_name(r.environment),
    })  # fmt: skip


def _differences(c: Comparison) -> list[tuple[str, str, list[Cell]]]:
    """For every entry except the reference, its paired differences in all measures."""
    table = []
    for entry in c.ranked:
        differences = [c.difference(entry, m.key) for m in c.measures]
        if any(differences):
            cells = [difference_cell(m.heading, d, usual=c.seeds) for m, d in zip(c.measures, differences, strict=True)]
            table.append((entry.label, "", cells))
    return table


def _matrix(c: Comparison, group: Group) -> Matrix | None:
    """Which entry is significantly better than which; None without two entries that share two seeds."""
    pairs = c.pairs(group)
    if all(pair.adjusted_p is None for pair in pairs.values()):
        return None
    labels = [entry.label for entry in c.ranked if entry in group.entries and entry.scores(c.main.key)]

    def cell(a: str, b: str) -> tuple[str, str]:
        pair = pairs.get((a, b))
        if pair is None or pair.adjusted_p is None:
            return (ABSENT if a == b else "unknown"), ""
        word = "unclear" if not pair.significant else "better" if pair.difference.mean > 0 else "worse"
        return word, p_value(pair.adjusted_p)

    return Matrix(group.title, labels, [(a, [cell(a, b) for b in labels]) for a in labels])


def _trial(c: Comparison, trial: Trial) -> tuple[str, ...]:
    """Number, accuracy, choice, settings and time of a trial."""
    accuracy = "failed" if trial.error is not None else percent(trial.accuracy.get(_tuning_measure(c)))
    time = ABSENT if trial.seconds is None else duration(trial.seconds)
    return str(trial.trial), accuracy, "chosen" if trial.chosen else "", _assignments(trial.settings), time


def _tuning_measure(c: Comparison) -> str:
    return (c.results.tuning.measure if c.results.tuning else "") or c.main.key


def _tuning_note(c: Comparison, tuning: Tuning) -> str:
    measure = next((m.heading for m in MEASURES if m.key == _tuning_measure(c)), _tuning_measure(c))
    facts = present({
        "Epochs of a trial": whole(tuning.budget),
        "Seeds of a trial": whole(tuning.seeds) if tuning.seeds > 1 else "",
        "Accuracy": f"{measure} in percent, on training images held out from the trial; no test image is used",
        "Held out": f"{100 * tuning.held_out:.0f}%" if tuning.held_out else "",
        "Settings of the trials only": ", ".join(tuning.settings),
    })  # fmt: skip
    return ". ".join(f"{name}: {text}" for name, text in facts) + "."


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings(values)) or "the recipe's"
