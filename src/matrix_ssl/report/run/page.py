"""The page of a run: ``report.html``, a single file that needs no network or script."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from matrix_ssl.config import to_dict
from matrix_ssl.report.figures import Curve, Figurine, Panel, stacked
from matrix_ssl.report.formats import ABSENT, device_name, duration, number, percent, present, rate, settings, whole
from matrix_ssl.report.run import figures
from matrix_ssl.report.run.classes import ByClass, by_class
from matrix_ssl.report.run.data import Note, RunData, read_run
from matrix_ssl.report.run.followed import read_followed
from matrix_ssl.report.run.gallery import agreement, gallery
from matrix_ssl.report.run.views import strip
from matrix_ssl.report.tables import (
    BY_CLASS,
    LABELLED,
    MEAN_OF_CLASSES,
    OWN,
    ResultTable,
    read_tables,
)
from matrix_ssl.report.template import write_page
from matrix_ssl.report.verdict import accuracy_verdict
from matrix_ssl.runs.folder import SKIPPED
from matrix_ssl.runs.terminal import printable

COMMANDS = {  # for the reader to type in the folder that contains the run
    "evaluate": "matrix-ssl evaluate {run}",
    "explore": "matrix-ssl explore {run} --data FOLDER --out {run}/explored",
    "worth": "matrix-ssl worth --data FOLDER --from torchvision/resnet18",
    "embed": "matrix-ssl embed {run} --data FOLDER --out features.npz",
    "export": "matrix-ssl export {run}{form}",
}
_EQUAL_CLASSES = "The mean of the accuracies of the classes is the same; guessing"
_FEW_IMAGES, _FEW_STEPS = 500, 500
DRAWN = (
    "loss", "effective_rank", "effective_rank_projection", "matrix_entropy", "teacher_similarity", "spectrum",
    "learning_rate", "teacher_momentum",
)  # fmt: skip


def write_report(run: Path) -> Path:
    """Writes ``report.html`` into a run folder from the files present there; the same files give the same bytes."""
    data = read_run(run)
    form = " --format torchvision" if re.fullmatch(r"(?!tiny_)\w+", data.config.network.encoder) else ""
    commands = {name: command.format(run=shlex.quote(data.name), form=form) for name, command in COMMANDS.items()}
    words = data.environment.get("command")  # runs of earlier versions did not record it
    commands["resume"] = shlex.join(map(str, words)) if isinstance(words, list) else ""
    skipped: list[str] = []
    tables = read_tables(run, skipped)
    notes = [*data.notes, *map(Note, skipped), *_few(data)]
    values = {
        "data": data,
        "title": f"{data.name} – matrix-ssl report",
        "heading": data.name,
        "kind": f"{data.config.recipe} recipe · {data.config.method.name} · {_source_name(data)}",
        "verdict": [verdict(data)],
        "notes": [(note.text, commands.get(note.command, "")) for note in notes],
        "facts": _facts(data),
        "commands": commands,
        "tables": [_without_repeats(table, data) for table in tables],
        "classes": _classes(run, data),
        "training": _training_figures(data),
        "representation": _representation_figures(data),
        "schedule": _schedule_figures(data),
        "absent": _absent(data),
        "strip": strip(run, data.config),
        "gallery": gallery(data),
        "followed": read_followed(run),
        "explored": _explored(run),
        "agreement": agreement(data),
        "settings": settings(to_dict(data.config)),
        "environment": settings(data.environment),
    }
    return write_page(run / "report.html", "run.html", values)


def verdict(data: RunData) -> str:
    """Sentences with the most important numbers: the measure that gains least over the baselines, and the best one."""
    own = [result for evaluation in data.evaluations if evaluation.is_own for result in evaluation.results]
    if text := accuracy_verdict(own):
        return text
    rank, spectra = data.log.curve("effective_rank", "effective rank"), data.log.spectra()
    if rank is None:
        return "Nothing has been measured yet."
    labels = data.arrays.get("map_labels")
    labelled = labels is None or bool((labels >= 0).any())
    why = "Not evaluated yet." if labelled else "These images have no labels to measure accuracy with."
    growth = rank.y[-1] / max(rank.y[0], 1.0)
    of = f", and {percent(rank.y[-1] / len(spectra[-1][1]))}% of its bound" if spectra else ""
    return f"{why} The effective rank of the features at the end is {growth:.2g} times that at the start{of}."


def _without_repeats(table: ResultTable, data: RunData) -> ResultTable:
    """A table without redundant columns, each of which is replaced by a sentence below.

    They are the labelled images if there is only one number of them, and the class means if they equal the accuracies,
    as for classes of equal size.
    """
    if table.columns[-1] != LABELLED:
        return table
    kept, note = list(range(len(table.columns))), table.note
    own, by_class = table.columns.index(OWN), table.columns.index(BY_CLASS)
    if all(row[own].split(" ")[0] == row[by_class] for row in table.rows):
        kept.remove(by_class)
        note = note.replace(MEAN_OF_CLASSES, _EQUAL_CLASSES)
    counts = {row[-1] for row in table.rows} - {ABSENT}
    if len(counts) <= 1:
        kept.remove(len(table.columns) - 1)
        of = {whole(data.summary.data.images): "all images of the pre-training"}
        note += "".join(f" Labelled images, but in draws: {of.get(count, count)}." for count in counts)
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=[table.columns[i] for i in kept], rows=rows, note=note)


def _few(data: RunData) -> list[Note]:
    """A note if there are too few images or steps to teach an encoder much."""
    images, steps = data.summary.data.images, data.summary.steps
    if not data.summary.finished or data.summary.imported or not images or not steps:
        return []
    if images >= _FEW_IMAGES and steps >= _FEW_STEPS:
        return []
    few = " on ".join(["so few steps"] * (steps < _FEW_STEPS) + ["so few images"] * (images < _FEW_IMAGES))
    return [
        Note(
            f"{few.capitalize()} teach an encoder little. Add images, train for more epochs (--set epochs=...), or "
            "start from published weights. Whether pre-training is worth it here:",
            "worth",
        )
    ]


def _classes(run: Path, data: RunData) -> ByClass | None:
    for evaluation in data.evaluations:
        if evaluation.is_own:
            try:
                return by_class(run / "evaluation" / evaluation.name)
            except (OSError, ValueError):
                return None  # the table of accuracies has the note
    return None


def _explored(run: Path) -> list[tuple[str, str]]:
    """The pages of ``explore`` in folders of the run: each folder's name, and its address relative to the run."""
    folders = sorted(path.parent.name for path in run.glob("*/explore.json") if (path.parent / "index.html").is_file())
    return [(printable(name), f"{quote(name, errors='surrogateescape')}/index.html") for name in folders]


