"""Polynomials that replace the logarithm: Taylor's, as published, and Chebyshev's, whose degree follows from a bound.

A ``LogSeries`` approximates log(x + ridge) on x ≥ 0 by ``at_zero`` + φ(y), y = scale·x + shift, where φ is a polynomial
with φ = 0 at x = 0, given by its coefficients in Chebyshev polynomials T_k(y). Powers of y would work only for a few
terms, since their coefficients grow like 2.4 to the power of the degree.
"""

import functools
import math
from typing import NamedTuple

import torch
from numpy.polynomial import chebyshev, polynomial
from torch import Tensor

from matrix_ssl.losses.logarithm import Form
from matrix_ssl.losses.logarithm.trace import Coefficients, taylor_coefficients
from matrix_ssl.losses.rows import add_symmetric_product


class LogSeries(NamedTuple):
    """log(x + ridge) ≈ at_zero + Σ coefficients_k T_k(scale·x + shift)."""

    scale: float
    shift: float
    coefficients: Coefficients
    at_zero: float

    def over_x(self) -> Coefficients:
        """Coefficients of ψ = φ / x."""
        return tuple(self.scale * c for c in _divide(self.coefficients, self.shift))


@functools.lru_cache(maxsize=256)
def taylor(ridge: float, order: int) -> LogSeries:
    """The first ``order`` terms of the series about I, Σ (-1)^(k+1) (x + ridge - 1)ᵏ / k."""
    at_zero = float(polynomial.polyval(ridge - 1, taylor_coefficients(order)))
    constant, *others = chebyshev.poly2cheb(taylor_coefficients(order)).tolist()
    return LogSeries(1.0, ridge - 1, (constant - at_zero, *others), at_zero)


@functools.lru_cache(maxsize=256)
def chebyshev_log(ridge: float, largest: float, degree: int) -> LogSeries:
    """φ(x) = ∫₀ˣ q, where q is the best approximation of 1/(x + ridge) on [0, largest] in the sense of relative error.

    With y in [-1, 1] for x in [0, largest] and the pole at y = -a, that error is 1 - (x + ridge) q(x) = T_m(y)/T_m(-a)
    for φ of degree m: no other polynomial that is one at the pole stays smaller. The gradient of tr[W log X] consists
    of divided differences of the logarithm, means of its derivative, so each has a relative error of no more.
    """
    a = 1 + 2 * ridge / largest
    one_minus_error = (1.0, *[0.0] * (degree - 1), -((-1) ** degree) / math.cosh(degree * math.acosh(a)))
    q = [2 / largest * c for c in _divide(one_minus_error, -a)]
    phi = chebyshev.chebint(q, lbnd=-1, scl=largest / 2)
    return LogSeries(2 / largest, -1.0, tuple(phi.tolist()), math.log(ridge))


def chebyshev_degree(ridge: float, largest: float, tolerance: float) -> int:
    """The smallest degree at which the relative error of the derivative, 1 / T_m(a), is below ``tolerance``."""
    return max(1, math.ceil(math.acosh(1 / tolerance) / math.acosh(1 + 2 * ridge / largest)))


def _divide(coefficients: Coefficients, root: float) -> list[float]:
    """The quotient by y - root, where the series vanishes, from 2 y T_k = T_(k+1) + T_(k-1), the top first."""
    above, here, quotient = 0.0, 0.0, []
    for c in reversed(coefficients[2:]):
        above, here = here, 2 * c + 2 * root * here - above
        quotient.append(here)
    quotient.append(coefficients[1] + root * here - above / 2)
    return quotient[::-1]


def product_count(degree: int) -> float:
    """Cost of ``symmetric_polynomial`` in matrix products, a symmetric one counted as 0.6."""
    return _cost(degree, _step(degree))


def _step(degree: int) -> int:
    return min(range(1, max(2, degree + 1)), key=lambda step: _cost(degree, step))


