"""tr log(I + X) of a square matrix that need not be symmetric, with its gradient: by LU, or a polynomial of X."""

import torch
from torch import Tensor

Coefficients = tuple[float, ...]


def log_det_one_plus(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log |det(I + X)|, its gradient (I + X)⁻ᵀ, and whether the determinant is negative (0 or 1).

    A singular matrix gives -inf instead of an error, since checking would stall a GPU's queue.
    """
    n = len(x)
    shifted = x.clone()
    shifted.diagonal().add_(1)
    factors, pivots, _ = torch.linalg.lu_factor_ex(shifted.mT)  # columns in a row, as LAPACK stores them
    diagonal = factors.diagonal()
    swaps = (pivots != torch.arange(1, n + 1, dtype=pivots.dtype, device=x.device)).sum()
    negative = (((diagonal < 0).sum() + swaps) % 2).to(x.dtype)
    identity = torch.eye(n, dtype=x.dtype, device=x.device)
    inverse = torch.linalg.lu_solve(factors, pivots, identity.mT, adjoint=True)
    return diagonal.abs().log().sum(), inverse.mT, negative


def taylor_coefficients(order: int) -> Coefficients:
    """The coefficients of log(1 + y) in powers of y, up to ``order``."""
    return 0.0, *((-1) ** (k + 1) / k for k in range(1, order + 1))


def trace_polynomial(x: Tensor, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
    """tr p(X) of any square matrix from coefficients of powers, and its gradient p'(X)ᵀ.

    Powers up to half the degree suffice, since traces of the others are inner products: two products at degree four.
    """
    degree = len(coefficients) - 1
    half = -(-degree // 2)
    powers = [x]
    for _ in range(half - 1):
        powers.append(powers[-1] @ x)
    value = torch.full((), coefficients[0] * len(x), dtype=x.dtype, device=x.device)
    for c, power in zip(coefficients[1:], powers, strict=False):
        value = value + c * power.trace()
    for k in range(half + 1, degree + 1):
        value = value + coefficients[k] * (powers[-1] * powers[k - half - 1].mT).sum()
    slopes = [k * c for k, c in enumerate(coefficients)][1:]
    gradient = _sum_of_powers(slopes[:half], powers)
    if degree > half:
        gradient.addmm_(powers[-1], _sum_of_powers(slopes[half:], powers))
    return value, gradient.mT


def _sum_of_powers(coefficients: list[float], powers: list[Tensor]) -> Tensor:
    total = powers[0] * (coefficients[1] if len(coefficients) > 1 else 0.0)
    for c, power in zip(coefficients[2:], powers[1:], strict=False):
        total.add_(power, alpha=c)
    total.diagonal().add_(coefficients[0])
    return total
