"""One page about one run: ``report.html``, a single file that needs no network and no script."""

import base64
import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matrix_ssl.config import to_dict
from matrix_ssl.report.figures import Curve, Figurine, Panel, stacked
from matrix_ssl.report.formats import duration, number, settings, whole
from matrix_ssl.report.run import figures
from matrix_ssl.report.run.data import RunData, finite_number, mapping, read_run
from matrix_ssl.report.run.results import alarms, verdict
from matrix_ssl.report.tables import read_tables
from matrix_ssl.report.template import write_page
from matrix_ssl.runs.folder import SKIPPED

COMMANDS = {  # for the reader to type in the folder that contains the run
    "evaluate": "matrix-ssl evaluate {run}",
    "embed": "matrix-ssl embed {run} --data FOLDER --out features.npz",
    "export": "matrix-ssl export {run} --format torchvision",
}
MAX_QUERIES, MAX_NEIGHBOURS = 10, 8
THUMBNAIL = 96  # pixels; larger images are reduced, which bounds the page
PLAIN_PNG = 48  # pixels; larger images are stored with a palette of 256 colours, a third of the size


@dataclass(frozen=True)
class Thumbnail:
    """An image of the gallery, as a data URI."""

    uri: str
    alt: str
    label: str
    similarity: str
    other_class: bool
    pixelated: bool


def write_report(run: Path) -> Path:
    """Writes ``report.html`` into a run folder from the files that are there; the same files give the same bytes.

    Raises:
        RunFolderError: it is not a run folder, its config.json is damaged, or the page cannot be written.
    """
    data, tables = read_run(run), read_tables(run)
    commands = {name: command.format(run=shlex.quote(data.name)) for name, command in COMMANDS.items()}
    commands["resume"] = _resume(data)
    values = {
        "data": data,
        "title": f"{data.name} – matrix-ssl report",
        "heading": data.name,
        "kind": f"{data.config.recipe} recipe · {data.config.method.name} · {_source_name(data)}",
        "verdict": [verdict(data)],
        "notes": [(note.text, commands.get(note.command, "")) for note in data.notes],
        "alarms": alarms(data.lines),
        "facts": _facts(data),
        "commands": commands,
        "tables": tables,
        "training": _training_figures(data),
        "representation": _representation_figures(data),
        "schedule": _schedule_figures(data),
        "absent": _absent(data),
        "gallery": _gallery(data),
        "agreement": _agreement(data),
        "settings": settings(to_dict(data.config)),
        "environment": settings(data.environment),
    }
    return write_page(run / "report.html", "run.html", values)


def _resume(data: RunData) -> str:
    """The command that started the run, which also resumes it; empty where an earlier version did not record it."""
    words = data.environment.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else ""


def _facts(data: RunData) -> list[tuple[str, str]]:
    """Short answers below the headline; unknown ones are left out."""
    summary, config = data.summary, data.config
    images = finite_number(mapping(summary.get("data")).get("images"))
    seconds, speed = finite_number(summary.get("seconds")), data.last("images_per_second")
    steps = finite_number(summary.get("steps")) or (data.lines[-1]["step"] if data.lines else None)
    device = data.environment.get("device_name") or data.environment.get("device")
    facts = [
        ("Encoder", config.network.encoder),
        ("Parameters", whole(n) if (n := finite_number(summary.get("parameters"))) else ""),
        ("Images", whole(images) if images else ""),
        ("Skipped images", _skipped(finite_number(summary.get("skipped")))),
        ("Steps", whole(steps) if steps else ""),
        ("Epochs", number(n) if (n := finite_number(summary.get("epochs"))) else f"{config.epochs} planned"),
        ("Batch", whole(config.batch_size)),
        ("Time", duration(seconds) if seconds is not None else ""),
        ("Images a second", whole(speed) if speed else ""),
        ("Device", str(device) if device else ""),
        ("Bad steps", whole(n) if (n := data.last("bad_steps")) else ""),
        ("Negative determinants", whole(n) if (n := data.last("negative_determinants")) else ""),
    ]
    return [(name, text) for name, text in facts if text]


def _skipped(count: float | None) -> str:
    if count is None:
        return ""
    return f"{whole(count)}, see {SKIPPED}" if count else "none"


def _source_name(data: RunData) -> str:
    name = mapping(data.summary.get("data")).get("name") or data.config.data.source
    return re.split(r"[/\\]", str(name).rstrip("/\\"))[-1] or "unknown images"


def _training_figures(data: RunData) -> list[Figurine]:
    terms = {key: key.replace("_", " ") for key in data.loss_terms()}
    return _present(
        _figure(
            "loss", "Loss", [Panel("loss", _curves(data, loss="loss"))],
            "What the training lowers. A healthy run falls fast at first and then slowly, without jumps; whether the "
            "encoder is good is not visible here but in the table and the rank.",
        ),
        _figure(
            "terms", "Terms of the loss",
            [Panel(label, _curves(data, **{key: label})) for key, label in terms.items()],
            "The loss is a weighted sum of these terms, each on its own axis. In a healthy run all of them settle; one "
            "that falls while another climbs without end shows a weight that is out of balance.",
        ),
        _rank_figure(data),
        _figure(
            "online", "Accuracy during training",
            [
                Panel("held-out images", _curves(data, online_linear="linear", online_knn="20-NN"), bottom=0.0),
                Panel("training views", _curves(data, online_train="linear"), bottom=0.0),
            ],
            "Correct answers of a linear classifier that learns beside the encoder, and of a vote of the 20 nearest "
            "neighbours. The held-out images are a fifth of the training images, whose labels neither has seen. "
            "The encoder does not notice any of this.",
        ),
        _figure(
            "teacher", "Teacher-student similarity",
            [Panel("mean cosine", _curves(data, teacher_similarity="teacher and student"), top=1.0)],
            "Mean cosine between the embeddings of the student for one view and of the slow teacher, or without one of "
            "the network itself, for the other. A healthy run stays below 1 and rises slowly; 1 from the start means "
            "that the views hardly differ or that all embeddings coincide.",
        ),
    )  # fmt: skip


