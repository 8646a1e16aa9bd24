"""The loss over several processes: what sharing the two orders and the choice of what is exchanged gain.

    python -m benchmarks.speed.processes            (writes benchmarks/results/processes.json; some minutes)
    python -m benchmarks.speed.processes --quick    (tiny sizes)

Starts groups of processes over gloo on this machine. One call is the value of the whole loss, both orders, and the
gradient by this process's rows, in float32 on one thread a process; the time is that on the clock of the slowest
process, since all have to wait for it. ``whole`` gathers rows and computes both orders on every process, ``rows`` and
``covariances`` share the orders and exchange what they say; ``auto`` is what the choice takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import ROOT, command_line, save, spread
from benchmarks.speed.spectra import outputs
from matrix_ssl import distributed, losses
from matrix_ssl.distributed import losses as parallel

SIZES = ((256, 128), (1024, 128), (1024, 512), (1024, 2048))
ROUNDS = 9


def main() -> None:
    parser = command_line(__doc__, "processes.json")
    parser.add_argument("--member", type=Path, help=argparse.SUPPRESS)  # one process of a group, and where it writes
    arguments = parser.parse_args()
    sizes = ((16, 4), (8, 12)) if arguments.quick else SIZES
    if arguments.member:
        member(arguments.member, sizes, 2 if arguments.quick else ROUNDS)
        return
    rows = [row for count in ((1, 2) if arguments.quick else (1, 2, 4)) for row in group(count, quick=arguments.quick)]
    content = {"unit": "seconds of the slowest process", "cores": os.cpu_count(), "rows": rows}
    save(arguments.out, content, processes=4)
    table = Table("processes", "n, d", "variant", "median seconds")
    for row in rows:
        table.add_row(
            str(row["processes"]), f"{row['n']}, {row['d']}", row["variant"], f"{row['seconds']['median']:.4f}"
        )
    Console().print(table)


def group(count: int, *, quick: bool) -> list[dict[str, Any]]:
    """Runs ``count`` processes with PyTorch's launcher; the first one's rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        command = [*launcher, "-m", "benchmarks.speed.processes", "--member", str(out), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return json.loads(out.read_text())


def member(out: Path, sizes: tuple[tuple[int, int], ...], rounds: int) -> None:
    """Measures in one process of a group."""
    torch.set_num_threads(1)
    distributed.start("cpu")
    rows = []
    for n, d in sizes:
        functions = variants(n, d)
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for turn in range(rounds + 1):
            for name, function in functions.items():
                distributed.barrier()
                started = time.perf_counter()
                function()
                slowest = distributed.maximum(torch.tensor([time.perf_counter() - started], dtype=torch.float64))
                if turn:  # the first round warms up
                    seconds[name].append(float(slowest))
        place = {"processes": distributed.world_size(), "n": n, "d": d}
        rows += [{**place, "variant": name, "seconds": spread(values)} for name, values in seconds.items()]
    if distributed.is_main():
        out.write_text(json.dumps(rows))
    distributed.stop()


def variants(n: int, d: int) -> dict[str, Callable[[], object]]:
    """Value and gradient by every way of sharing."""
    mine = slice(distributed.rank(), None, distributed.world_size())
    (p1, z2), (p2, z1) = (outputs("1/k", n, d, seed=seed) for seed in (0, 1))
    z1, z2 = z1[mine].requires_grad_(), z2[mine].requires_grad_()
    p1, p2 = p1[mine], p2[mine]

    def gradient(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), (z1, z2))

    def whole() -> Tensor:
        return losses.matrix_ssl_terms(*(distributed.gather(x) for x in (z1, z2, p1, p2))).loss

    found = {"whole": gradient(whole)}
    if distributed.world_size() > 1:
        exchanges: tuple[parallel.Exchange, ...] = ("auto", "rows", "covariances")
        for exchange in exchanges:
            found[exchange] = gradient(
                lambda exchange=exchange: parallel.matrix_ssl_terms(z1, z2, p1, p2, exchange=exchange).loss
            )
    return found


if __name__ == "__main__":
    main()
