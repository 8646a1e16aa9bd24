"""Where the gradient of the Taylor series goes wrong: against the exact gradient, spectrum by spectrum, ridge by ridge.

    python -m benchmarks.experiments.taylor_gradients   (half a minute; writes results/taylor_gradients.json)

For each term of the loss apart, the gradient in the student's raw outputs z with log cut after ``order`` terms is
compared with the exact one, in float64: relative error ‖g - exact‖ / ‖exact‖ and cosine, mean and extremes over seeds.
Spectra are those of the outputs' covariance before rows get unit length (``spectra.py``).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.harness import command_line, save
from benchmarks.speed.spectra import SPECTRA, outputs
from matrix_ssl.losses import Objective, matrix_ssl_order_terms

TERMS: dict[str, dict[str, Any]] = {
    "uniformity": {"uniformity_weight": 1.0, "alignment_weight": 0.0},
    "alignment": {"uniformity_weight": 0.0, "alignment_weight": 1.0},
}


class Grid(NamedTuple):
    """What is compared."""

    n: int = 256
    d: int = 64
    seeds: int = 5
    spectra: tuple[str, ...] = SPECTRA
    ridges: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
    orders: tuple[int, ...] = (1, 2, 4, 8, 16)


def main() -> None:
    arguments = command_line(__doc__, "taylor_gradients.json").parse_args()
    grid = Grid(n=24, d=6, seeds=2, ridges=(0.1, 1.0), orders=(1, 4)) if arguments.quick else Grid()
    rows = [
        compare(term, spectrum, ridge, grid) for term in TERMS for spectrum in grid.spectra for ridge in grid.ridges
    ]
    save(arguments.out, {**grid._asdict(), "rows": rows})
    table = Table("term", "spectrum", "ridge", "order", "relative error", "cosine")
    for row in rows:
        if "4" in row["orders"]:
            error, cosine = (row["orders"]["4"][key]["mean"] for key in ("error", "cosine"))
            table.add_row(row["term"], row["spectrum"], f"{row['ridge']:g}", "4", f"{error:.3g}", f"{cosine:.3f}")
    Console().print(table)


def compare(term: str, spectrum: str, ridge: float, grid: Grid) -> dict[str, Any]:
    """Relative error and cosine of every order, over the seeds."""
    errors: dict[int, list[float]] = {order: [] for order in grid.orders}
    cosines: dict[int, list[float]] = {order: [] for order in grid.orders}
    for seed in range(grid.seeds):
        p, z = outputs(spectrum, grid.n, grid.d, seed=seed, dtype=torch.float64)
        exact = gradient(term, p, z, ridge=ridge)
        for order in grid.orders:
            series = gradient(term, p, z, ridge=ridge, logarithm="taylor", order=order)
            errors[order].append(((series - exact).norm() / exact.norm()).item())
            cosines[order].append(torch.cosine_similarity(series.flatten(), exact.flatten(), dim=0).item())
    orders = {str(k): {"error": over_seeds(errors[k]), "cosine": over_seeds(cosines[k])} for k in grid.orders}
    return {"term": term, "spectrum": spectrum, "ridge": ridge, "orders": orders}


def gradient(term: str, p: Tensor, z: Tensor, **settings: Any) -> Tensor:
    """Gradient of one term in the student's raw outputs."""
    z = z.clone().requires_grad_()
    return torch.autograd.grad(matrix_ssl_order_terms(p, z, objective=Objective(**TERMS[term], **settings)).loss, z)[0]


def over_seeds(values: list[float]) -> dict[str, float]:
    """Mean and extremes, to four digits."""
    found = {"mean": float(np.mean(values)), "least": min(values), "most": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


if __name__ == "__main__":
    main()
