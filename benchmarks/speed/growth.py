"""How the cost of a step grows: with batch, width, size of the images, number of images and processes, and the floor.

    python -m benchmarks.speed.growth            (writes benchmarks/results/growth.json; minutes)
    python -m benchmarks.speed.growth --quick    (tiny sizes)

A step of Matrix-SSL with tiny_resnet on drawn images in memory, in float32 on one thread a process, from the views to
the update of weights and teacher. One thing grows, all else is as in ``BASE``. The floor is what no loop can do
without: forward and backward of the student's encoder for both views, and the forward of the teacher's. Step and floor
take turns. Times are CPU seconds; those of several processes are of the one that used most, for its part of the batch.
A point that the file has is not measured again, so the same command goes on where it was stopped.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.harness import ROOT, command_line, resume, save, spread, take_turns
from benchmarks.speed.loops import Case, ours
from matrix_ssl import distributed

BASE = Case("tiny_resnet", 32, 64, width=16)
SIZES: dict[str, tuple[int, ...]] = {
    "batch": (32, 64, 128, 256),
    "width": (8, 16, 32),
    "side": (16, 32, 64, 128),
    "images": (1_000, 10_000, 100_000, 1_000_000),
    "processes": (1, 2, 4),
}
QUICK = {"batch": (8, 16), "images": (100,), "processes": (1, 2)}
SMALL_SIDE = 8  # pixels of the images whose number grows, so that a million fit into memory
ROUNDS = 3
CPU = torch.device("cpu")


def drawn(count: int, side: int) -> Tensor:
    """Images uint8 (count, 3, side, side)."""
    few = torch.randint(0, 256, (min(count, 1000), 3, side, side), generator=torch.Generator().manual_seed(0))
    return few.to(torch.uint8).repeat(-(-count // len(few)), 1, 1, 1)[:count]


def measure(case: Case, *, images: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of a step and of its floor in this process, and of the first batch of an epoch."""
    steps = ours(case, drawn(images, case.side), device=CPU, settings=["precision=float32"])
    started = time.process_time()
    next(steps)
    first = time.process_time() - started
    seconds = take_turns({"step": lambda: next(steps), "floor": floor(case)}, rounds=rounds)
    return {"first": first, **{name: spread(values) for name, values in seconds.items()}}


def floor(case: Case) -> Any:
    """A call that computes what the encoders of a step do, for this process's part of the batch."""
    student, teacher = (case.build()[0].to(memory_format=torch.channels_last) for _ in range(2))
    rows = case.batch // distributed.world_size()
    views = [torch.randn(rows, 3, case.side, case.side).to(memory_format=torch.channels_last) for _ in range(2)]

    def networks() -> None:
        for view in views:
            with torch.no_grad():
                teacher(view)
        sum(student(view).sum() for view in views).backward()

    return networks


def group(case: Case, count: int, *, rounds: int) -> dict[str, Any]:
    """The same for several processes: of the one whose step takes most."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        words = ["--member", json.dumps(vars(case)), "--rounds", str(rounds), "--out", str(Path(folder) / "rows.json")]
        command = [*launcher, "-m", "benchmarks.speed.growth", *words]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        rows = [json.loads(path.read_text()) for path in Path(folder).glob("rows.json.*")]
    return max(rows, key=lambda row: row["step"]["median"])


def member(case: Case, *, rounds: int, out: Path) -> None:
    """One process of a group."""
    distributed.start("cpu")
    row = measure(case, images=10 * case.batch, rounds=rounds)
    Path(f"{out}.{distributed.rank()}").write_text(json.dumps(row))
    distributed.stop()


def point(along: str, size: int, base: Case, *, rounds: int) -> dict[str, Any]:
    """One point of a curve."""
    if along == "processes":
        return group(base, size, rounds=rounds)
    if along == "images":
        return measure(dataclasses.replace(base, side=SMALL_SIDE), images=size, rounds=rounds)
    case = dataclasses.replace(base, **{along: size})
    return measure(case, images=10 * case.batch, rounds=rounds)


def main() -> None:
    parser = command_line(__doc__, "growth.json")
    parser.add_argument("--member", help=argparse.SUPPRESS)  # one process of a group, with its case
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Rounds that count.")
    arguments = parser.parse_args()
    if arguments.member:
        member(Case(**json.loads(arguments.member)), rounds=arguments.rounds, out=arguments.out)
        return
    base = dataclasses.replace(BASE, batch=8, side=16, width=8, hidden=16, output=8) if arguments.quick else BASE
    sizes, rounds = (QUICK, 1) if arguments.quick else (SIZES, arguments.rounds)
    rows: list[dict[str, Any]] = resume(arguments.out).get("rows", [])
    for along, values in sizes.items():
        for size in values:
            if any((row["along"], row["size"]) == (along, size) for row in rows):
                continue
            rows.append({"along": along, "size": size, **point(along, size, base, rounds=rounds)})
            save(
                arguments.out,
                {"unit": "CPU seconds", "base": vars(base), "rows": rows},
                processes=max(sizes["processes"]),
            )
            step, least = rows[-1]["step"]["median"], rows[-1]["floor"]["median"]
            Console().print(f"{along} {size}: step {step:.3f} s, floor {least:.3f} s", markup=False)


if __name__ == "__main__":
    main()