def _facts(data: RunData) -> list[tuple[str, str]]:
    """Short answers below the headline."""
    summary, config = data.summary, data.config
    steps = summary.steps or data.log.last_step
    skipped = f"{whole(summary.skipped)}, see {SKIPPED}" if summary.skipped else "none"
    return present({
        "Encoder": config.network.encoder,
        "Started from": config.start.reference,
        "Parameters": whole(summary.parameters),
        "Images": whole(summary.data.images),
        "Skipped images": "" if summary.skipped is None else skipped,
        "Steps": whole(steps or None),
        "Epochs": number(summary.epochs) if summary.epochs else f"{config.epochs} planned",
        "Batch": whole(config.batch_size),
        "Time": "" if summary.seconds is None else duration(summary.seconds),
        "Images per second": rate(data.last("images_per_second")),
        "Device": device_name(data.environment),
        "Bad steps": whole(data.last("bad_steps") or None),
        "Negative determinants": whole(data.last("negative_determinants") or None),
    })  # fmt: skip


def _source_name(data: RunData) -> str:
    name = data.summary.data.name or data.config.data.source
    return re.split(r"[/\\]", str(name).rstrip("/\\"))[-1] or "unknown images"


def _training_figures(data: RunData) -> list[Figurine]:
    terms = {key: key.replace("_", " ") for key in data.loss_terms()}
    return _present(
        stacked(
            "loss", "Loss", [Panel("loss", _curves(data, loss="loss"))],
            "What the training lowers. A healthy run falls fast at first and then slowly, without jumps; whether the "
            "encoder is good is not visible here but in the table and the rank.",
        ),
        stacked(
            "terms", "Terms of the loss",
            [Panel(label, _curves(data, **{key: label})) for key, label in terms.items()],
            "The loss is a weighted sum of these terms, each on its own axis. In a healthy run all of them settle; one "
            "that falls while another climbs without end shows a weight that is out of balance.",
        ),
        _rank_figure(data),
        stacked(
            "online", "Accuracy during training",
            [
                Panel("held-out images", _curves(data, online_linear="linear", online_knn="20-NN"), bottom=0.0),
                Panel("training views", _curves(data, online_train="linear"), bottom=0.0),
            ],
            "Correct answers of a linear classifier that learns beside the encoder, and of a vote of the 20 nearest "
            "neighbours. The held-out images are a fifth of the training images, whose labels neither has seen. "
            "The encoder does not notice any of this.",
        ),
        _information_figure(data),
        stacked(
            "teacher", "Similarity of the two branches",
            [Panel("mean cosine", _curves(data, teacher_similarity="branches"), top=1.0)],
            "Mean cosine between the outputs for the two views of an image, those of the student and of the teacher "
            "where there is one. A healthy run stays below 1 and rises slowly; 1 from the start means that the views "
            "hardly differ or that all outputs coincide.",
        ),
    )  # fmt: skip


