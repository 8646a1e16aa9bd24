"""Speed of entropies, divergences and ranks beside ``torch.linalg`` used as the formulas stand, in CPU seconds.

    python -m benchmarks.speed.entropies           (writes benchmarks/results/entropies.json)
    python -m benchmarks.speed.entropies --quick   (tiny sizes)

Features (n, d) in float32, one thread, value and gradient in the features, the forms of every quantity taking turns.
``naive`` builds the d x d covariance and decomposes it by ``eigh`` (RankMe by ``svdvals``, kernels n x n by ``eigh``);
its divergences multiply logarithms of matrices and differentiate ``eigh``. ``matrix`` is
``matrix_ssl.matrix``, of the covariance or kernel where the quantity is one of these; its divergences compute in
float64. ``features`` is ``matrix_ssl.matrix.of_features``. Errors are relative, of value and gradient, to ``matrix``
in float64; null where a gradient is NaN, as that of the naive divergences is where eigenvalues coincide.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import command_line, save, spread, take_turns
from matrix_ssl import matrix
from matrix_ssl.matrix import covariance, of_features

SIZES = ((256, 1024), (1024, 512), (512, 512), (4096, 256))
LARGEST_KERNEL = 512  # a kernel is n x n; a larger one takes minutes
RIDGE = 0.01
Form = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    options = command_line(__doc__, "entropies.json").parse_args()
    rows = []
    for n, d in ((24, 40), (40, 24)) if options.quick else SIZES:
        for name, forms in quantities().items():
            if name == "mutual information" and n > LARGEST_KERNEL:
                continue
            rows += measure(name, forms, n, d, rounds=2 if options.quick else 3)
    save(options.out, {"unit": "CPU seconds, one thread", "ridge": RIDGE, "rows": rows})
    Console().print(table(rows))


def quantities() -> dict[str, dict[str, Form]]:
    """The forms of every quantity, as functions of two sets of features; most ignore the second."""
    return {
        "von Neumann entropy": {
            "naive": lambda x, y: naive_entropy(shifted(x)),
            "matrix": lambda x, y: matrix.von_neumann_entropy(covariance(x), ridge=RIDGE),
            "features": lambda x, y: of_features.von_neumann_entropy(x, ridge=RIDGE),
        },
        "Rényi entropy of order 2": {
            "naive": lambda x, y: naive_collision_entropy(shifted(x)),
            "matrix": lambda x, y: matrix.renyi_entropy(covariance(x), alpha=2, ridge=RIDGE),
            "features": lambda x, y: of_features.renyi_entropy(x, alpha=2, ridge=RIDGE),
        },
        "matrix KL": {
            "naive": lambda x, y: naive_kl(shifted(x), shifted(y)),
            "matrix": lambda x, y: matrix.matrix_kl(covariance(x), covariance(y), ridge=RIDGE),
            "features": lambda x, y: of_features.matrix_kl(x, y, ridge=RIDGE),
        },
        "matrix cross-entropy": {
            "naive": lambda x, y: naive_cross_entropy(shifted(x), shifted(y)),
            "matrix": lambda x, y: matrix.matrix_cross_entropy(covariance(x), covariance(y), ridge=RIDGE),
            "features": lambda x, y: of_features.matrix_cross_entropy(x, y, ridge=RIDGE),
        },
        "log det": {
            "naive": lambda x, y: torch.logdet(shifted(x)),
            "matrix": lambda x, y: matrix.log_det(covariance(x), ridge=RIDGE),
            "features": lambda x, y: of_features.log_det(x, ridge=RIDGE),
        },
        "coding rate": {
            "naive": lambda x, y: torch.logdet(identity(x) + x.shape[1] / (len(x) * 0.25) * (x.mT @ x)) / 2,
            "matrix": lambda x, y: matrix.coding_rate(x),
        },
        "RankMe": {
            "naive": lambda x, y: entropy_of(torch.linalg.svdvals(x)).exp(),
            "matrix": lambda x, y: matrix.effective_rank(x),
        },
        "mutual information": {
            "naive": naive_mutual_information,
            "matrix": lambda x, y: matrix.mutual_information(kernel(x), kernel(y)),
            "features": lambda x, y: of_features.mutual_information(x, y),
        },
    }


def measure(name: str, forms: dict[str, Form], n: int, d: int, *, rounds: int) -> list[dict[str, Any]]:
    """Times and errors of the forms of one quantity."""
    x, y = features(n, d, 0), features(n, d, 1)

    def call(form: Form, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        first = x.to(dtype).detach().requires_grad_()
        value = form(first, y.to(dtype))
        return value.detach(), torch.autograd.grad(value, first)[0]

    value, gradient = call(forms["matrix"], torch.float64)
    seconds = take_turns({key: lambda form=form: call(form) for key, form in forms.items()}, rounds=rounds)
    found = []
    for key, form in forms.items():
        ours, slope = call(form)
        error = ((slope - gradient).norm() / gradient.norm()).item()
        ratios = [a / b for a, b in zip(seconds["naive"], seconds[key], strict=True)]
        found.append({
            "quantity": name, "form": key, "n": n, "d": d, "seconds": spread(seconds[key]),
            "times_faster": spread(ratios),
            "error": abs(ours.item() - value.item()) / abs(value.item()),
            "gradient_error": error if math.isfinite(error) else None,
        })  # fmt: skip
    return found


def features(n: int, d: int, seed: int) -> Tensor:
    """Correlated random features whose spectrum decays by a factor of 400."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(2)) / d**0.5
    return (torch.randn(n, d, generator=generator) * torch.exp(-3 * torch.arange(d) / d)) @ mixing


def identity(x: Tensor) -> Tensor:
    return torch.eye(x.shape[1], dtype=x.dtype)


def shifted(x: Tensor) -> Tensor:
    return torch.cov(x.mT, correction=0) + RIDGE * identity(x)


def kernel(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    return unit @ unit.mT


def entropy_of(weights: Tensor) -> Tensor:
    p = weights.clamp_min(1e-12) / weights.sum()
    return -(p * p.log()).sum()


def naive_entropy(a: Tensor) -> Tensor:
    return entropy_of(torch.linalg.eigh(a)[0])


def naive_collision_entropy(a: Tensor) -> Tensor:
    p = torch.linalg.eigh(a)[0] / a.trace()
    return -p.square().sum().log()


def naive_log(a: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(a)
    return vectors @ torch.diag(eigenvalues.log()) @ vectors.mT


def naive_cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    return torch.trace(q - p @ naive_log(q))


def naive_kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.trace(p @ naive_log(p) - p @ naive_log(q) - p + q)


def naive_mutual_information(x: Tensor, y: Tensor) -> Tensor:
    k1, k2 = kernel(x), kernel(y)
    return naive_entropy(k1) + naive_entropy(k2) - naive_entropy(k1 * k2)


def table(rows: list[dict[str, Any]]) -> Table:
    out = Table("quantity", "n, d", "form", "CPU ms", "times faster", "error", "gradient error")
    for row in rows:
        ratio = "" if row["form"] == "naive" else f"{row['times_faster']['median']:.1f}"
        out.add_row(
            row["quantity"], f"{row['n']}, {row['d']}", row["form"], f"{1e3 * row['seconds']['median']:.1f}", ratio,
            f"{row['error']:.0e}", "NaN" if row["gradient_error"] is None else f"{row['gradient_error']:.0e}",
        )  # fmt: skip
    return out


if __name__ == "__main__":
    main()