def _rank_figure(data: RunData) -> Figurine | None:
    ranks = _curves(data, effective_rank="features", effective_rank_projection="projection")
    entropies = _curves(data, matrix_entropy="features")
    entropies += [replace(c, y=np.log(np.maximum(c.y, 1))) for c in ranks if c.label == "projection"]
    return _figure(
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
    found = []
    if spectra := data.spectra():
        found.append(figures.spectrum(spectra))
    if "map" in data.arrays and np.isfinite(data.arrays["map"]).all(axis=1).any():
        found.append(figures.embedding_map(data.arrays["map"], data.arrays["map_labels"], _classes(data)))
    return found


def _schedule_figures(data: RunData) -> list[Figurine]:
    return _present(
        _figure(
            "schedule", "Schedule",
            [
                Panel("learning rate", _curves(data, learning_rate="learning rate"), bottom=0.0),
                Panel("teacher momentum", _curves(data, teacher_momentum="teacher momentum")),
            ],
            "Prescribed, not measured: the learning rate warms up, then follows a cosine; the momentum of the teacher, "
            "if there is one, rises towards 1.",
        )
    )  # fmt: skip


def _figure(name: str, title: str, panels: Sequence[Panel], caption: str) -> Figurine | None:
    return stacked(name, title=title, caption=caption, panels=panels)


def _present(*found: Figurine | None) -> list[Figurine]:
    return [figure for figure in found if figure is not None]


def _curves(data: RunData, **labels: str) -> list[Curve]:
    found = (data.curve(key, label) for key, label in labels.items())
    return [curve for curve in found if curve is not None]


def _absent(data: RunData) -> list[str]:
    """Quantities that a figure would have shown."""
    names = {
        "loss": "the loss",
        "effective_rank": "the effective rank",
        "effective_rank_projection": "the effective rank of the projection",
        "matrix_entropy": "the matrix entropy",
        "teacher_similarity": "the teacher-student similarity",
        "spectrum": "the spectrum",
        "learning_rate": "the learning rate",
        "teacher_momentum": "the teacher's momentum",
    }
    logged = {key for line in data.lines for key in line}
    return [text for key, text in names.items() if key not in logged] if data.lines else []


def _classes(data: RunData) -> list[str]:
    return [str(name) for name in data.arrays["classes"].ravel()] if "classes" in data.arrays else []


def _gallery(data: RunData) -> list[tuple[Thumbnail, list[Thumbnail]]]:
    """Rows of the gallery: a query and its neighbours, the most similar first."""
    if "gallery_query" not in data.arrays:
        return []
    names = ("query", "neighbours", "query_label", "neighbour_label", "similarity")
    query, near, query_label, near_label, similarity = (data.arrays[f"gallery_{name}"] for name in names)
    classes = _classes(data)
    rows = []
    for i in range(min(len(query), MAX_QUERIES)):
        label = _label(classes, query_label[i])
        first = _thumbnail(query[i], f"query image {i + 1}{_of(label)}", label, "", False)
        others = []
        for j in range(min(near.shape[1], MAX_NEIGHBOURS)):
            other, cosine = _label(classes, near_label[i, j]), f"{similarity[i, j]:.2f}".replace("-", "−")
            alt = f"neighbour {j + 1} of query {i + 1}{_of(other)}, similarity {cosine}"
            others.append(_thumbnail(near[i, j], alt, other, cosine, bool(label) and other != label))
        rows.append((first, others))
    return rows


def _label(classes: Sequence[str], label: int) -> str:
    if label < 0:
        return ""
    return classes[label] if label < len(classes) else str(label)


def _of(label: str) -> str:
    return f", class {label}" if label else ""


def _thumbnail(pixels: NDArray[np.uint8], alt: str, label: str, similarity: str, other_class: bool) -> Thumbnail:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    pixelated = max(image.size) < 64
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    if max(image.size) > PLAIN_PNG and image.mode == "RGB":
        image = image.quantize(256)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(uri, alt, label, similarity, other_class, pixelated)


def _agreement(data: RunData) -> str:
    """How often the shown neighbours have the label of their query."""
    if "gallery_query" not in data.arrays:
        return ""
    query = data.arrays["gallery_query_label"][:MAX_QUERIES, None]
    near = data.arrays["gallery_neighbour_label"][:MAX_QUERIES, :MAX_NEIGHBOURS]
    labelled = np.broadcast_to(query >= 0, near.shape)
    if not labelled.any():
        return ""
    same, shown = int(((near == query) & labelled).sum()), int(labelled.sum())
    return f"Of the {shown} neighbours shown, {same} have the class of their query; the others are underlined."
