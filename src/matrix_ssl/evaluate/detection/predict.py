"""A detector's detections on images, in COCO's results format, computed by all processes."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matrix_ssl import distributed
from matrix_ssl.data.files.images import Unreadable
from matrix_ssl.errors import UnreadableImage
from matrix_ssl.evaluate.detection.annotations import AnnotatedImage, Annotations
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.evaluate.detection.images import fit, read_ahead, read_pixels, resize
from matrix_ssl.evaluate.detection.settings import DetectionSettings
from matrix_ssl.evaluate.detection.shapes import encode_pixels, paste
from matrix_ssl.runs.devices import MixedPrecision


@dataclass(frozen=True)
class DetectionResults:
    """Detections on all images that could be read."""

    # image_id, category_id, bbox [x, y, width, height], score and, if there are masks, segmentation
    detections: list[dict[str, Any]]
    unreadable: dict[int, Unreadable]  # by the image's id


def predict(
    detector: nn.Module,
    annotations: Annotations,
    files: ImageFiles,
    settings: DetectionSettings,
    *,
    categories: Sequence[int],
    device: torch.device,
    on_progress: Callable[[int, int], None],  # called with this process's images done and their number
) -> DetectionResults:
    """Runs the detector, in evaluation mode, on every image; the result is the same on every process.

    Boxes and masks are in the image's original size. Numbers are rounded as in COCO's files: boxes to a thousandth of a
    pixel, scores to six digits. ``categories`` are the ids of the labels, from label 1.
    """
    was_training = detector.training
    detector.eval()
    mine = annotations.images[distributed.rank() :: distributed.world_size()]
    detections: list[dict[str, Any]] = []
    unreadable: dict[int, Unreadable] = {}

    def read(image: AnnotatedImage) -> Tensor | Unreadable:
        try:
            size = fit(image, shorter=settings.test_size, longest=settings.test_longest)
            return resize(read_pixels(image, files), *size)
        except UnreadableImage as error:
            return error.where, error.reason

    precision = MixedPrecision.choose(settings.precision, device)
    decoded = read_ahead(read, mine, threads=settings.workers)
    for done, (image, pixels) in enumerate(zip(mine, decoded, strict=True), start=1):
        if isinstance(pixels, Tensor):
            with torch.no_grad(), precision.autocast():
                (result,) = detector([pixels.to(device)])
            detections += _to_coco(result, image, pixels.shape[1:], categories)
        else:
            unreadable[image.id] = pixels
        on_progress(done, len(mine))
    detector.train(was_training)
    parts = _gather_json([detections, list(unreadable.items())], device)
    order = {image.id: place for place, image in enumerate(annotations.images)}
    detections = sorted((item for part in parts for item in part[0]), key=lambda item: order[item["image_id"]])
    return DetectionResults(detections, {number: tuple(why) for part in parts for number, why in part[1]})


def _to_coco(
    result: dict[str, Tensor], image: AnnotatedImage, size: Sequence[int], categories: Sequence[int]
) -> list[dict[str, Any]]:
    """Converts detections from the network's input size to the image's original size."""
    result = {name: value.float() if value.is_floating_point() else value for name, value in result.items()}
    scale = torch.tensor([image.width / size[1], image.height / size[0]] * 2, device=result["boxes"].device)
    boxes = (result["boxes"] * scale).cpu()
    rows = zip(boxes, result["scores"].tolist(), result["labels"].tolist(), strict=True)
    items = [
        {
            "image_id": image.id,
            "category_id": categories[label - 1],
            "bbox": [round(v, 3) for v in (*box[:2].tolist(), *(box[2:] - box[:2]).tolist())],
            "score": float(f"{score:.6g}"),
        }
        for box, score, label in rows
    ]
    if "masks" not in result:
        return items
    masks = zip(items, result["masks"].cpu(), boxes, strict=True)
    return [
        {**item, "segmentation": encode_pixels(paste(mask, box, image.height, image.width))}
        for item, mask, box in masks
    ]


def _gather_json(value: Any, device: torch.device) -> list[Any]:
    """Gathers the values of all processes on every process."""
    if distributed.world_size() == 1:
        return [value]
    packed = np.frombuffer(zlib.compress(json.dumps(value).encode(), 1), dtype=np.uint8).copy()
    sizes = distributed.gather(torch.tensor([len(packed)], device=device)).tolist()
    together = distributed.gather(torch.from_numpy(packed).to(device), sizes=sizes).cpu().split(sizes)
    return [json.loads(zlib.decompress(part.numpy().tobytes())) for part in together]
