"""The result of a detection run for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

_COLUMNS = {
    "AP": "AP", "AP50": "AP50", "AP75": "AP75",
    "AP_small": "small", "AP_medium": "medium", "AP_large": "large", "AR_100": "AR",
}  # fmt: skip
_CLASSES = 10  # rows


def scores_table(result: Mapping[str, Any]) -> Table:
    """AP and AR of boxes and masks, in per cent, with the 95 % interval of AP over images."""
    title = f"average precision in % on {result['images']} images"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for label in _COLUMNS.values():
        table.add_column(label, justify="right")
    if result["interval_95"]:
        table.add_column("95 % of AP", justify="right")
    for kind in ("box", "mask"):
        cells = [_percent(result[kind][key]) for key in _COLUMNS]
        interval = result["interval_95"].get(kind, {}).get("AP")
        if result["interval_95"]:
            cells.append("-" if interval is None else f"{_percent(interval[0])} to {_percent(interval[1])}")
        table.add_row(kind, *cells)
    return table


def classes_table(result: Mapping[str, Any]) -> Table:
    """AP of the classes with the most objects; ``result.json`` has all."""
    rows = sorted(result["per_class"], key=lambda row: -row["objects"])
    rows = [row for row in rows if row["objects"]][:_CLASSES]
    known = sum(row["objects"] > 0 for row in result["per_class"])
    title = f"{len(rows)} of {known} classes, those with the most objects"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False)
    for label in ("class", "objects", "box AP", "box AP50", "mask AP", "mask AP50"):
        table.add_column(label, justify="left" if label == "class" else "right")
    for row in rows:
        values = [_percent(row[key]) for key in ("box_AP", "box_AP50", "mask_AP", "mask_AP50")]
        table.add_row(row["name"], str(row["objects"]), *values)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
