"""A sheet of detections next to the ground truth."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from matrix_ssl.evaluate.detection.annotations import AnnotatedImage, Annotations
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.evaluate.detection.images import fit, read_pixels, resize
from matrix_ssl.evaluate.detection.predict import DetectionResults
from matrix_ssl.evaluate.detection.shapes import decode, encode
from matrix_ssl.runs.files import write_atomically

_ROWS, _WIDTH, _GAP, _TITLE = 8, 480, 8, 20  # the last three in pixels
_FEWEST = 3  # minimum number of detections drawn, if there are that many


@dataclass(frozen=True)
class _Drawn:
    """An object to draw on an image."""

    box: Sequence[float]  # x0, y0, x1, y1
    mask: dict | None  # None if there are no masks
    category: int
    text: str


def write_gallery(path: Path, annotations: Annotations, files: ImageFiles, predictions: DetectionResults) -> None:
    """Writes a PNG of the first images with objects, ground truth on the left, best detections on the right.

    As many detections are drawn as there are objects, but at least three: those with the highest scores, however low.
    """
    images = [p for p in annotations.images if p.objects() and p.id not in predictions.unreadable][:_ROWS]
    rows = [_row(image, annotations, files, predictions) for image in images]
    height = _TITLE + sum(row.height + _GAP for row in rows)
    sheet = Image.new("RGB", (2 * _WIDTH + _GAP, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((2, 4), "truth", fill="black")
    pen.text((_WIDTH + _GAP + 2, 4), "detections", fill="black")
    top = _TITLE
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _GAP
    write_atomically(path, lambda file: sheet.save(file, format="PNG"))


def _row(
    image: AnnotatedImage, annotations: Annotations, files: ImageFiles, predictions: DetectionResults
) -> Image.Image:
    names = {category.id: category.name for category in annotations.categories}
    has_masks = all("segmentation" in item for item in predictions.detections)
    truth = [_Drawn(o.box, encode(o.shape, image.height, image.width) if has_masks else None, o.category,
                    names[o.category]) for o in image.objects()]  # fmt: skip
    mine = [item for item in predictions.detections if item["image_id"] == image.id]
    best = sorted(mine, key=lambda item: -item["score"])[: max(_FEWEST, len(truth))]
    detections = [
        _Drawn((x, y, x + w, y + h), item.get("segmentation"), item["category_id"],
               f"{names.get(item['category_id'], item['category_id'])} {item['score']:.2f}")
        for item in best for x, y, w, h in [item["bbox"]]
    ]  # fmt: skip
    height, width = fit(image, shorter=_WIDTH, longest=_WIDTH)
    pixels = (resize(read_pixels(image, files), height, width) * 255).round().byte()
    row = Image.new("RGB", (2 * _WIDTH + _GAP, height), "white")
    for place, items in enumerate((truth, detections)):
        drawn = _draw(pixels, items, scale=width / image.width)
        row.paste(Image.fromarray(drawn.permute(1, 2, 0).numpy()), (place * (_WIDTH + _GAP), 0))
    return row


def _draw(pixels: Tensor, items: Sequence[_Drawn], *, scale: float) -> Tensor:
    if not items:
        return pixels  # torchvision warns if there is nothing to draw
    height, width = pixels.shape[1:]
    colours = [_colour(item.category) for item in items]
    if drawn := [torch.from_numpy(decode(item.mask)) for item in items if item.mask is not None]:
        masks = F.interpolate(torch.stack(drawn)[None], size=(height, width), mode="nearest-exact")[0].bool()
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.4, colors=colours)
    corners = torch.tensor([list(item.box) for item in items]).reshape(-1, 2, 2) * scale
    corners = torch.minimum(corners.clamp_min(0), torch.tensor([width - 1, height - 1]))
    texts = [item.text for item in items]
    return draw_bounding_boxes(
        pixels, corners.reshape(-1, 4),
        labels=texts, colors=colours, width=2, label_colors="black", label_background_colors=colours, fill_labels=True,
    )  # fmt: skip


def _colour(category: int) -> tuple[int, int, int]:
    """A hue chosen by the golden ratio, so that the colours of neighbouring categories differ."""
    red, green, blue = colorsys.hsv_to_rgb(category * 0.618034 % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
