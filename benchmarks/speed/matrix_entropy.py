"""The matrix entropy loss beside SimCLR's and Matrix-SSL's: CPU seconds of value and gradient, and rounding.

    python -m benchmarks.speed.matrix_entropy            (writes benchmarks/results/matrix_entropy.json; some minutes)
    python -m benchmarks.speed.matrix_entropy --quick    (tiny sizes)

All take turns in one process, float32, one thread, on outputs whose columns have variances of 1/k; a ratio is of two
times of the same round. SimCLR and the matrix entropy have gradients by both views, Matrix-SSL by both students, whose
teachers are constants. Errors are those of the float32 gradient, relative, against float64, on several spectra.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import command_line, save, spread, take_turns
from benchmarks.speed.spectra import SPECTRA, outputs
from matrix_ssl.losses import density, matrix_entropy_loss, matrix_ssl_loss
from matrix_ssl.methods.simclr import simclr_loss

CASES = ((256, 2048, 15), (1024, 2048, 7), (4096, 2048, 3))  # n, d, rounds
ERRORS = ((256, 2048), (512, 512), (1024, 256))
VARIANTS = {"order 1": {}, "order 2": {"order": 2.0}, "kernel": {"width": 0.5, "alignment_weight": 2.0}}
OTHERS = ("SimCLR", "Matrix-SSL")


def calls(n: int, d: int) -> dict[str, Callable[[], object]]:
    """Value and gradient by each loss, on the same outputs."""
    z1, z2 = (x.requires_grad_() for x in outputs("1/k", n, d, seed=0))
    p1, p2 = outputs("1/k", n, d, seed=0)
    losses: dict[str, Callable[[], Tensor]] = {
        name: functools.partial(matrix_entropy_loss, z1, z2, **settings) for name, settings in VARIANTS.items()
    }
    losses["SimCLR"] = functools.partial(simclr_loss, z1, z2)
    losses["Matrix-SSL"] = functools.partial(matrix_ssl_loss, z1, z2, p1, p2)

    def gradient(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), (z1, z2))

    return {name: gradient(loss) for name, loss in losses.items()}


def measure(n: int, d: int, rounds: int) -> dict[str, Any]:
    """Times of all losses, and how many times as fast each variant is as the others."""
    seconds = take_turns(calls(n, d), rounds=rounds)
    ratios = {
        name: {
            other: spread([b / max(a, 1e-9) for a, b in zip(seconds[name], seconds[other], strict=True)])
            for other in OTHERS
        }
        for name in VARIANTS
    }
    return {"n": n, "d": d, "seconds": {name: spread(values) for name, values in seconds.items()}, "ratios": ratios}


def error(n: int, d: int, spectrum: str, algorithm: density.Algorithm) -> float:
    """Relative error of the float32 gradient of the entropy of one view, by rows."""
    rows = torch.nn.functional.normalize(outputs(spectrum, n, d, seed=0, dtype=torch.float64)[1])

    def gradient(z: Tensor, chosen: density.Algorithm) -> Tensor:
        small = z @ z.mT if n < d else z.mT @ z
        _, slope = density.entropy(small / n, 1.0, chosen)
        by_rows = slope @ z if n < d else z @ slope
        return by_rows.double() - (by_rows * z).sum(1, keepdim=True).double() * z.double()

    exact = gradient(rows, "eigh")
    return ((gradient(rows.float(), algorithm) - exact).norm() / exact.norm()).item()


def main() -> None:
    arguments = command_line(__doc__, "matrix_entropy.json").parse_args()
    cases, sizes = (((12, 24, 2), (24, 12, 2)), ((12, 24),)) if arguments.quick else (CASES, ERRORS)
    rows = [measure(*case) for case in cases]
    errors = [
        {"n": n, "d": d, "spectrum": spectrum, "algorithm": algorithm, "error": error(n, d, spectrum, algorithm)}
        for n, d in sizes for spectrum in SPECTRA for algorithm in ("eigh", "resolvents")
    ]  # fmt: skip
    content = {"unit": "CPU seconds", "quick": arguments.quick, "rows": rows, "errors": errors}
    save(arguments.out, content)
    table = Table("n, d", *(f"{name}, ms" for name in rows[0]["seconds"]), *(f"order 1 : {name}" for name in OTHERS))
    for row in rows:
        times = [f"{1000 * value['median']:.3g}" for value in row["seconds"].values()]
        table.add_row(
            f"{row['n']}, {row['d']}", *times, *(f"{row['ratios']['order 1'][o]['median']:.2g}" for o in OTHERS)
        )
    Console().print(table)


if __name__ == "__main__":
    main()
