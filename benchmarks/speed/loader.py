"""The loader: images per second of one worker from a folder of files and from a pack, at 32 and 128 px.

    python -m benchmarks.speed.loader --data-root DATA         (writes benchmarks/results/loader.json; minutes)
    python -m benchmarks.speed.loader --quick                  (drawn images)

An image is read, decoded and cropped for two views; what a GPU or a batch does to the crops afterwards is not counted.
Folder and pack hold the same JPEG files, and take turns. ``worker`` is the CPU time of the process that reads, ``main``
that of the process that trains.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.harness import command_line, save, spread, take_turns
from benchmarks.speed.step import load, write
from matrix_ssl.api.packing import pack
from matrix_ssl.config import asymmetric_views
from matrix_ssl.data import augment
from matrix_ssl.data.base import Source
from matrix_ssl.data.sources import open_source
from matrix_ssl.data.workers import RandomCrops, read_batches

SIDES = (32, 128)
IMAGES, BATCH, ROUNDS = 2048, 128, 5


def crops(source: Source, side: int, batch: int) -> Iterator[Any]:
    """Batch after batch of the crops of a dataset, read in this process."""
    reader = RandomCrops(source, augment.each_view(asymmetric_views(), side), seed=0)
    order = np.random.default_rng(0).permutation(len(source))
    keys = [(0, part) for part in np.split(order, len(order) // batch)]
    return read_batches(reader, keys, workers=0)


def main_process(source: Source, side: int, batch: int) -> float:
    """CPU seconds that the main process spends on an image that a worker reads."""
    reader = RandomCrops(source, augment.each_view(asymmetric_views(), side), seed=0)
    keys = [(0, part) for part in np.split(np.arange(len(source)), len(source) // batch)]
    batches = read_batches(reader, keys, workers=1)
    next(batches)
    started, done = time.process_time(), 0
    for one in batches:
        one.views()
        done += batch
    return (time.process_time() - started) / done


def main() -> None:
    parser = command_line(__doc__, "loader.json")
    parser.add_argument("--data-root", type=Path, help="Folder with the images of CIFAR-10 and Imagenette.")
    arguments = parser.parse_args()
    count, batch, rounds = (32, 8, 1) if arguments.quick else (IMAGES, BATCH, ROUNDS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for side in SIDES:
            images = load(side, count, arguments.data_root, drawn=arguments.quick)
            folder, packed = Path(place) / f"{side}" / "train", Path(place) / f"{side}-packed"
            write(images, folder)
            pack(str(folder.parent), packed)
            sources = {
                name: open_source(str(path), split="train", data_root=None)
                for name, path in (("folder", folder.parent), ("pack", packed))
            }
            calls = {name: lambda s=s, side=side: [None for _ in crops(s, side, batch)] for name, s in sources.items()}
            seconds = take_turns(calls, rounds=rounds)
            for name, values in seconds.items():
                row = {"side": side, "from": name, "images_per_cpu_second_of_a_worker": spread(
                    [count / value for value in values]
                ), "main_process_milliseconds": 1e3 * main_process(sources[name], side, batch)}  # fmt: skip
                rows.append(row)
                rate = row["images_per_cpu_second_of_a_worker"]["median"]
                Console().print(f"{side} px from {name}: {rate:.0f} images per CPU second of a worker", markup=False)
            save(arguments.out, {"images": count, "batch": batch, "rows": rows})


if __name__ == "__main__":
    main()
