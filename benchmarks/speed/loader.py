"""The loader: images per second of one worker from a folder of files and from a pack, at 32 and 128 px.

    python -m benchmarks.speed.loader --data-root DATA         (writes benchmarks/results/loader.json; minutes)
    python -m benchmarks.speed.loader --quick                  (drawn images)

An image is read, decoded and cropped for two views; what a GPU or a batch does to the crops afterwards is not counted.
Folder and pack hold the same JPEG files. Beside them stand an image at a time through the same functions, as this
package read before it read batches, and torchvision's transform on PIL images with PyTorch's own way to collate. All
take turns. ``worker`` is the CPU time of the process that reads, ``main`` that of the process that trains.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.harness import command_line, save, spread
from benchmarks.speed.step import cpu_seconds, load, write
from matrix_ssl.api.packing import pack
from matrix_ssl.config import asymmetric_views
from matrix_ssl.data.base import Source
from matrix_ssl.data.sources import open_source
from matrix_ssl.data.views import augment
from matrix_ssl.data.workers import RandomCrops, read_batches

SIDES = (32, 128)
IMAGES, BATCH, ROUNDS = 2048, 128, 5
OURS = ("folder", "pack")


class OneByOne(Dataset[list[Tensor]]):
    """The crops of one image, by the functions of this package."""

    def __init__(self, source: Source, side: int):
        self.source, self.views = source, augment.each_view(asymmetric_views(), side)

    def __getitem__(self, sample: int) -> list[Tensor]:
        image, crops = self.source.read(sample), []
        for number, view in enumerate(self.views, 1):
            keys = augment.Keys(0, 0, np.array([sample]), number)
            (box,) = augment.random_boxes(view, keys, *image.shape[-2:])
            crops.append(augment.crop(image, box, view.image_size))
        return crops


class OnPIL(Dataset[list[Tensor]]):
    """The crops of one image by torchvision's transform on PIL images."""

    def __init__(self, paths: list[Path], side: int):
        self.paths = paths
        self.crop = v2.Compose([v2.RandomResizedCrop(side, scale=(0.2, 1.0)), v2.PILToTensor()])

    def __getitem__(self, sample: int) -> list[Tensor]:
        with Image.open(self.paths[sample]) as file:
            image = file.convert("RGB")
        return [self.crop(image), self.crop(image)]


def batched(source: Source, side: int, keys: list[Any]) -> Iterator[list[Tensor]]:
    """Crops of batch after batch as a training reads them."""
    reader = RandomCrops(source, augment.each_view(asymmetric_views(), side), seed=0)
    for content in read_batches(reader, [(0, key) for key in keys], workers=1):
        yield content.views()


def one_by_one(dataset: Dataset[list[Tensor]], keys: list[Any], collate: Any = None) -> Iterator[list[Tensor]]:
    """Crops of batch after batch of a dataset of single images."""
    loader = DataLoader(dataset, batch_sampler=[key.tolist() for key in keys], num_workers=1, collate_fn=collate)
    for crops in loader:
        yield crops if collate is None else [torch.stack(views) for views in zip(*crops, strict=True)]


def milliseconds(batches: Iterator[list[Tensor]], keys: list[Any]) -> tuple[float, float]:
    """CPU milliseconds an image of the worker and of the main process, from the first batch on to the last.

    The worker is slower than the main process, so that it has just ended a batch when that arrives.
    """
    next(batches)
    both, main = cpu_seconds(), time.process_time()
    for _ in keys[1:]:
        next(batches)
    main, both = time.process_time() - main, cpu_seconds() - both
    images = sum(map(len, keys[1:]))
    return 1e3 * max(both - main, 0.0) / images, 1e3 * main / images


def measure(variants: dict[str, Callable[[], Iterator[list[Tensor]]]], keys: list[Any], rounds: int) -> list[Any]:
    """A row for every variant; the first round does not count."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for turn in range(-1, rounds):
        for name in random.Random(turn).sample(list(variants), len(variants)):
            values = milliseconds(variants[name](), keys)
            if turn >= 0:
                spent[name].append(values)
    rows = []
    for name, values in spent.items():
        worker, main = zip(*values, strict=True)
        row = {"from": name, "worker_milliseconds": spread(worker), "main_process_milliseconds": spread(main)}
        for other in variants if name in OURS else ():
            if other not in OURS:
                ratios = [theirs[0] / max(own, 1e-9) for own, theirs in zip(worker, spent[other], strict=True)]
                row[f"times {other}"] = spread(ratios)
        rows.append(row)
    return rows


def main() -> None:
    parser = command_line(__doc__, "loader.json")
    parser.add_argument("--data-root", type=Path, help="Folder with the images of CIFAR-10 and Imagenette.")
    arguments = parser.parse_args()
    count, batch, rounds = (32, 8, 1) if arguments.quick else (IMAGES, BATCH, ROUNDS)
    keys = np.split(np.random.default_rng(0).permutation(count), count // batch)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for side in SIDES:
            images = load(side, count, arguments.data_root, drawn=arguments.quick)
            folder, packed = Path(place) / f"{side}" / "train", Path(place) / f"{side}-packed"
            paths = write(images, folder)
            pack(str(folder.parent), packed)
            sources = {
                name: open_source(str(path), split="train", data_root=None)
                for name, path in zip(OURS, (folder.parent, packed), strict=True)
            }
            variants: dict[str, Callable[[], Iterator[list[Tensor]]]] = {
                name: lambda s=source, side=side: batched(s, side, keys) for name, source in sources.items()
            }
            alone, pil = OneByOne(sources["folder"], side), OnPIL(paths, side)
            variants["an image at a time"] = lambda alone=alone: one_by_one(alone, keys, list)
            variants["torchvision on PIL"] = lambda pil=pil: one_by_one(pil, keys)
            for row in measure(variants, keys, rounds):
                rows.append({"side": side, **row})
                spent = row["worker_milliseconds"]["median"], row["main_process_milliseconds"]["median"]
                text = f"{side} px, {row['from']}: {spent[0]:.3f} ms of a worker, {spent[1]:.3f} of the main process"
                Console().print(text, markup=False)
            save(arguments.out, {"images": count, "batch": batch, "rows": rows})


if __name__ == "__main__":
    main()
