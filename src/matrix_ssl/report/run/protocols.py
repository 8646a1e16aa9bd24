"""Tables of everything that was measured with a run's encoder, from its folders evaluation and detection."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_ssl.report.formats import whole
from matrix_ssl.report.run.data import finite_number, mapping
from matrix_ssl.runs.display import measure_name

_ORDER = ("knn", "linear", "low-shot", "transfer", "linear-sgd", "semi-supervised", "fine-tune")
BASELINES = {"raw_pixels": "raw pixels", "random_network": "untrained network"}
_PRECISIONS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class ResultTable:
    """One table: a title, what its numbers are, column headings, and rows that begin with their heading."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def read_tables(run: Path) -> list[ResultTable]:
    """A table for every set that the encoder was evaluated on, and one for all detection runs.

    Files that are missing or damaged are left out; so is everything that was never measured.
    """
    folders = sorted(path for path in (run / "evaluation").glob("*") if path.is_dir())
    tables = [table for folder in folders if (table := _evaluation(folder)) is not None]
    detection = _detection(sorted((run / "detection").glob("*/result.json")))
    return [*tables, *([] if detection is None else [detection])]


def _evaluation(folder: Path) -> ResultTable | None:
    rows: list[list[str]] = []
    judged: Mapping[str, Any] = {}
    for protocol in _ORDER:
        found = _read(folder / f"{protocol}.json")
        for key, value in mapping(found.get("measures")).items():
            row = _row(key, mapping(value), found)
            if row is not None:
                rows.append(row)
                judged = mapping(mapping(found.get("set")).get("test"))
    if not rows:
        return None
    images, classes = finite_number(judged.get("images")), finite_number(judged.get("classes"))
    note = "Correct classifications in percent, with the 95 % interval of the bootstrap over test images"
    if images and classes:
        note += f": {whole(images)} images of {whole(classes)} classes"
    note += ". By class: the mean of the accuracies of the classes."
    against = mapping(_read(folder / "linear-sgd-against-linear.json"))
    gain = finite_number(against.get("difference"))
    bounds = _bounds(against.get("interval"), signed=True)
    if gain is not None and bounds:
        note += f" linear-sgd less linear: {_signed(gain)} points ({bounds})."
    headings = ["", "this encoder", "95 %", "by class", *BASELINES.values(), "labelled images"]
    return ResultTable(f"Evaluated on {folder.name}", note, headings, rows)


def _row(key: str, value: Mapping[str, Any], found: Mapping[str, Any]) -> list[str] | None:
    if finite_number(value.get("accuracy")) is None:
        return None
    baselines = mapping(found.get("baselines"))
    others = [_percent(mapping(mapping(baselines.get(name)).get(key)).get("accuracy")) for name in BASELINES]
    labelled = finite_number(value.get("labelled"))
    if labelled is None and not key.startswith("low_shot"):
        labelled = finite_number(found.get("training_images"))
    return [
        measure_name(key),
        _percent(value.get("accuracy")),
        _bounds(value.get("interval")),
        _percent(value.get("mean_per_class")),
        *others,
        whole(labelled) if labelled else "–",
    ]


def _detection(paths: list[Path]) -> ResultTable | None:
    rows = []
    for path in paths:
        found = _read(path)
        cells = [_percent(mapping(found.get(kind)).get(key)) for kind in ("box", "mask") for key in _PRECISIONS]
        if set(cells) != {"–"}:
            rows.append([path.parent.name, *cells])
    if not rows:
        return None
    headings = ["", *(f"{kind} {name}" for kind in ("box", "mask") for name in _PRECISIONS)]
    return ResultTable("Detection and segmentation", "Average precision of COCO in percent.", headings, rows)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return {}


def _percent(value: Any) -> str:
    found = finite_number(value)
    return "–" if found is None else f"{100 * found:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _bounds(value: Any, *, signed: bool = False) -> str:
    if not isinstance(value, list) or len(value) != 2:
        return ""
    low, high = finite_number(value[0]), finite_number(value[1])
    if low is None or high is None:
        return ""
    return f"{_signed(low)} to {_signed(high)}" if signed else f"{100 * low:.1f} to {100 * high:.1f}"
