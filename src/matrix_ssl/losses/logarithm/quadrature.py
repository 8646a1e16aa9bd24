"""The logarithm as a sum of resolvents at Gauss-Legendre nodes, with one Cholesky factorisation per node.

With c = √(ridge·(ridge + largest)), the geometric mean of the ends of the spectrum of X = K + ridge·I,

    log X - log c = ∫₀¹ (X - c)(c + t(X - c))⁻¹ dt,

and m Gauss-Legendre nodes give the [m/m] Padé approximant. Its error on a matrix never exceeds its error on a scalar at
the end of the spectrum (Kenney and Laub, 1989; Higham, "Functions of Matrices", 2008, theorem 11.6), so the number of
nodes follows from two scalars. On the smaller side, ψ(x) = log(1 + x/ridge)/x becomes Σ α_j (β_j + x)⁻¹.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from matrix_ssl.losses.logarithm import Form
from matrix_ssl.losses.rows import add_symmetric_product

_MOST_NODES = 200
Nodes = tuple[tuple[float, ...], tuple[float, ...]]  # weights and shifts: ψ(x) ≈ Σ weight / (shift + x)


@functools.lru_cache(maxsize=256)
def nodes(ridge: float, largest: float, count: int) -> Nodes:
    """Gauss-Legendre nodes of the integral above, for eigenvalues of K in [0, largest]."""
    s, w = np.polynomial.legendre.leggauss(count)
    t, w = (s + 1) / 2, w / 2
    c = math.sqrt(ridge * (ridge + largest))
    at_ridge = c + t * (ridge - c)
    return tuple((w * c / (t * at_ridge)).tolist()), tuple((at_ridge / t).tolist())


@functools.lru_cache(maxsize=256)
def node_count(ridge: float, largest: float, tolerance: float) -> int:
    """The smallest number of nodes at which the derivative's relative error is below ``tolerance``, or a ValueError.

    In u = (X - c)/(X + c) the logarithm and the sum are odd series with non-negative coefficients, and so is their
    difference E; the relative error of the derivative, X·dE/dX, is therefore largest at the ends of the spectrum.
    Rounding of the nodes limits it to 1e-14, and no more is required. A ridge below 1e-6 of the spectrum fails, and one
    below 1e-4 in float64.
    """
    x = np.array([0.0, largest])
    for count in range(1, _MOST_NODES):
        weights, shifts = (np.array(v)[:, None] for v in nodes(ridge, largest, count))
        slope = (weights * shifts / (shifts + x) ** 2).sum(0)  # of xψ(x)
        if float(np.abs(slope * (ridge + x) - 1).max()) <= max(tolerance, 1e-14):
            return count
    raise ValueError(f"ridge={ridge:g} is too small for quadrature: use algorithm='eigh' or a larger ridge.")


def function(a: Tensor, direction: Tensor, rule: Nodes, form: Form) -> tuple[Tensor, Tensor]:
    """f(A) and its derivative in a direction.

    With R = (β + A)⁻¹: ψ = Σ αR, and φ = Σ αAR, whose other form α(I - βR) would lose digits.
    """
    value, derivative = torch.zeros_like(a), torch.zeros_like(a)
    for weight, shift in zip(*rule, strict=True):
        shifted = a.clone()
        shifted.diagonal().add_(shift)
        resolvent = torch.cholesky_inverse(torch.linalg.cholesky_ex(shifted)[0])
        scale = -weight if form == "ratio" else weight * shift
        add_symmetric_product(derivative, (resolvent, resolvent @ direction), alpha=scale)
        if form == "ratio":
            value.add_(resolvent, alpha=weight)
        else:
            add_symmetric_product(value, (a, resolvent), alpha=weight)
    return value, derivative
