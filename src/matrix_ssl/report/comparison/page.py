"""The page about a comparison: ``compare.html``, a single file that needs no network and no script."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from matrix_ssl.config import flatten
from matrix_ssl.report.comparison import figures
from matrix_ssl.report.comparison.data import Comparison, Group, items, read_arms, read_results
from matrix_ssl.report.comparison.table import ABSENT, Cell, difference_cell, rows, table_note
from matrix_ssl.report.comparison.words import SIGNIFICANT, better, notes, pairs, verdict
from matrix_ssl.report.run.data import finite_number, mapping
from matrix_ssl.report.run.figures import duration, whole
from matrix_ssl.report.run.results import MEASURES
from matrix_ssl.report.template import render
from matrix_ssl.runs.files import write_atomically

PAGE = "compare.html"


@dataclass(frozen=True)
class Matrix:
    """For each arm of a group what it is against every other, in words, with the adjusted p value."""

    title: str
    labels: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Trial:
    """One trial of tuning, as text; accuracy in percent."""

    method: str
    number: str
    settings: str
    accuracy: str
    seconds: str
    chosen: bool


def write_page(out: Path) -> Path:
    """Writes ``compare.html`` beside ``compare.json``; the same file gives the same bytes.

    A comparison that is still running gives a page of what is there.

    Args:
        out: the folder of the comparison.

    Raises:
        RunFolderError: ``compare.json`` is missing or damaged, or the page cannot be written.
    """
    page = _render(read_arms(read_results(out)))
    path = out / PAGE

    def write(file: IO[bytes]) -> None:
        file.write(page.encode(errors="backslashreplace"))

    write_atomically(path, write)
    return path


def _render(c: Comparison) -> str:
    groups = c.groups()
    shown = [
        figures.intervals(c),
        figures.accuracy_over_time(groups),
        figures.rank_and_entropy(groups),
    ]
    intervals, *training = shown
    values = {
        "c": c,
        "heading": _heading(c),
        "kind": _kind(c),
        "verdict": verdict(c),
        "notes": notes(c),
        "facts": _facts(c),
        "table": rows(c),
        "table_note": table_note(c),
        "intervals": intervals,
        "differences": _differences(c),
        "differences_note": _differences_note(c),
        "matrices": [matrix for group in groups if (matrix := _matrix(c, group))],
        "significant": SIGNIFICANT,
        "training": [figure for figure in training if figure],
        "trials": _trials(c),
        "tuning_note": _tuning_note(c),
        "failures": c.failures,
        "command": str(c.results.get("command") or ""),
        "settings": _plain(mapping(c.results.get("settings"))),
        "own_settings": _own_settings(c),
        "environment": _plain(mapping(c.results.get("environment"))),
    }
    return render("comparison.html", values)


def _heading(c: Comparison) -> str:
    count = len({arm.method for arm in c.arms})
    return "Comparison" if count == 0 else f"{count} {'method' if count == 1 else 'methods'} compared"


def _kind(c: Comparison) -> str:
    data = mapping(c.results.get("data")).get("name")
    recipe = c.results.get("recipe")
    return " · ".join(filter(None, [f"{recipe} recipe" if recipe else "", str(data or "")]))


def _facts(c: Comparison) -> list[tuple[str, str]]:
    """Short answers below the headline; unknown ones are left out."""
    r, data, environment = c.results, mapping(c.results.get("data")), mapping(c.results.get("environment"))
    seeds = r.get("seeds")
    failed = sum(len(arm.failures) for arm in c.arms)
    time = sum(sum(run.costs.get("seconds", 0.0) for run in arm.runs) for arm in c.arms)
    facts = [
        ("Training images", _whole(data.get("train"))),
        ("Test images", _whole(data.get("test"))),
        ("Classes", _whole(data.get("classes"))),
        ("Epochs", _whole(r.get("budget"))),
        ("Epochs of the rivals", _whole(r.get("rivals_budget") or None)),
        ("Seeds", str(len(seeds)) if isinstance(seeds, list) and seeds else ""),
        ("Runs done", f"{c.done} of {c.planned}" if c.planned else str(c.done)),
        ("Runs failed", str(failed) if failed else ""),
        ("Time of all runs", duration(time) if time else ""),
        ("Device", str(environment.get("device_name") or environment.get("device") or "")),
    ]
    return [(name, text) for name, text in facts if text]


def _differences(c: Comparison) -> list[tuple[str, list[Cell]]]:
    """For every arm but the reference, its paired differences of all measures."""
    found = []
    for arm in c.ranked:
        differences = [c.difference(arm, m.key) for m in c.measures]
        if any(differences):
            cells = [difference_cell(m.heading, d, usual=c.seeds) for m, d in zip(c.measures, differences, strict=True)]
            found.append((arm.label, cells))
    return found


def _differences_note(c: Comparison) -> str:
    if c.reference is None:
        return ""
    text = f"Accuracy minus that of {c.reference.label}, in percentage points: mean over the seeds that both have"
    if c.seeds < 2:
        return f"{text}. With one seed there is no interval."
    return (
        f"{text}, and the 95% interval of Student's paired t test. Each interval stands for itself: of twenty, one "
        "misses the truth on average. The tests below allow for their number."
    )


def _matrix(c: Comparison, group: Group) -> Matrix | None:
    """Who is significantly better than whom; None without two arms that share two seeds."""
    found = pairs(c, group)
    if not any(pair.adjusted_p is not None for pair in found.values()):
        return None
    arms = [arm for arm in c.ranked if arm in group.arms and arm.scores(c.main.key)]
    table = []
    for a in arms:
        cells = []
        for b in arms:
            pair, back = found.get((a.label, b.label)), found.get((b.label, a.label))
            if pair is None or pair.adjusted_p is None:
                cells.append((ABSENT if a is b else "unknown", ""))
            else:
                word = "better" if better(pair) else "worse" if better(back) else "unclear"
                cells.append((word, _p_value(pair.adjusted_p)))
        table.append((a.label, cells))
    return Matrix(group.title, [arm.label for arm in arms], table)


def _p_value(p: float) -> str:
    """Two or three decimals; one that rounding would put on the limit is said to be below it."""
    if p < 0.001:
        return "p < 0.001"
    if p < SIGNIFICANT and round(p, 3) >= SIGNIFICANT:
        return f"p < {SIGNIFICANT}"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _trials(c: Comparison) -> list[Trial]:
    tuning = mapping(c.results.get("tuning"))
    found = []
    for row in items(tuning.get("rows")):
        if isinstance(row.get("method"), str):
            score, seconds = _held_out(row, _tuning_measure(c)), finite_number(row.get("seconds"))
            failed = row.get("error") is not None
            found.append(Trial(
                method=c.names[row["method"]],
                number=_whole(row.get("trial")),
                settings=_settings_text(mapping(row.get("settings"))),
                accuracy="failed" if failed else ABSENT if score is None else f"{100 * score:.1f}",
                seconds=ABSENT if seconds is None else duration(seconds),
                chosen=row.get("chosen") is True,
            ))  # fmt: skip
    return found


def _tuning_measure(c: Comparison) -> str:
    return str(mapping(c.results.get("tuning")).get("measure") or c.main.key)


def _held_out(row: Mapping[str, Any], measure: str) -> float | None:
    value = mapping(row.get("accuracy")).get(measure)
    return finite_number(mapping(value).get("mean") if isinstance(value, Mapping) else value)


def _tuning_note(c: Comparison) -> str:
    tuning = mapping(c.results.get("tuning"))
    name = next((m.heading for m in MEASURES if m.key == _tuning_measure(c)), _tuning_measure(c))
    share, epochs = finite_number(tuning.get("held_out")), _whole(tuning.get("budget"))
    text = "Before the comparison each method was tried with several settings"
    text += f", {epochs} epochs each. " if epochs else ". "
    text += f"The accuracy ({name}, in percent) is that on training images"
    text += f", {100 * share:.0f}% of them," if share else ""
    text += " which the trial did not see: test images had no part in the choice."
    if settings := _changed(tuning.get("settings")):
        text += f" Trials differed from the comparison in {settings}."
    return text


def _changed(settings: Any) -> str:
    """Settings as a list of KEY=VALUE or as an object."""
    return ", ".join(map(str, settings)) if isinstance(settings, list) else _settings_text(mapping(settings), none="")


def _settings_text(settings: Mapping[str, Any], *, none: str = "the recipe's") -> str:
    return ", ".join(f"{name}={value}" for name, value in _plain(settings)) or none


def _own_settings(c: Comparison) -> list[tuple[str, str]]:
    """What each method was run with beside the shared settings."""
    return [(arm.label, _settings_text(arm.runs[0].settings)) for arm in c.arms if arm.runs and arm.runs[0].settings]


def _whole(value: Any) -> str:
    n = finite_number(value)
    return "" if n is None else whole(n)


def _plain(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in flatten(values)]