def _cost(degree: int, step: int) -> float:
    basis = (step > 1) * 1.0 + max(0, step - 2) * 1.8  # the square is given
    return basis + max(0, -(-degree // step) - 1) * 1.8


def symmetric_polynomial(y: Tensor, square: Tensor, w: Tensor, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
    """p(Y) = Σ c_k T_k(Y) from Y and Y², which is overwritten, and its Fréchet derivative at Y in the direction W.

    With T_0 to T_s of Y at hand and Z = T_s(Y), the sum is Σ_b B_b(Y) T_b(Z), because T_b(T_s) = T_bs: one product per
    block instead of one per degree (Paterson and Stockmeyer, 1973). It is summed by Clenshaw's recurrence,
    U_b = B_b + 2 Z U_(b+1) - U_(b+2), and differentiated along the way.
    """
    step = _step(len(coefficients) - 1)
    matrices, derivatives = _chebyshev_matrices(y, square, w, step)
    *blocks, top = _blocks(coefficients, step)
    u, du = _add_block(torch.zeros_like(y), torch.zeros_like(y), top, matrices, derivatives)
    above, d_above = torch.zeros_like(y), torch.zeros_like(y)
    for b, block in reversed(list(enumerate(blocks))):
        factor = 2.0 if b else 1.0  # T_0 and T_1 are the start of the recurrence of the others
        above, d_above = _add_block(above.neg_(), d_above.neg_(), block, matrices, derivatives)  # in place: memory
        if b == len(blocks) - 1 and len(top) == 1:  # a number in front of the first block needs no product
            above.add_(matrices[-1], alpha=factor * top[0])
            d_above.add_(derivatives[-1], alpha=factor * top[0])
        else:
            add_symmetric_product(d_above, (du, matrices[-1]), (u, derivatives[-1]), alpha=factor)
            add_symmetric_product(above, (u, matrices[-1]), alpha=factor)
        u, du, above, d_above = above, d_above, u, du
    return u, du


def _chebyshev_matrices(y: Tensor, square: Tensor, w: Tensor, step: int) -> tuple[list[Tensor], list[Tensor]]:
    """T_1 to T_step of Y and their derivatives in the direction W; T_2 overwrites the square."""
    matrices, derivatives = [y], [w]
    if step > 1:
        square.mul_(2).diagonal().sub_(1)
        half = torch.mm(y, w)
        matrices.append(square)
        derivatives.append((half + half.mT).mul_(2))
    for _ in range(step - 2):
        derivative = derivatives[-2].clone()
        add_symmetric_product(derivative, (derivatives[-1], y), (matrices[-1], w), alpha=2, beta=-1)
        matrices.append(add_symmetric_product(matrices[-2].clone(), (matrices[-1], y), alpha=2, beta=-1))
        derivatives.append(derivative)
    return matrices, derivatives


def _blocks(coefficients: Coefficients, step: int) -> list[list[float]]:
    """Coefficients of T_i T_b(T_step) for i < step, one list a block, by 2 T_i T_bs = T_(bs+i) + T_(bs-i)."""
    c = list(coefficients)
    blocks = []
    for start in range((len(c) - 1) // step * step, 0, -step):
        for i, value in enumerate(c[start + 1 :], 1):
            c[start - i] -= value
        blocks.append([c[start], *(2 * value for value in c[start + 1 :])])
        del c[start:]
    return [c, *reversed(blocks)]


def _add_block(
    total: Tensor, derivative: Tensor, block: list[float], matrices: list[Tensor], derivatives: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Adds Σ block_i T_i and its derivative in place."""
    total.diagonal().add_(block[0])
    for c, matrix, d_matrix in zip(block[1:], matrices, derivatives, strict=False):
        total.add_(matrix, alpha=c)
        derivative.add_(d_matrix, alpha=c)
    return total, derivative


def function(a: Tensor, square: Tensor, direction: Tensor, series: LogSeries, form: Form) -> tuple[Tensor, Tensor]:
    """f(A) and its derivative in a direction, from A and A², which is overwritten."""
    scale, shift = series.scale, series.shift
    square.mul_(scale**2).add_(a, alpha=2 * scale * shift).diagonal().add_(shift**2)  # (scale·A + shift·I)²
    y = a * scale
    y.diagonal().add_(shift)
    coefficients = series.over_x() if form == "ratio" else series.coefficients
    value, derivative = symmetric_polynomial(y, square, direction, coefficients)
    return value, derivative.mul_(scale)
