"""The losses of the other methods beside lightly's: CPU seconds of value and gradient, and peak extra memory.

    python -m benchmarks.speed.method_losses            (writes benchmarks/results/method_losses.json; some minutes)
    python -m benchmarks.speed.method_losses --quick    (tiny sizes)

Both take turns in one process, float32, one thread. Memory is the growth of the peak of a fresh process, measured
apart. Needs lightly (the extra ``test``). MoCo v2 is left out: lightly's loss also fills the queue in every call.
"""

import importlib.metadata
import multiprocessing
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import command_line, save, spread, take_turns
from matrix_ssl.methods.barlow_twins import barlow_twins_loss
from matrix_ssl.methods.lejepa import sigreg_loss
from matrix_ssl.methods.simclr import simclr_loss
from matrix_ssl.methods.simsiam import simsiam_loss
from matrix_ssl.methods.vicreg import vicreg_loss

CASES = (
    ("barlow_twins", 256, 2048), ("barlow_twins", 256, 8192), ("barlow_twins", 1024, 512),
    ("vicreg", 256, 2048), ("vicreg", 256, 8192), ("vicreg", 1024, 512),
    ("simclr", 256, 128), ("simclr", 1024, 128),
    ("simsiam", 256, 2048),
    ("sigreg", 256, 128), ("sigreg", 1024, 128),
)  # fmt: skip
ROUNDS = 7
SLICES = 1024


def pair(method: str, n: int, d: int) -> dict[str, Callable[[], object]]:
    """Value and gradient of our loss and of lightly's, on the same outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly import loss as theirs
        from lightly.loss.lejepa_loss import SIGReg

    generator = torch.Generator().manual_seed(0)
    z1, z2, p1, p2 = torch.randn(4, n, d, generator=generator).unbind()
    z1.requires_grad_(), z2.requires_grad_()

    def both(ours: Callable[[], Tensor], other: Callable[[], Tensor]) -> dict[str, Callable[[], object]]:
        def gradient(loss: Callable[[], Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(loss(), (z1, z2), allow_unused=True)

        return {"ours": gradient(ours), "lightly": gradient(other)}

    if method == "barlow_twins":
        return both(lambda: barlow_twins_loss(z1, z2), lambda: theirs.BarlowTwinsLoss(0.0051)(z1, z2))
    if method == "vicreg":
        return both(lambda: vicreg_loss(z1, z2), lambda: theirs.VICRegLoss()(z1, z2))
    if method == "simclr":
        return both(lambda: simclr_loss(z1, z2), lambda: theirs.NTXentLoss(0.1)(z1, z2))
    if method == "simsiam":
        cosine = theirs.NegativeCosineSimilarity()
        return both(lambda: simsiam_loss(z1, z2, p1, p2), lambda: (cosine(z1, p2) + cosine(z2, p1)) / 2)
    sigreg = SIGReg(num_vectors=SLICES)
    return both(lambda: sigreg_loss(z1, slices=SLICES), lambda: sigreg(z1))


def peak(method: str, n: int, d: int, name: str, answer: Any) -> None:
    """MiB by which one value and gradient raise the peak of this process."""
    pair(method, 8, 16)[name]()  # loads what the first call loads
    function = pair(method, n, d)[name]
    before = most_memory()
    function()
    answer.put(most_memory() - before)


def most_memory() -> float:
    """MiB of this process at its peak. Linux carries ``ru_maxrss`` over from the parent, this it does not."""
    (line,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(line) / 2**10


def main() -> None:
    arguments = command_line(__doc__, "method_losses.json").parse_args()
    context = multiprocessing.get_context("fork" if arguments.quick else "spawn")  # the fork says nothing of memory
    rows = []
    table = Table("loss", "n, d", "ours, ms", "lightly, ms", "times as fast", "MiB ours", "MiB lightly")
    for method, n, d in [(CASES[-1][0], 8, 16)] if arguments.quick else CASES:
        seconds = take_turns(pair(method, n, d), rounds=2 if arguments.quick else ROUNDS)
        ratios = spread([b / max(a, 1e-9) for a, b in zip(seconds["ours"], seconds["lightly"], strict=True)])
        memory = {}
        for name in seconds:
            answer = context.Queue()
            process = context.Process(target=peak, args=(method, n, d, name, answer))
            process.start()
            memory[name] = answer.get()
            process.join()
        rows.append({
            "method": method, "n": n, "d": d, "ratio": ratios, "mib": memory,
            "seconds": {name: spread(values) for name, values in seconds.items()},
        })  # fmt: skip
        times = [f"{1000 * rows[-1]['seconds'][name]['median']:.3g}" for name in seconds]
        table.add_row(method, f"{n}, {d}", *times, f"{ratios['median']:.3g}", *(f"{memory[m]:.3g}" for m in seconds))
    versions = {"lightly": importlib.metadata.version("lightly")}
    save(arguments.out, {"unit": "CPU seconds", "rows": rows}, versions=versions)
    Console().print(table)


if __name__ == "__main__":
    main()
