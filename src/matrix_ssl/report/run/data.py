"""Reads a run folder for the report, as far as it is there: what is missing or damaged becomes a note, not an error."""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config import RunConfig, current_names
from matrix_ssl.report.figures import Curve
from matrix_ssl.report.tables import Evaluation, read_evaluations
from matrix_ssl.runs.folder import ENVIRONMENT, EVALUATION, METRICS, SUMMARY, read_config

# Keys of metrics.jsonl with a meaning of their own; every other number on a line is a term of the loss.
KNOWN_KEYS = frozenset({
    "step", "epoch", "seconds", "loss", "learning_rate", "teacher_momentum", "effective_rank", "matrix_entropy",
    "effective_rank_projection", "spread_projection", "teacher_similarity", "negative_determinants", "bad_steps",
    "images_per_second", "spectrum", "alarm", "online_train", "online_linear", "online_knn", "knn_20_held_out",
})  # fmt: skip
_MAP = ("map", "map_labels")
_GALLERY = (
    "gallery_query", "gallery_neighbours", "gallery_query_label", "gallery_neighbour_label", "gallery_similarity",
)  # fmt: skip


@dataclass(frozen=True)
class Note:
    """Something a reader must know, and the command that fixes it, if one does."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class RunData:
    """The contents of a run folder; absent pieces are empty."""

    name: str
    config: RunConfig
    environment: Mapping[str, Any]
    lines: list[dict[str, Any]]  # of metrics.jsonl, one for each step, ascending
    summary: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]  # of evaluation.npz
    evaluations: Sequence[Evaluation]
    notes: list[Note] = field(default_factory=list)

    def curve(self, key: str, label: str) -> Curve | None:
        """The finite values logged under ``key``; None when there is none."""
        logged = [(line["step"], line[key]) for line in self.lines if key in line]
        finite = [(step, value) for step, value in logged if finite_number(value) is not None]
        if not finite:
            return None
        steps, values = zip(*finite, strict=True)
        return Curve(label, np.array(steps, np.int64), np.array(values, np.float64), missing=len(logged) - len(finite))

    def loss_terms(self) -> list[str]:
        """Names of all logged numbers without another meaning, in the order of their first appearance."""
        logged = ((key, value) for line in self.lines for key, value in line.items())
        return list(dict.fromkeys(k for k, v in logged if k not in KNOWN_KEYS and finite_number(v) is not None))

    def spectra(self) -> list[tuple[int, NDArray[np.float64]]]:
        """(step, descending eigenvalues) of every line that has a spectrum."""
        found = []
        for line in self.lines:
            values = [v for v in map(finite_number, _as_list(line.get("spectrum"))) if v is not None]
            if values:
                found.append((line["step"], np.sort(np.array(values, np.float64))[::-1]))
        return found

    def last(self, key: str) -> float | None:
        """The last finite value logged under ``key``."""
        return next((v for v in (finite_number(line.get(key)) for line in reversed(self.lines)) if v is not None), None)


def finite_number(value: Any) -> float | None:
    """``value`` as a float if it is a finite number of JSON (a Boolean is none), else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_run(run: Path) -> RunData:
    """Reads everything the report shows.

    Raises:
        RunFolderError: the folder does not exist, is not a run folder, or its config.json is damaged.
    """
    config = read_config(run)
    notes: list[Note] = []
    lines = _read_lines(run / METRICS, notes)
    summary = _read_object(run / SUMMARY, notes)
    if imported := mapping(summary.get("imported")):
        notes.append(Note(f"The encoder was imported from {imported.get('file')}: no curves of its training are here."))
    elif not lines:
        notes.append(Note("No training metrics yet. Start or resume training with the command of the run:", "resume"))
    if lines and summary.get("finished") is not True:
        notes.append(Note("This run is not finished. To resume, run the same command in the same folder:", "resume"))
    environment = _read_object(run / ENVIRONMENT, notes)
    arrays = _read_arrays(run / EVALUATION, notes)
    evaluations = read_evaluations(run)
    if not evaluations and not arrays:
        notes.append(Note("Not evaluated yet: no accuracies, no map and no neighbours. Compute them with:", "evaluate"))
    return RunData(run.resolve().name, config, environment, lines, summary, arrays, evaluations, notes)


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read_lines(path: Path, notes: list[Note]) -> list[dict[str, Any]]:
    """The lines by ascending step. A resumed run may repeat steps: the later line counts."""
    if not path.is_file():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    damaged = []
    for i, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not raw.strip():
            continue
        line = _parse_line(raw)
        if line is None:
            damaged.append(i)
        else:
            by_step[line["step"]] = line
    if damaged:
        where = f"Line {damaged[0]}" if len(damaged) == 1 else f"{len(damaged)} lines (the first is line {damaged[0]})"
        notes.append(Note(f"{where} of metrics.jsonl cannot be read, as happens when a run is killed; left out."))
    return [by_step[step] for step in sorted(by_step)]


def _parse_line(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    is_step = isinstance(line, dict) and isinstance(line.get("step"), int) and 0 <= line["step"] < 2**62
    return line if is_step else None


def _read_object(path: Path, notes: list[Note]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes(), object_hook=current_names)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        notes.append(Note(f"{path.name} is damaged and left out."))
        return {}
    return values


def _read_arrays(path: Path, notes: list[Note]) -> Mapping[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:  # given a path, numpy leaves the file open when it is no archive
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("a single array")
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        notes.append(Note("evaluation.npz is damaged and left out. Write it again with:", "evaluate"))
        return {}
    kept = {"classes": arrays["classes"]} if "classes" in arrays else {}
    for what, names, fits in (("map", _MAP, _map_fits), ("gallery of neighbours", _GALLERY, _gallery_fits)):
        if all(name in arrays for name in names) and fits(arrays):
            kept.update({name: arrays[name] for name in names})
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
    )
