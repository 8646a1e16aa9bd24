"""The page ``worth.html``, a single file that needs no network or script, and its version for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from matrix_ssl.report.figures import MARKERS, Curve, Figurine, Panel, stacked
from matrix_ssl.report.formats import ABSENT, Cell, device_name, duration, number, percent, present, settings, whole
from matrix_ssl.report.svg import colour
from matrix_ssl.report.template import write_page
from matrix_ssl.report.terminal import empty_table
from matrix_ssl.report.worth.data import Arm, Results, read_worth
from matrix_ssl.report.worth.words import interval, notes, reading, sentence

PAGE = "worth.html"
PAIRS = (  # a minus b, for the questions that a user has
    ("adapted_frozen", "public_frozen"), ("adapted_frozen", "public_small_frozen"), ("scratch_frozen", "public_frozen"),
    ("adapted_frozen", "scratch_frozen"), ("scratch_frozen", "random_frozen"), ("public_tuned", "random_tuned"),
    ("adapted_tuned", "public_tuned"), ("scratch_tuned", "random_tuned"), ("public_tuned", "public_frozen"),
)  # fmt: skip
ARMS = (
    "With a linear classifier on frozen features: raw pixels; random, the network at its initialisation; public, the "
    "public encoder; adapted, the public encoder after pre-training on these images; scratch, ours, pre-trained on "
    "these images alone. As whole networks, trained with the labels from different starts: supervised, from the "
    "initialisation; public, adapted and scratch tuned, from those."
)
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
Row = tuple[str, str, list[Cell]]


def write_worth(out: Path) -> Path:
    """Writes ``worth.html`` next to ``worth.json``, even while training runs are missing."""
    r = read_worth(out)
    values = {
        "title": "Worth it? – matrix-ssl",
        "heading": "Was pre-training worth it?",
        "kind": " · ".join(filter(None, [r.recipe and f"{r.recipe} recipe", r.data.name, r.public.reference])),
        "verdict": [sentence(r)],
        "notes": [(text, "") for text in notes(r)],
        "facts": _facts(r),
        "figures": [figure for use in ("frozen", "tuned") if (figure := _curves(r, use))],
        "accuracies": accuracies(r),
        "accuracy_note": "Test images classified correctly, in percent, with the interval of the mean. " + ARMS + " "
        + sizes(r) + " " + reading(),
        "differences": differences(r),
        "difference_note": "Percentage points. " + reading(),
        "costs": costs(r),
        "cost_note": cost_note(r),
        "command": r.command,
        "tuning": settings(r.tuning),
        "settings": settings(r.settings),
        "adapted_settings": settings(r.adapted_settings),
        "environment": settings(r.environment),
    }  # fmt: skip
    return write_page(out / PAGE, "worth.html", values)


def accuracies(r: Results) -> list[Row]:
    """A row for every arm that has results."""
    best = {
        one.key: max((percent(arm.accuracy[one.key].mean) for arm in r.arms if one.key in arm.accuracy), default="",
                     key=float)
        for one in r.budgets
    }  # fmt: skip
    rows = []
    for arm in (arm for arm in r.arms if arm.accuracy):
        cells = []
        for one in r.budgets:
            score = arm.accuracy.get(one.key)
            if score is None:
                cells.append(Cell(one.text))
                continue
            text = percent(score.mean)
            cells.append(
                Cell(
                    one.text,
                    text,
                    (f"[{percent(max(0.0, score.low))}, {percent(min(1.0, score.high))}]",),
                    text == best[one.key],
                )
            )
        rows.append((r.label(arm), "", cells))
    return rows


def differences(r: Results) -> list[Row]:
    """A row for each of ``PAIRS`` that was measured; a difference whose interval excludes 0 is bold."""
    rows = []
    for a, b in PAIRS:
        by = r.difference(a, b)
        if by:
            cells = [
                Cell(one.text, percent(by[one.text].mean, sign="+"), (interval(by[one.text]),), by[one.text].sign != 0)
                if one.text in by else Cell(one.text)
                for one in r.budgets
            ]  # fmt: skip
            rows.append((f"{r.label(r.by_key[a])} − {r.label(r.by_key[b])}", "", cells))
    return rows


def costs(r: Results) -> list[Row]:
    """A row for every arm: minutes for the parts of one seed."""
    rows = []
    for arm in (arm for arm in r.arms if arm.accuracy):
        evaluation = arm.evaluation
        parts = {
            "pre-training": _mean(one.get("seconds") for one in arm.pretraining),
            "of the CPU": _mean(one.get("cpu_seconds") for one in arm.pretraining),
            "features": _mean(one.get("train_feature_seconds") for one in evaluation),
            "classifiers": _mean(
                sum(one["classifier_seconds"].values()) if "classifier_seconds" in one
                else sum(cost.get("seconds", 0.0) for cost in one.get("tuning", {}).values())
                for one in evaluation
            ),
        }  # fmt: skip
        counted = [value for name, value in parts.items() if value is not None and name != "of the CPU"]
        parts["together"] = sum(counted) if counted else None
        cells = [Cell(name, ABSENT if value is None else minutes(value)) for name, value in parts.items()]
        rows.append((r.label(arm), "", cells))
    return rows


def cost_note(r: Results) -> str:
    """What the minutes are and where they were measured."""
    environment = r.environment
    hardware = ", ".join(
        str(environment[key]) for key in ("processor", "device_name", "device") if environment.get(key)
    )
    return (
        "Minutes on the clock, mean over the seeds, and those of the CPU during the pre-training. Features: of the "
        f"training images. Classifiers: all numbers of labels together. {hardware}, "
        f"{environment.get('threads', '?')} threads. What a public encoder cost those who trained it is not known."
    )


def sizes(r: Results) -> str:
    """At which sizes the public encoder was used."""
    p = r.public
    return (
        f"The public encoder is {p.reference}, SHA-256 {p.sha256[:12]}: {p.tensors.rstrip('.')}. Frozen it gets images "
        f"of {p.image_size} pixels, those of its own training, enlarged where they are smaller"
        + (f", and in a second row those of {r.image_size} pixels" if r.image_size != p.image_size else "")
        + "."
    )


def terminal(r: Results) -> Group:
    """Accuracies, differences, the sentence and the notes, for a terminal."""
    tables = []
    for title, rows in (("Accuracy in %", accuracies(r)), ("Differences in points", differences(r))):
        table = empty_table(Text(title))
        table.add_column("", overflow="fold")
        for cell in rows[0][2] if rows else ():
            table.add_column(Text(cell.heading.replace(" a ", "\na ").replace(" of ", "\nof ")), justify="right")
        for name, _, cells in rows:
            table.add_row(name, *("\n".join((cell.value, *cell.spread)) for cell in cells))
        tables.append(table)
    return Group(*tables, *map(Text, [sentence(r), *notes(r)]))


def minutes(seconds: float) -> str:
    """A cost in minutes."""
    return number(round(seconds / 60, 1)) if seconds >= 60 else f"{seconds / 60:.2f}"


def _facts(r: Results) -> list[tuple[str, str]]:
    time = sum(one.get("seconds", 0.0) for arm in r.arms if arm.use == "frozen" for one in arm.pretraining)
    return present({
        "Training images": whole(r.data.train),
        "Test images": whole(r.data.test),
        "Classes": whole(r.data.classes),
        "Seeds": whole(r.seeds),
        "Epochs of pre-training": number(r.epochs),
        "Image size": f"{r.image_size} px",
        "Public encoder": r.public.reference,
        "Time of pre-training": duration(time) if time else "",
        "Device": device_name(r.environment),
    })  # fmt: skip


def _curves(r: Results, use: str) -> Figurine | None:
    """Accuracy against labels, one line per arm."""
    curves = [curve for place, arm in enumerate(r.arms) if arm.use == use and (curve := _curve(r, arm, place))]
    title = {"frozen": "Linear classifiers on frozen features", "tuned": "Whole networks trained with labels"}[use]
    return stacked(
        use, title, [Panel("accuracy in %", curves)],
        "Accuracy on the test images against labelled images a class, on a logarithmic axis; bands are 95 % intervals. "
        "Higher and further left is better: more accuracy from fewer labels.",
        axis="labelled images a class", scale="log",
        point=lambda labels, accuracy: f"{accuracy:.1f}% with {number(labels)} labels a class",
    )  # fmt: skip


def _curve(r: Results, arm: Arm, place: int) -> Curve | None:
    points = [(one.a_class, arm.accuracy[one.key]) for one in r.budgets if one.key in arm.accuracy]
    if not points:
        return None
    style = {
        "color": colour(f"class-{place % 10}"), "marker": MARKERS[place % len(MARKERS)],
        "linestyle": _DASHES[place % len(_DASHES)],
    }  # fmt: skip
    x = np.array([labels for labels, _ in points], np.float64)
    y, low, high = (
        100 * np.clip([getattr(score, name) for _, score in points], 0, 1) for name in ("mean", "low", "high")
    )
    return Curve(r.label(arm), x, y, low, high, style=style)


def _mean(values: Any) -> float | None:
    known: Sequence[float] = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
