"""A tiny COCO set, drawn: bright discs and squares on dark images of several sizes, with true boxes and polygons."""

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from matrix_ssl.config import IMAGENET_MEAN, IMAGENET_STD
from matrix_ssl.evaluate.detection.network import Backbone
from matrix_ssl.runs import checkpoint

Sizes = tuple[tuple[int, int], ...]
CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "square"}]  # ids with holes, as COCO's
SIZES = ((96, 80), (80, 96), (88, 88))  # width, height


def disc(x: float, y: float, radius: float) -> list[float]:
    """A polygon of 24 points."""
    angles = [2 * math.pi * k / 24 for k in range(24)]
    return [v for a in angles for v in (x + radius * math.cos(a), y + radius * math.sin(a))]


def square(x: float, y: float, radius: float) -> list[float]:
    """A polygon of 4 points."""
    return [x - radius, y - radius, x + radius, y - radius, x + radius, y + radius, x - radius, y + radius]


def annotation(number: int, image: int, category: int, polygon: list[float]) -> dict[str, Any]:
    """A COCO annotation of one polygon, with its box and area."""
    points = np.array(polygon).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    x, y = points.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, "area": float(area),
            "bbox": [*low.tolist(), *(high - low).tolist()], "segmentation": [polygon]}  # fmt: skip


def draw_set(folder: Path, *, images: int, seed: int = 0, sizes: Sizes = SIZES) -> dict[str, Any]:
    """Writes PNG files into ``folder`` and returns their annotations: one disc and one square each."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for index in range(images):
        width, height = sizes[index % len(sizes)]
        canvas = Image.fromarray(draw.integers(0, 60, (height, width, 3), dtype=np.uint8))
        pen = ImageDraw.Draw(canvas)
        radius = float(draw.uniform(12, 16))
        shapes = [(3, disc(24, height / 2 + draw.uniform(-16, 16), radius), (230, 80, 60)),
                  (7, square(width - 24, height / 2 + draw.uniform(-16, 16), radius), (70, 120, 240))]  # fmt: skip
        for category, polygon, colour in shapes:
            pen.polygon([tuple(p) for p in np.array(polygon).reshape(-1, 2)], fill=colour)
            content["annotations"].append(annotation(len(content["annotations"]) + 1, 100 + index, category, polygon))
        name = f"{index:03d}.png"
        canvas.save(folder / name)
        content["images"].append({"id": 100 + index, "file_name": name, "width": width, "height": height})
    return content


def write_set(folder: Path, *, train: int = 6, val: int = 3, sizes: Sizes = SIZES) -> Path:
    """A folder with ``train/``, ``val.tar``, ``train.json`` and ``val.json``."""
    write_json(folder / "train.json", draw_set(folder / "train", images=train, sizes=sizes))
    write_json(folder / "val.json", draw_set(folder / "val", images=val, seed=1, sizes=sizes))
    with tarfile.open(folder / "val.tar", "w") as archive:
        archive.add(folder / "val", "val")
    return folder


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON and returns the path."""
    path.write_text(json.dumps(content))
    return path


TINY = (
    "batch_size=2", "learning_rate=0.08", "train_sizes=64,80", "train_longest=96", "test_size=80", "test_longest=96",
    "anchor_sizes=8,16,32,64,96", "anchors=32", "regions=16", "detections=10", "precise_bn=2", "bootstrap=20",
    "warmup=0", "log_every=1", "checkpoint_every=2",
)  # fmt: skip


def arguments(data: Path, *settings: str, architecture: str = "c4", encoder: str = "random") -> list[str]:
    """Arguments of ``detect`` on a drawn set, with small images, into the folder ``r``."""
    words = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
    places = ["--train-images", data / "train", "--train-annotations", data / "train.json",
              "--val-images", data / "val.tar", "--val-annotations", data / "val.json"]  # fmt: skip
    rest = ["--encoder", encoder, "--architecture", architecture, "--out", "r", "--device", "cpu"]
    backbone = ["--backbone", "resnet18"] if encoder == "random" else []
    return ["detect", *map(str, places), *rest, *backbone, *words]


class Thin(ResNet):
    """A torchvision ResNet of four single blocks, an eighth as wide: the same names, a hundredth of the work."""

    def __init__(self, width: int = 8):
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.inplanes = width
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width)
        for stage in range(4):
            layer = self._make_layer(BasicBlock, width * 2**stage, 1, stride=1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", layer)
        self.fc = nn.Identity()


def thin_backbone(*_: Any, seed: int = 0, **__: Any) -> Backbone:
    """In the place of ``open_backbone``: a thin encoder drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Thin()
    digest = checkpoint.digest(encoder.state_dict())
    return Backbone(encoder, "thin", IMAGENET_MEAN, IMAGENET_STD, "a thin encoder", digest)


# code that makes the command line use thin encoders
THINLY = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); from tests.support import drawn_coco\n"
    f"import matrix_ssl.evaluate.detection.run as r; r.open_backbone = drawn_coco.thin_backbone"
)
