"""The logarithm of a matrix whose spectrum has no known lower end, without eigenvalues: a sum of resolvents.

    log y = ∫₀^∞ (y - 1) / ((1 + t)(y + t)) dt,     t = a (sn u / cn u)²,   u in (0, K')

with elliptic functions of the complementary modulus 1 - a. In u the integrand is analytic, and Gauss-Legendre
quadrature of m nodes converges like exp(-4π m / log(16 / a)) for all y in [a, 1] (Hale, Higham and Trefethen, SIAM
Journal on Numerical Analysis 46(5), 2008, for the substitution): 16 to 20 nodes for the eigenvalues that float32 holds,
where ``quadrature`` would need more than a hundred.

Nothing here reads a value back, so no device has to wait.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from matrix_ssl.losses.logarithm.quadrature import Nodes

_MOST_NODES = 200
_LEAST_ERROR = 1e-12  # of a logarithm times the root of its argument, in float64


@functools.lru_cache(maxsize=64)
def nodes(floor: float, count: int) -> Nodes:
    """Weights w and shifts t with log y ≈ Σ w/(1 + t) - Σ w/(y + t) on [floor, 1], 0 < floor < ½."""
    period, other = _elliptic_integral(floor), _elliptic_integral(1 - floor)
    x, gauss = np.polynomial.legendre.leggauss(count)
    u = (x + 1) / 2 * period
    # sums over periods instead of scipy's functions, whose argument 1 - floor would lose the digits of the floor
    k = np.arange(-3, 4)[:, None]
    v = np.pi / (2 * other) * (u - 2 * k * period)
    factor = np.pi / (2 * other * (1 - floor) ** 0.5)
    sn, cn = (factor * ((-1.0) ** k * f).sum(0) for f in (np.tanh(v), 1 / np.cosh(v)))
    dn = np.pi / (2 * other) * (1 / np.cosh(v)).sum(0)
    slope = sn * dn / cn**3 * gauss * period
    return tuple((floor * slope).tolist()), tuple((floor * (sn / cn) ** 2).tolist())


@functools.lru_cache(maxsize=64)
def node_count(floor: float, tolerance: float) -> int:
    """The smallest number of nodes whose error, times √y, stays below ``tolerance`` on [floor, 1].

    √y is the weight with which a direction of eigenvalue y enters the gradient with respect to the rows.
    """
    y = np.geomspace(floor, 1, 600)
    for count in range(2, _MOST_NODES):
        weights, shifts = (np.array(v) for v in nodes(floor, count))
        values = (weights * (y[:, None] - 1) / ((1 + shifts) * (y[:, None] + shifts))).sum(1)
        if np.abs((values - np.log(y)) * np.sqrt(y)).max() <= tolerance:
            return count
    raise ValueError(f"No quadrature of fewer than {_MOST_NODES} nodes reaches {tolerance:g} above {floor:g}.")


def zero_level(m: int, dtype: torch.dtype) -> float:
    """2 ε √m, a bound on what rounding leaves of a zero eigenvalue of an m x m matrix, relative to the largest one."""
    return 2 * torch.finfo(dtype).eps * math.sqrt(m)


def logarithm(a: Tensor) -> Tensor:
    """log A of a symmetric positive semi-definite A whose largest eigenvalue is at most one, up to a smooth floor.

    The floor f, ``zero_level``, keeps every Cholesky factorisation positive definite. log(x + f) - f/(x + f) takes the
    place of log x: it differs by (f/x)²/2 above the floor and ends at log f - 1 below.
    """
    floor = zero_level(len(a), a.dtype)
    weights, shifts = nodes(floor, node_count(floor, max(8 * torch.finfo(a.dtype).eps, _LEAST_ERROR)))
    total = torch.zeros_like(a)
    for weight, shift in zip((floor, *weights), (0.0, *shifts), strict=True):
        shifted = a.clone()
        shifted.diagonal().add_(floor + shift)
        total.sub_(torch.cholesky_inverse(torch.linalg.cholesky_ex(shifted)[0]), alpha=weight)
    total.diagonal().add_(sum(w / (1 + t) for w, t in zip(weights, shifts, strict=True)))
    return total


def _elliptic_integral(complement: float) -> float:
    """The complete elliptic integral of the first kind K(m), m = 1 - complement, by the arithmetic-geometric mean.

    Reference: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, equation 17.6.3.
    """
    a, b = 1.0, complement**0.5
    while a - b > 4e-16 * a:
        a, b = (a + b) / 2, (a * b) ** 0.5
    return math.pi / (2 * a)
