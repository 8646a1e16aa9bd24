"""Whole training steps: ours beside lightly's documented loop and the published one, from memory and from files.

    python -m benchmarks.speed.step --data-root DATA         (writes benchmarks/results/step.json; an hour)
    python -m benchmarks.speed.step --quick                  (tiny sizes)

For every side of the views, from memory and from files with every number of workers, the loops take turns in one
process, a block of steps each, in an order drawn anew for every round. A row has images per second of the wall clock
and per CPU second of the process and its workers, the median with quartiles, and the ratio of ours to each other loop
within a round: of CPU seconds, which on a shared machine mean more. Ours in bfloat16 stands beside: the others are in
float32, as they are published. A round that the file has is not run again, so the same command goes on where it was
stopped.

Images of 32 px are those of CIFAR-10, all others of Imagenette (128 px copies), enlarged where views of 224 px are cut.
With --quick they are drawn.
"""

import dataclasses
import importlib.metadata
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import command_line, resume, save, spread
from benchmarks.speed.loops import Case, Steps, lightly, ours, published_loop
from matrix_ssl.data.sources import open_source

CPU = torch.device("cpu")
CASES = {
    32: Case("tiny_resnet", 32, 256),
    64: Case("tiny_resnet", 64, 128),
    128: Case("resnet18", 128, 32, hidden=1024, output=512),
    224: Case("resnet50", 224, 8, hidden=2048, output=2048),
}
QUICK = {32: Case("tiny_resnet", 32, 8, hidden=16, output=8, width=8)}
SOURCE_SIDE = {32: 32, 64: 128, 128: 128, 224: 256}  # pixels of the images that views are cut from
PLACES = ("memory", "0", "1", "2")  # of images: in memory, or files that so many workers read
IMAGES = 2048  # held in memory, and written as files
ROUNDS = 3
SECONDS = 3.0  # of the processor in a block, at least


def load(side: int, count: int, data_root: Path | None, *, drawn: bool) -> Tensor:
    """Images uint8 (count, 3, s, s) that views of a side are cut from."""
    large = SOURCE_SIDE[side]
    if drawn:
        values = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        return (F.interpolate(values, (large, large), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    source = open_source("cifar10" if side == 32 else "imagenette", split="train", data_root=data_root)
    chosen = np.random.default_rng(0).permutation(len(source))[:count]
    images = [source.read(int(index))[None].float() for index in chosen]
    resized = [F.interpolate(image, (large, large), mode="bilinear", antialias=True) for image in images]
    return torch.cat(resized).round().clamp(0, 255).to(torch.uint8)


def write(images: Tensor, folder: Path) -> list[Path]:
    """Writes images as JPEG files."""
    folder.mkdir(parents=True)
    paths = [folder / f"{index:05d}.jpg" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=90)
    return paths


def variants(case: Case, images: Tensor, files: list[Path] | None) -> dict[str, Callable[[], Steps]]:
    """The loops of a comparison, on images in memory or their files."""
    decoded = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images] if files is None else files
    source = images if files is None else files[0].parent
    return {
        "ours": lambda: ours(case, source, device=CPU, settings=["precision=float32"]),
        "ours, BYOL": lambda: ours(case, source, device=CPU, method="byol", settings=["precision=float32"]),
        "ours, bfloat16": lambda: ours(case, source, device=CPU, settings=["precision=bfloat16"]),
        "ours, BYOL, bfloat16": lambda: ours(case, source, device=CPU, method="byol", settings=["precision=bfloat16"]),
        "lightly, BYOL": lambda: lightly(case, decoded, device=CPU),
        "published": lambda: published_loop(case, decoded, device=CPU),
    }


def cpu_seconds() -> float:
    """Of this process and of its children that are alive, such as workers."""
    tick = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


def measure(
    loops: dict[str, Callable[[], Steps]], case: Case, *, turn: int, seconds: float
) -> dict[str, tuple[float, float]]:
    """Images per second of the wall clock and per CPU second, for every loop in one round.

    The first steps of a block do not count, one and the two batches that every worker has read ahead of them.
    """
    rates: dict[str, tuple[float, float]] = {}
    for name in random.Random(turn).sample(list(loops), len(loops)):
        steps = loops[name]()  # a block is a loop of its own: workers of the others do not read meanwhile
        for _ in range(1 + 2 * case.workers):
            next(steps)
        started, used, done = time.monotonic(), cpu_seconds(), 0
        while cpu_seconds() - used < seconds or not done:
            next(steps)
            done += 1
        wall, cpu = time.monotonic() - started, cpu_seconds() - used
        rates[name] = done * case.batch / wall, done * case.batch / max(cpu, 1e-9)
        del steps
    return rates


def summarise(rounds: Sequence[dict[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """A row for every loop, with the ratio of ours to the others: Matrix-SSL to the published, BYOL to lightly's."""
    rows = []
    for name in rounds[0]:
        wall, cpu = zip(*(rates[name] for rates in rounds), strict=True)
        row: dict[str, Any] = {"loop": name, "images_per_second": spread(wall), "images_per_cpu_second": spread(cpu)}
        if name.startswith("ours"):
            other = "lightly, BYOL" if "BYOL" in name else "published"
            ratios = [rates[name][1] / rates[other][1] for rates in rounds]
            row |= {"over": other, "times_per_cpu_second": spread(ratios)}
        rows.append(row)
    return rows


def main() -> None:
    parser = command_line(__doc__, "step.json")
    parser.add_argument("--data-root", type=Path, help="Folder with the images of CIFAR-10 and Imagenette.")
    parser.add_argument("--sides", type=int, nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Rounds of every case.")
    arguments = parser.parse_args()
    cases = QUICK if arguments.quick else {side: CASES[side] for side in arguments.sides}
    rounds, seconds, count = (1, 0.0, 16) if arguments.quick else (arguments.rounds, SECONDS, IMAGES)
    done: list[dict[str, Any]] = resume(arguments.out).get("cases", [])
    versions = {"lightly": importlib.metadata.version("lightly")}
    with tempfile.TemporaryDirectory() as folder:
        for side, case in cases.items():
            images = load(side, count, arguments.data_root, drawn=arguments.quick)
            paths = write(images, Path(folder) / str(side) / "train")
            for place in arguments.places:
                is_read = place != "memory"
                chosen = dataclasses.replace(case, workers=int(place) if is_read else 0)
                loops = variants(chosen, images, paths if is_read else None)
                key = {"case": vars(chosen), "images": "files" if is_read else "memory"}
                entry = next((entry for entry in done if key.items() <= entry.items()), None)
                if entry is None:
                    entry = {**key, "rounds": [], "rows": []}
                    done.append(entry)
                while len(entry["rounds"]) < rounds:
                    entry["rounds"].append(measure(loops, chosen, turn=len(entry["rounds"]), seconds=seconds))
                    entry["rows"] = summarise(entry["rounds"])
                    content = {"source_sides": SOURCE_SIDE, "images": count, "cases": done}
                    save(arguments.out, content, versions=versions)
                show(side, place, entry["rows"])


def show(side: int, place: str, rows: list[dict[str, Any]]) -> None:
    """Prints the medians of one case."""
    place = place if place == "memory" else f"files, {place} workers"
    for row in rows:
        ratio = f", {row['times_per_cpu_second']['median']:.2f} times {row['over']}" if "over" in row else ""
        rate = f"{row['images_per_cpu_second']['median']:.1f} images per CPU second{ratio}"
        Console().print(f"{side} px from {place}: {row['loop']}: {rate}", markup=False)


if __name__ == "__main__":
    main()
