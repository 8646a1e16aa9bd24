"""Reads a run folder for its page: what is missing is left empty, and damage becomes a note instead of an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config import RunConfig
from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import why
from matrix_ssl.errors import RunFolderError
from matrix_ssl.report.records import Number, Text, parse
from matrix_ssl.report.run.log import Log, read_log
from matrix_ssl.report.tables import Evaluation, read_evaluations
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import ENVIRONMENT, EVALUATION, METRICS, SUMMARY, identity, read_config

# Keys of metrics.jsonl with a meaning of their own; every other number on a line is a term of the loss.
KNOWN_KEYS = frozenset({
    "step", "epoch", "seconds", "loss", "learning_rate", "teacher_momentum", "effective_rank", "matrix_entropy",
    "effective_rank_projection", "spread_projection", "teacher_similarity", "negative_determinants", "bad_steps",
    "images_per_second", "spectrum", "alarm", "online_train", "online_linear", "online_knn", "knn_20_held_out",
    "online_mir", "online_hdr", "mir", "hdr",
})  # fmt: skip
_MAP = ("map", "map_labels")
_GALLERY = (
    "gallery_query", "gallery_neighbours", "gallery_query_label", "gallery_neighbour_label", "gallery_similarity",
)  # fmt: skip
_NAMES = ("gallery_query_where", "gallery_neighbour_where")  # absent from files of earlier versions

T = TypeVar("T")


class Note(NamedTuple):
    """Something the reader must know, and the command that fixes it, if there is one."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Images:
    """The dataset of a pre-training."""

    name: Text = ""
    images: int | None = None


@dataclass(frozen=True)
class Imported:
    """Where the encoder of a run comes from that was not trained here."""

    file: Text = ""


@dataclass(frozen=True)
class Summary:
    """``summary.json``; ``seconds`` is wall-clock time."""

    run: Text | None = None  # its identity
    finished: bool = False
    steps: int | None = None
    epochs: Number | None = None
    parameters: int | None = None
    seconds: Number | None = None
    skipped: int | None = None
    data: Images = Images()
    imported: Imported | None = None


@dataclass(frozen=True)
class RunData:
    """The contents of a run folder; what is missing is empty."""

    name: str
    config: RunConfig
    environment: Mapping[str, Any]
    log: Log
    summary: Summary
    arrays: Mapping[str, NDArray[Any]]  # of evaluation.npz
    evaluations: Sequence[Evaluation]
    notes: Sequence[Note] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names of the classes by label."""
        return [str(name) for name in self.arrays["classes"].ravel()] if "classes" in self.arrays else []

    def loss_terms(self) -> list[str]:
        """Names of all logged numbers without another meaning, in the order of their first appearance."""
        return [name for name in self.log.finite_names() if name not in KNOWN_KEYS]

    def last(self, key: str) -> float | None:
        """The last finite value logged under ``key``."""
        curve = self.log.curve(key, key)
        return None if curve is None else float(curve.y[-1])


def read_run(run: Path) -> RunData:
    """Reads everything that the page shows; raises RunFolderError without a valid ``config.json``."""
    config = read_config(run)
    notes: list[Note] = []
    log = _read_log(run / METRICS, notes)
    summary = _read(Summary, run / SUMMARY, notes)
    if summary.run not in (None, identity(run)):
        notes.append(Note("summary.json belongs to a different run and is skipped."))
        summary = Summary()
    if summary.imported:
        notes.append(
            Note(f"The encoder was imported from {summary.imported.file}; there are no curves of its training.")
        )
    elif not log.lines:
        notes.append(Note("No training metrics yet. Start or resume training with the command of the run:", "resume"))
    if log.lines and not summary.finished:
        notes.append(Note("This run is not finished. To resume, run the same command in the same folder:", "resume"))
    environment = _read(dict, run / ENVIRONMENT, notes)
    arrays = _read_arrays(run / EVALUATION, notes)
    evaluations = read_evaluations(run)
    if not evaluations and not arrays:
        notes.append(Note("Not evaluated yet: no accuracies, no map and no neighbours. Compute them with:", "evaluate"))
    return RunData(run.resolve().name, config, environment, log, summary, arrays, evaluations, notes)


def _read_log(path: Path, notes: list[Note]) -> Log:
    """The lines by ascending step; none if they belong to a different run."""
    if not path.exists():
        return Log()
    try:
        reading = read_log(path)
    except OSError as error:
        notes.append(Note(f"{path.name} cannot be read ({why(error)}) and is skipped."))
        return Log()
    if count := reading.damaged:
        first = reading.first_damaged
        where = f"Line {first}" if count == 1 else f"{count} lines (the first is line {first})"
        notes.append(Note(f"{where} of metrics.jsonl cannot be read, as happens when a run is killed; skipped."))
    if reading.owner and reading.owner != identity(path.parent):
        notes.append(Note(f"{path.name} belongs to a different run and is skipped."))
        return Log()
    return reading.log


def _read(kind: type[T], path: Path, notes: list[Note]) -> T:
    """A JSON file as a record, which is empty for a missing or damaged file."""
    if not path.exists():
        return kind()
    try:
        return parse(kind, read_json(path), path, remedy="")
    except RunFolderError:
        notes.append(Note(f"{path.name} is damaged and skipped."))
        return kind()


def _read_arrays(path: Path, notes: list[Note]) -> Mapping[str, NDArray[Any]]:
    if not path.exists():
        return {}
    try:
        arrays = read_arrays(path)
    except (OSError, ValueError):
        notes.append(Note("evaluation.npz is damaged and skipped. Write it again with:", "evaluate"))
        return {}
    if "run" in arrays and str(arrays["run"]) != identity(path.parent):
        notes.append(Note("evaluation.npz belongs to a different run and is skipped. Write it again with:", "evaluate"))
        return {}
    kept = {"classes": arrays["classes"]} if "classes" in arrays else {}
    for what, names, fits in (("map", _MAP, _map_fits), ("gallery of neighbours", _GALLERY, _gallery_fits)):
        if all(name in arrays for name in names) and fits(arrays):
            kept.update({name: arrays[name] for name in names})
            kept.update({name: arrays[name] for name in _NAMES if name in arrays and what != "map"})
        else:
            text = f"evaluation.npz has no complete {what}, so the page has none. Write the file again with:"
            notes.append(Note(text, "evaluate"))
    return kept


def _map_fits(arrays: Mapping[str, NDArray[Any]]) -> bool:
    shape = arrays["map"].shape
    return len(shape) == 2 and shape[1] == 2 and arrays["map_labels"].shape == shape[:1]


def _gallery_fits(arrays: Mapping[str, NDArray[Any]]) -> bool:
    query, neighbours = arrays["gallery_query"], arrays["gallery_neighbours"]
    return (
        query.dtype == neighbours.dtype == np.uint8
        and query.ndim == 4
        and query.shape[3] in (1, 3)
        and neighbours.shape == (*query.shape[:1], *neighbours.shape[1:2], *query.shape[1:])
        and arrays["gallery_query_label"].shape == neighbours.shape[:1]
        and arrays["gallery_neighbour_label"].shape == arrays["gallery_similarity"].shape == neighbours.shape[:2]
        and arrays.get("gallery_query_where", query).shape[:1] == neighbours.shape[:1]
        and arrays.get("gallery_neighbour_where", neighbours).shape[:2] == neighbours.shape[:2]
    )
