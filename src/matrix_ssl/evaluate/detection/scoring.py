"""Average precision of boxes and masks as defined by COCO (computed by pycocotools), its uncertainty, and tables.

For one IoU threshold and category, AP is the mean over 101 recall levels of the highest precision at that recall or
above; it is averaged over the thresholds 0.50, 0.55, ..., 0.95 and over categories. AP50 and AP75 use one threshold.
Small objects cover less than 32² pixels, large ones more than 96². AR is the mean over thresholds and categories of the
highest recall with 1, 10 or 100 detections per image. Detections on crowd regions count neither as right nor as wrong.
A category without an object is excluded from every mean; a mean over nothing is None.

Reference: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; cocodataset.org, "Detection evaluation".
"""

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from matrix_ssl.evaluate.detection.annotations import AnnotatedImage, Annotations
from matrix_ssl.evaluate.detection.intervals import resample
from matrix_ssl.evaluate.detection.predict import DetectionResults
from matrix_ssl.evaluate.detection.shapes import coco_masks, encode

MEASURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
            "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")  # fmt: skip
Kind = Literal["box", "mask"]
_TYPES: dict[Kind, str] = {"box": "bbox", "mask": "segm"}
_COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "AP_small": "small", "AP_medium": "medium", "AP_large": "large",
            "AR_100": "AR"}  # fmt: skip
_CLASSES = 10  # rows


def score(
    annotations: Annotations, predictions: DetectionResults, *, masks: bool = True, resamples: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Scores detections, as fractions of 1, on the images that could be read.

    There are no intervals if ``resamples`` is 0, and one is None if the resamples agree. Only boxes are scored without
    ``masks``.

    Returns:
        ``{"box": {measure: value}, "mask": {...}, "per_class": [{id, name, objects, box_AP, box_AP50, mask_AP,
        mask_AP50}], "interval_95": {"box": {"AP": [low, high], "AP50": ...}, "mask": ...}, "images": number}``.
    """
    images = [image for image in annotations.images if image.id not in predictions.unreadable]
    truth = _truth(annotations, images)
    objects = Counter(instance.category for image in images for instance in image.objects())
    classes: list[dict[str, Any]] = [
        {"id": category.id, "name": category.name, "objects": objects[category.id]}
        for category in annotations.categories
    ]
    result: dict[str, Any] = {"images": len(images)}
    intervals: dict[str, Any] = {}
    kinds: tuple[Kind, ...] = ("box", "mask") if masks else ("box",)
    for kind in kinds:
        evaluation = _evaluate(truth, _detections(predictions.detections, kind), images, kind)
        values = zip(MEASURES, evaluation.stats.tolist(), strict=True)
        result[kind] = {name: None if value < 0 else value for name, value in values}
        precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (thresholds, recalls, categories); all areas, 100
        for index, row in enumerate(classes):
            row[f"{kind}_AP"] = _mean(precision[:, :, index])
            row[f"{kind}_AP50"] = _mean(precision[0, :, index])
        if resamples:
            intervals[kind] = resample(evaluation, images=len(images), resamples=resamples, seed=seed)
    return {**result, "per_class": classes, "interval_95": intervals}


def _truth(annotations: Annotations, images: Sequence[AnnotatedImage]) -> dict[str, Any]:
    pairs = ((image, instance) for image in images for instance in image.instances)
    items = [
        {
            "id": number,  # from 1: in pycocotools the id 0 means "no match"
            "image_id": image.id,
            "category_id": instance.category,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": instance.area,
            "iscrowd": int(instance.crowd),
            "segmentation": encode(instance.shape, image.height, image.width),
        }
        for number, (image, instance) in enumerate(pairs, start=1)
        for x0, y0, x1, y1 in [instance.box]
    ]
    return {
        "images": [{"id": p.id, "height": p.height, "width": p.width} for p in images],
        "categories": [{"id": category.id, "name": category.name} for category in annotations.categories],
        "annotations": items,
    }


def _detections(detections: Sequence[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Detections with the area of the box or mask scored, which decides the sizes that an unmatched one counts for."""
    items = []
    for number, item in enumerate(detections, start=1):
        area = item["bbox"][2] * item["bbox"][3] if kind == "box" else float(coco_masks().area(item["segmentation"]))
        items.append({**item, "id": number, "area": area, "iscrowd": 0})
    return items


def _evaluate(
    truth: dict[str, Any], detections: list[dict[str, Any]], images: Sequence[AnnotatedImage], kind: Kind
) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints at every step
        sides = []
        for items in (truth["annotations"], detections):
            side = COCO()
            side.dataset = {**truth, "annotations": [dict(item) for item in items]}  # copies, which it modifies
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, _TYPES[kind])
        evaluation.params.imgIds = [image.id for image in images]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _mean(precision: NDArray[np.float64]) -> float | None:
    """The mean of the defined values; pycocotools marks the others with -1."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None


def scores_table(result: Mapping[str, Any]) -> Table:
    """AP and AR of boxes and masks in percent, with the 95 % interval of AP over images."""
    intervals = result["interval_95"]
    columns = [*_COLUMNS.values(), *(["95 % of AP"] if intervals else [])]
    table = _table(f"Average precision in % on {result['images']} images", "", columns)
    for kind in (kind for kind in _TYPES if kind in result):
        cells = [_percent(result[kind][key]) for key in _COLUMNS]
        if intervals:
            interval = intervals[kind]["AP"]
            cells.append("-" if interval is None else f"{_percent(interval[0])} to {_percent(interval[1])}")
        table.add_row(kind, *cells)
    return table


def classes_table(result: Mapping[str, Any]) -> Table:
    """AP of the classes with the most objects; ``result.json`` has all classes."""
    rows = [row for row in sorted(result["per_class"], key=lambda row: -row["objects"]) if row["objects"]]
    title = f"{len(rows[:_CLASSES])} of {len(rows)} classes, those with the most objects"
    keys = [f"{kind}_{measure}" for kind in _TYPES if kind in result for measure in ("AP", "AP50")]
    table = _table(title, "class", ["objects", *(key.replace("_", " ") for key in keys)])
    for row in rows[:_CLASSES]:
        values = [_percent(row[key]) for key in keys]
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
