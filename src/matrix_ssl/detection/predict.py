"""What a detector finds on pictures, in COCO's results format, spread over the processes."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matrix_ssl import distributed
from matrix_ssl.detection.annotations import Annotations, Picture
from matrix_ssl.detection.files import PictureFiles
from matrix_ssl.detection.pictures import Unreadable, fit, read_ahead, read_pixels, resize
from matrix_ssl.detection.settings import DetectionSettings
from matrix_ssl.detection.shapes import encode_pixels, paste
from matrix_ssl.errors import UnreadableImage

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predictions:
    """Detections on all pictures that could be read."""

    found: list[dict[str, Any]]  # image_id, category_id, bbox [x, y, width, height], score, segmentation
    unreadable: dict[int, Unreadable]  # by the picture's id


def predict(
    detector: nn.Module,
    annotations: Annotations,
    files: PictureFiles,
    settings: DetectionSettings,
    *,
    categories: Sequence[int],
    device: torch.device,
    on_progress: Progress,
) -> Predictions:
    """Runs the detector, in evaluation mode, on every picture; the result is the same on every process.

    Boxes and masks are those of the picture at its own size; numbers are rounded as in COCO's files: boxes to a
    thousandth of a pixel, scores to six digits.

    Args:
        categories: id of each label, from label 1.
        on_progress: called with (pictures done, pictures in all) of this process.
    """
    was_training = detector.training
    detector.eval()
    mine = annotations.pictures[distributed.rank() :: distributed.world_size()]
    found: list[dict[str, Any]] = []
    unreadable: dict[int, Unreadable] = {}

    def read(picture: Picture) -> Tensor | Unreadable:
        try:
            size = fit(picture, shorter=settings.test_size, longest=settings.test_longest)
            return resize(read_pixels(picture, files), *size)
        except UnreadableImage as error:
            return error.where, error.reason

    pixels = read_ahead(read, mine, threads=settings.workers)
    for done, (picture, image) in enumerate(zip(mine, pixels, strict=True), start=1):
        if isinstance(image, Tensor):
            with torch.no_grad():
                (result,) = detector([image.to(device)])
            found += _to_coco(result, picture, image.shape[1:], categories)
        else:
            unreadable[picture.id] = image
        on_progress(done, len(mine))
    detector.train(was_training)
    parts = _gather_json([found, list(unreadable.items())], device)
    everything = [item for part in parts for item in part[0]]
    order = {picture.id: place for place, picture in enumerate(annotations.pictures)}
    everything.sort(key=lambda item: order[item["image_id"]])
    return Predictions(everything, {number: tuple(why) for part in parts for number, why in part[1]})


def _to_coco(
    result: dict[str, Tensor], picture: Picture, size: Sequence[int], categories: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections at the network's size as those of the picture at its own."""
    scale = torch.tensor([picture.width / size[1], picture.height / size[0]] * 2, device=result["boxes"].device)
    boxes = (result["boxes"] * scale).cpu()
    rows = zip(boxes, result["scores"].tolist(), result["labels"].tolist(), result["masks"].cpu(), strict=True)
    return [
        {
            "image_id": picture.id,
            "category_id": categories[label - 1],
            "bbox": [round(v, 3) for v in (*box[:2].tolist(), *(box[2:] - box[:2]).tolist())],
            "score": float(f"{score:.6g}"),
            "segmentation": encode_pixels(paste(mask, box, picture.height, picture.width)),
        }
        for box, score, label, mask in rows
    ]


def _gather_json(value: Any, device: torch.device) -> list[Any]:
    """The value of every process, on every process."""
    if distributed.world_size() == 1:
        return [value]
    packed = np.frombuffer(zlib.compress(json.dumps(value).encode(), 1), dtype=np.uint8).copy()
    sizes = distributed.gather(torch.tensor([len(packed)], device=device)).tolist()
    together = distributed.gather(torch.from_numpy(packed).to(device), sizes=sizes).cpu().split(sizes)
    return [json.loads(zlib.decompress(part.numpy().tobytes())) for part in together]
