"""The forms and algorithms of the Matrix-SSL loss that are compared, each for one order (teacher p, student z)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import published
from benchmarks.speed.spectra import outputs
from matrix_ssl.losses import Objective, matrix_ssl_order_terms
from matrix_ssl.losses.objective import Algorithm

SPECTRA = {"flat": "flat", "mid-training": "1/k", "collapsing": "1/k²"}
HEADLINE = "mid-training"
ALGORITHMS: tuple[Algorithm, ...] = ("auto", "eigh", "quadrature", "polynomial")
ORDER = 4


def losses(p: Tensor, z: Tensor, ridge: float) -> dict[str, Callable[[], Tensor]]:
    """The value of one order by every variant that has one."""
    settings: dict[str, Any] = {"ridge": ridge, "uniformity_weight": ridge}  # equal, as in the published code

    def ours(**options: Any) -> Tensor:
        return matrix_ssl_order_terms(p, z, objective=Objective(**settings, **options)).loss

    return {
        "published": lambda: published.order_loss(p, z, order=ORDER, **settings),
        **{f"exact, {name}": functools.partial(ours, algorithm=name) for name in ALGORITHMS},
        "taylor": functools.partial(ours, logarithm="taylor", order=ORDER),
    }


def calls(p: Tensor, z: Tensor, ridge: float) -> dict[str, Callable[[], object]]:
    """Value and gradient by every variant, and the floor."""

    def with_gradient(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), z)

    found = {name: with_gradient(loss) for name, loss in losses(p, z, ridge).items()}
    return {**found, "products": products(p, z.detach())}


def products(p: Tensor, z: Tensor) -> Callable[[], object]:
    """[H K] = B [A; B]ᵀ and [cA cB] [A; B] on the smaller side, with numbers of the same shapes."""
    a, b = (p.mT.contiguous(), z.mT.contiguous()) if len(z) > z.shape[1] else (p, z)
    both, weights = torch.cat([a, b]), torch.rand(len(b), 2 * len(b))
    return lambda: (b @ both.mT, weights @ both)


def case_inputs(n: int, d: int, spectrum: str = HEADLINE) -> tuple[Tensor, Tensor]:
    """Teacher and student outputs of a case; the student asks for a gradient."""
    p, z = outputs(SPECTRA[spectrum], n, d, seed=0)
    return p, z.requires_grad_()
