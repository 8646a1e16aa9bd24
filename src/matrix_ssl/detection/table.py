"""The result of a detection run as tables for a terminal."""

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
    """AP and AR of boxes and masks, in percent, with the 95 % interval of AP over images."""
    intervals = result["interval_95"]
    columns = [*_COLUMNS.values(), *(["95 % of AP"] if intervals else [])]
    table = _table(f"Average precision in % on {result['images']} images", "", columns)
    for kind in ("box", "mask"):
        cells = [_percent(result[kind][key]) for key in _COLUMNS]
        if intervals:
            interval = intervals[kind]["AP"]
            cells.append("-" if interval is None else f"{_percent(interval[0])} to {_percent(interval[1])}")
        table.add_row(kind, *cells)
    return table


def classes_table(result: Mapping[str, Any]) -> Table:
    """AP of the classes with the most objects; ``result.json`` has all."""
    rows = [row for row in sorted(result["per_class"], key=lambda row: -row["objects"]) if row["objects"]]
    title = f"{len(rows[:_CLASSES])} of {len(rows)} classes, those with the most objects"
    table = _table(title, "class", ["objects", "box AP", "box AP50", "mask AP", "mask AP50"])
    for row in rows[:_CLASSES]:
        values = [_percent(row[key]) for key in ("box_AP", "box_AP50", "mask_AP", "mask_AP50")]
        table.add_row(row["name"], str(row["objects"]), *values)
    return table


def _table(title: str, first: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column(first)
    for label in columns:
        table.add_column(label, justify="right")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
