"""Reads a run folder for its page: what is missing is empty, what is damaged becomes a note instead of an error."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config import RunConfig
from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import MOST_DIGITS, MOST_TEXT, parse_json, read_file, why
from matrix_ssl.errors import RunFolderError
from matrix_ssl.report.figures import Curve
from matrix_ssl.report.records import Number, Text, parse
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
    """Something a reader must know, and the command that fixes it, if one does."""

    text: str
    command: str = ""


class Alarm(NamedTuple):
    """Alarms of one wording: the text of the last, their number, and the steps of the first and the last."""

    text: str
    times: int
    first: int
    last: int


class Line(NamedTuple):
    """A line of ``metrics.jsonl``; values that are not finite numbers are NaN."""

    step: int
    values: Mapping[str, float]
    spectrum: Sequence[float]
    alarms: Sequence[str]
    run: str = ""  # its identity, on the first line


@dataclass(frozen=True)
class Images:
    """The dataset of a pre-training."""

    name: Text = ""
    images: int | None = None


@dataclass(frozen=True)
class Imported:
    """Where the encoder of a run that was not trained here comes from."""

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
    lines: Sequence[Line]  # one for each logged step, ascending
    summary: Summary
    arrays: Mapping[str, NDArray[Any]]  # of evaluation.npz
    evaluations: Sequence[Evaluation]
    notes: Sequence[Note] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names of the classes by label."""
        return [str(name) for name in self.arrays["classes"].ravel()] if "classes" in self.arrays else []

    def curve(self, key: str, label: str) -> Curve | None:
        """The finite values logged under ``key``; None when there is none."""
        logged = [(line.step, line.values[key]) for line in self.lines if key in line.values]
        finite = [(step, value) for step, value in logged if math.isfinite(value)]
        if not finite:
            return None
        steps, values = zip(*finite, strict=True)
        return Curve(label, np.array(steps, np.int64), np.array(values, np.float64), missing=len(logged) - len(finite))

    def loss_terms(self) -> list[str]:
        """Names of all logged numbers without a different meaning, in the order of their first appearance."""
        logged = ((key, value) for line in self.lines for key, value in line.values.items())
        return list(dict.fromkeys(k for k, v in logged if k not in KNOWN_KEYS and math.isfinite(v)))

    def spectra(self) -> list[tuple[int, NDArray[np.float64]]]:
        """(step, descending eigenvalues) of every line that has a spectrum."""
        finite = [(line.step, [v for v in line.spectrum if math.isfinite(v)]) for line in self.lines if line.spectrum]
        return [(step, np.sort(np.array(values))[::-1]) for step, values in finite if values]

    def last(self, key: str) -> float | None:
        """The last finite value logged under ``key``."""
        curve = self.curve(key, key)
        return None if curve is None else float(curve.y[-1])

    def alarms(self) -> list[Alarm]:
        """Alarms of the log; sentences that differ only in their numbers are one alarm."""
        alarms: dict[str, Alarm] = {}
        for line in self.lines:
            for text in line.alarms:
                wording = re.sub(r"\d[\d.,e+-]*", "0", text)
                first, times = (old.first, old.times) if (old := alarms.get(wording)) else (line.step, 0)
                alarms[wording] = Alarm(text, times + 1, first, line.step)
        return list(alarms.values())


def read_run(run: Path) -> RunData:
    """Reads everything that the page shows; raises RunFolderError without a valid ``config.json``."""
    config = read_config(run)
    notes: list[Note] = []
    lines = _read_lines(run / METRICS, notes)
    summary = _read(Summary, run / SUMMARY, notes)
    if summary.run not in (None, identity(run)):
        notes.append(Note("summary.json belongs to a different run and is skipped."))
        summary = Summary()
    if summary.imported:
        notes.append(
            Note(f"The encoder was imported from {summary.imported.file}; there are no curves of its training.")
        )
    elif not lines:
        notes.append(Note("No training metrics yet. Start or resume training with the command of the run:", "resume"))
    if lines and not summary.finished:
        notes.append(Note("This run is not finished. To resume, run the same command in the same folder:", "resume"))
    environment = _read(dict, run / ENVIRONMENT, notes)
    arrays = _read_arrays(run / EVALUATION, notes)
    evaluations = read_evaluations(run)
    if not evaluations and not arrays:
        notes.append(Note("Not evaluated yet: no accuracies, no map and no neighbours. Compute them with:", "evaluate"))
    return RunData(run.resolve().name, config, environment, lines, summary, arrays, evaluations, notes)


def _read_lines(path: Path, notes: list[Note]) -> list[Line]:
    """The lines by ascending step. A resumed run may repeat steps: the later line counts."""
    try:
        raw = read_file(path, most=MOST_TEXT).split(b"\n") if path.is_file() else []
    except OSError as error:
        notes.append(Note(f"{path.name} cannot be read ({why(error)}) and is skipped."))
        raw = []
    lines = {i: _parse_line(text) for i, text in enumerate(raw, start=1) if text.strip()}
    if damaged := [i for i, line in lines.items() if line is None]:
        where = f"Line {damaged[0]}" if len(damaged) == 1 else f"{len(damaged)} lines (the first is line {damaged[0]})"
        notes.append(Note(f"{where} of metrics.jsonl cannot be read, as happens when a run is killed; skipped."))
    owners = [line.run for line in lines.values() if line is not None and line.run]
    if owners and owners[0] != identity(path.parent):
        notes.append(Note(f"{path.name} belongs to a different run and is skipped."))
        return []
    by_step = {line.step: line for line in lines.values() if line is not None}
    return [by_step[step] for step in sorted(by_step)]


def _parse_line(raw: bytes) -> Line | None:
    try:
        line = parse_json(raw, digits=MOST_DIGITS)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or not 0 <= line["step"] < 2**62:
        return None
    owner = line.pop("run", "")
    alarms = [str(text) for text in _listed(line.pop("alarm", None))]
    spectrum = [_number(value) for value in _listed(line.pop("spectrum", None))]
    return Line(line["step"], {key: _number(value) for key, value in line.items()}, spectrum, alarms, str(owner))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _number(value: Any) -> float:
    """The value if it is a finite number of JSON (a Boolean is none), else NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        return math.nan
    return float(value)


def _read(kind: type[T], path: Path, notes: list[Note]) -> T:
    """A JSON file as a record, which is empty for a missing or damaged file."""
    if not path.is_file():
        return kind()
    try:
        return parse(kind, read_json(path), path, remedy="")
    except RunFolderError:
        notes.append(Note(f"{path.name} is damaged and skipped."))
        return kind()


def _read_arrays(path: Path, notes: list[Note]) -> Mapping[str, NDArray[Any]]:
    if not path.is_file():
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