def _information_figure(data: RunData) -> Figurine | None:
    branches, rows = _curves(data, mir="MIR", hdr="HDR"), _curves(data, online_mir="MIR", online_hdr="HDR")
    return stacked(
        "information", "Shared information",
        [Panel("two branches", branches, bottom=0.0), Panel("features and classifier", rows, bottom=0.0)],
        "Of the cosine kernels of two sets of vectors of the same images: MIR is the share of the smaller entropy that "
        "both have, HDR the difference of the entropies over the larger one (Song et al., ICML 2024). Branches that "
        "agree have a high MIR and a low HDR; below, held-out features and the rows of a linear classifier of their "
        "classes.",
    )  # fmt: skip


def _rank_figure(data: RunData) -> Figurine | None:
    ranks = _curves(data, effective_rank="features", effective_rank_projection="projection")
    entropies = _curves(data, matrix_entropy="features")
    entropies += [_logarithm(c) for c in ranks if c.label == "projection"]
    return stacked(
        "rank", "Effective rank and matrix entropy",
        [
            Panel("effective rank", ranks, bottom=0.0), Panel("matrix entropy (nats)", entropies, bottom=0.0),
            Panel("spread", _curves(data, spread_projection="projection"), bottom=0.0),
        ],
        "Entropy of the eigenvalues of the trace-one covariance, and its exponential, the effective rank: between 1 "
        "(all features on one line) and the dimension (all directions used alike). In a healthy run both rise and "
        "then level off; a rank that falls towards 1 is collapse, and so is a spread, the standard deviation of the "
        "projections, that falls towards 0.",
    )  # fmt: skip


def _representation_figures(data: RunData) -> list[Figurine]:
    drawn = []
    if spectra := data.log.spectra():
        drawn.append(figures.spectrum([(f"step {whole(step)}", values) for step, values in spectra]))
    if "map" in data.arrays and np.isfinite(data.arrays["map"]).all(axis=1).any():
        drawn.append(figures.embedding_map(data.arrays["map"], data.arrays["map_labels"], data.classes))
    return drawn


def _schedule_figures(data: RunData) -> list[Figurine]:
    return _present(
        stacked(
            "schedule", "Schedule",
            [
                Panel("learning rate", _curves(data, learning_rate="learning rate"), bottom=0.0),
                Panel("teacher momentum", _curves(data, teacher_momentum="teacher momentum")),
            ],
            "Prescribed, not measured: the learning rate warms up, then follows a cosine; the momentum of the teacher, "
            "if there is one, rises towards 1.",
        )
    )  # fmt: skip


def _present(*drawn: Figurine | None) -> list[Figurine]:
    return [figure for figure in drawn if figure is not None]


def _curves(data: RunData, **labels: str) -> list[Curve]:
    curves: Iterable[Curve | None] = (data.log.curve(key, label) for key, label in labels.items())
    return [curve for curve in curves if curve is not None]


def _logarithm(curve: Curve) -> Curve:
    """The entropies for effective ranks."""
    y, low, high = (None if v is None else np.log(np.maximum(v, 1)) for v in (curve.y, curve.low, curve.high))
    assert y is not None
    return replace(curve, y=y, low=low, high=high)


def _absent(data: RunData) -> list[str]:
    """Quantities that a figure would have shown."""
    log = data.log
    logged = log.names() | ({"spectrum"} if log.spectra() else set())
    return [key.replace("_", " ") for key in DRAWN if key not in logged] if log.lines else []
