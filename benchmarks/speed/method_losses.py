"""The losses of the other methods beside lightly's: CPU seconds of value and gradient, and peak extra memory.

    python -m benchmarks.speed.method_losses            (writes benchmarks/results/method_losses.json; some minutes)
    python -m benchmarks.speed.method_losses --quick    (tiny sizes)

Both take turns in one process, float32, one thread. Memory is the growth of the peak of a fresh process, measured
apart. Needs lightly (the extra ``test``), which has no CorInfoMax and no Kernel-InfoNCE; its EMP-SSL has the published
sign here. MoCo v2 is left out: lightly's loss also fills the queue in every call. SwAV gets the scores of d prototypes,
DINO the outputs of two views of both networks.
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
from torch.nn.functional import normalize

from benchmarks.harness import command_line, save, spread, take_turns
from matrix_ssl.methods.barlow_twins import barlow_twins_loss
from matrix_ssl.methods.cor_info_max import cor_info_max_loss
from matrix_ssl.methods.dino import dino_loss
from matrix_ssl.methods.emp_ssl import emp_ssl_loss
from matrix_ssl.methods.kernel_infonce import kernel_infonce_loss
from matrix_ssl.methods.lejepa import sigreg_loss
from matrix_ssl.methods.mmcr import mmcr_loss
from matrix_ssl.methods.simclr import simclr_loss
from matrix_ssl.methods.simsiam import simsiam_loss
from matrix_ssl.methods.swav import swav_loss
from matrix_ssl.methods.vicreg import vicreg_loss
from matrix_ssl.methods.w_mse import w_mse_loss

CASES = (
    ("barlow_twins", 256, 2048), ("barlow_twins", 256, 8192), ("barlow_twins", 1024, 512),
    ("vicreg", 256, 2048), ("vicreg", 256, 8192), ("vicreg", 1024, 512),
    ("simclr", 256, 128), ("simclr", 1024, 128),
    ("simsiam", 256, 2048),
    ("sigreg", 256, 128), ("sigreg", 1024, 128),
    ("emp_ssl", 256, 1024), ("emp_ssl", 1024, 512),
    ("mmcr", 256, 512), ("mmcr", 1024, 512),
    ("w_mse", 256, 64), ("w_mse", 1024, 128),
    ("swav", 256, 3000), ("dino", 256, 4096),
    ("cor_info_max", 256, 512), ("cor_info_max", 1024, 512),
    ("kernel_infonce", 256, 128), ("kernel_infonce", 1024, 128),
)  # fmt: skip
QUICK = (("sigreg", 8, 16), ("emp_ssl", 8, 16), ("mmcr", 8, 16), ("w_mse", 8, 3), ("swav", 8, 16), ("dino", 8, 16),
         ("cor_info_max", 8, 16), ("kernel_infonce", 8, 16))  # fmt: skip
ROUNDS = 7
SLICES = 1024


def pair(method: str, n: int, d: int) -> dict[str, Callable[[], object]]:
    """Value and gradient of our loss and of lightly's, where it has one, on the same outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightly import loss as theirs
        from lightly.loss import emp_ssl_loss as parts
        from lightly.loss.lejepa_loss import SIGReg

    generator = torch.Generator().manual_seed(0)
    z1, z2, p1, p2 = torch.randn(4, n, d, generator=generator).unbind()
    z1.requires_grad_(), z2.requires_grad_()

    def both(ours: Callable[[], Tensor], other: Callable[[], Tensor] | None = None) -> dict[str, Callable[[], object]]:
        def gradient(loss: Callable[[], Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(loss(), (z1, z2), allow_unused=True)

        return {"ours": gradient(ours)} | ({"lightly": gradient(other)} if other is not None else {})

    if method == "barlow_twins":
        return both(lambda: barlow_twins_loss(z1, z2), lambda: theirs.BarlowTwinsLoss(0.0051)(z1, z2))
    if method == "vicreg":
        return both(lambda: vicreg_loss(z1, z2), lambda: theirs.VICRegLoss()(z1, z2))
    if method == "simclr":
        return both(lambda: simclr_loss(z1, z2), lambda: theirs.NTXentLoss(0.1)(z1, z2))
    if method == "simsiam":
        cosine = theirs.NegativeCosineSimilarity()
        return both(lambda: simsiam_loss(z1, z2, p1, p2), lambda: (cosine(z1, p2) + cosine(z2, p1)) / 2)
    if method == "cor_info_max":
        return both(lambda: cor_info_max_loss(z1, z2))
    if method == "kernel_infonce":
        return both(lambda: kernel_infonce_loss(z1, z2))
    if method == "emp_ssl":

        def published() -> Tensor:
            z = normalize(torch.stack([z1, z2]), dim=-1)
            return 200 * parts.invariance_loss(z) - parts.tcr_loss(z, eps=0.2)

        return both(lambda: emp_ssl_loss(z1, z2), published)
    if method == "mmcr":
        mmcr = theirs.MMCRLoss(lmda=0.0)
        return both(lambda: mmcr_loss(z1, z2), lambda: mmcr(*(normalize(z, dim=-1).unsqueeze(1) for z in (z1, z2))))
    if method == "w_mse":
        w_mse = theirs.WMSELoss(embedding_dim=d, track_running_stats=False, w_size=n, num_samples=2)
        return both(lambda: w_mse_loss(z1, z2, sub_batch=n), lambda: w_mse(torch.cat([z1, z2])))
    if method == "swav":
        swav = theirs.SwaVLoss(sinkhorn_epsilon=0.05)
        return both(
            lambda: swav_loss(*(normalize(z, dim=-1) for z in (z1, z2))),
            lambda: swav([normalize(z, dim=-1) for z in (z1, z2)], []),
        )
    if method == "dino":
        dino = theirs.DINOLoss(d, warmup_teacher_temp_epochs=0)
        centre = torch.zeros(d)
        return both(
            lambda: dino_loss(torch.stack([z1, z2]), torch.stack([p1, p2]), centre), lambda: dino([p1, p2], [z1, z2])
        )
    sigreg = SIGReg(num_vectors=SLICES)
    return both(lambda: sigreg_loss(z1, slices=SLICES), lambda: sigreg(z1))


def peak(method: str, n: int, d: int, name: str, answer: Any) -> None:
    """MiB by which one value and gradient raise the peak of this process."""
    pair(method, 64, 16)[name]()  # loads what the first call loads
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
    for method, n, d in QUICK if arguments.quick else CASES:
        seconds = take_turns(pair(method, n, d), rounds=2 if arguments.quick else ROUNDS)
        other = seconds.get("lightly", [])
        ratios = spread([b / max(a, 1e-9) for a, b in zip(seconds["ours"], other, strict=True)]) if other else None
        memory = {}
        for name in seconds:
            answer = context.Queue()
            process = context.Process(target=peak, args=(method, n, d, name, answer))  # type: ignore[attr-defined]
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"The memory of {method} ({name}) was not measured; see the message above.")
            memory[name] = answer.get()
        rows.append({
            "method": method, "n": n, "d": d, "ratio": ratios, "mib": memory,
            "seconds": {name: spread(values) for name, values in seconds.items()},
        })  # fmt: skip
        times = {name: f"{1000 * rows[-1]['seconds'][name]['median']:.3g}" for name in seconds}
        table.add_row(
            method, f"{n}, {d}", times["ours"], times.get("lightly", ""), f"{ratios['median']:.3g}" if ratios else "",
            *(f"{memory[name]:.3g}" if name in memory else "" for name in ("ours", "lightly")),
        )  # fmt: skip
    versions = {"lightly": importlib.metadata.version("lightly")}
    save(arguments.out, {"unit": "CPU seconds", "rows": rows}, versions=versions)
    Console().print(table)


if __name__ == "__main__":
    main()
