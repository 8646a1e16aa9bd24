"""Entropies of the eigenvalues (..., d) of a positive semi-definite matrix, in any order, and how zeros are treated.

Rounding turns a zero eigenvalue into a small one of either sign, in measurements by up to 0.3 ε √d of the largest.
Eigenvalues below ``zero_level``, 2 ε √d of the largest, count as zero: they contribute no gradient where it would be
infinite at zero, and nothing at all to entropies of orders below 1; other values use every eigenvalue above zero.
zero.
"""

import math

import torch
from torch import Tensor


def zero_level(x: Tensor, ridge: float = 0.0, *, d: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """2 ε √d of the largest of x (..., d), below which a value counts as zero, (..., 1); 0 with a ridge."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    units = 0.0 if ridge > 0 else 2 * math.sqrt(x.shape[-1] if d is None else d)
    return units * torch.finfo(dtype or x.dtype).eps * largest


def matrix_entropy(eigenvalues: Tensor, ridge: float, dtype: torch.dtype | None = None) -> Tensor:
    """Σ -λ log λ + λ over λ = eigenvalue + ridge; ``dtype`` as in ``zero_level``."""
    shifted = without_gradient_at_zero(eigenvalues + ridge, ridge, dtype)
    return (torch.special.entr(shifted) + shifted).sum(-1)


def shannon_entropy(eigenvalues: Tensor, ridge: float = 0.0) -> Tensor:
    """-Σ p log p of p = (eigenvalue + ridge) / their sum; zero if all are zero."""
    scaled = _over_the_largest(without_gradient_at_zero(eigenvalues + ridge, ridge))
    return entropy_of_shares(scaled / scaled.sum(-1, keepdim=True))


def entropy_of_shares(p: Tensor) -> Tensor:
    """-Σ p log p; a zero has no gradient, since infinity times zero would reach the sum in p."""
    return torch.special.entr(torch.where(p > 0, p, 0.0)).sum(-1)


def renyi_entropy(eigenvalues: Tensor, alpha: float, ridge: float = 0.0) -> Tensor:
    """log(Σ p^alpha) / (1 - alpha) of p = (eigenvalue + ridge) / their sum; zero if all are zero."""
    if alpha == 1:
        return shannon_entropy(eigenvalues, ridge)
    shifted = eigenvalues + ridge
    if alpha == 0:
        return (shifted > zero_level(shifted, ridge)).sum(-1).clamp_min(1).to(shifted.dtype).log()
    # below order 1 a power would amplify rounding, (1e-16)^0.3 = 2e-5; above it, the derivative at zero is finite: kept
    above_zero = torch.where(shifted > zero_level(shifted, ridge), shifted, 0.0)
    not_negative = shifted + (shifted.clamp_min(0) - shifted).detach()  # with the gradient of ``shifted``
    scaled = _over_the_largest(above_zero if alpha < 1 else not_negative)
    total = scaled.sum(-1, keepdim=True)
    if alpha == math.inf:
        return total.squeeze(-1).log() - scaled.amax(-1).log()
    if abs(alpha - 1) < 0.25:
        return torch.log1p(_power_minus_identity(scaled / total, alpha).sum(-1)) / (1 - alpha)
    return (scaled.pow(alpha).sum(-1).log() - alpha * total.squeeze(-1).log()) / (1 - alpha)


def _power_minus_identity(p: Tensor, alpha: float) -> Tensor:
    """p^alpha - p without cancellation near alpha = 1: Σ p = 1 turns the sum of these into Σ p^alpha - 1."""
    safe = torch.where(p > 0, p, 1.0)
    return torch.where(p > 0, safe * torch.expm1((alpha - 1) * safe.log()), -p)


def without_gradient_at_zero(x: Tensor, ridge: float, dtype: torch.dtype | None = None) -> Tensor:
    """max(x, 0) with the gradient of x above the zero level and none below it."""
    return torch.where(x > zero_level(x, ridge, dtype=dtype), x, x.detach().clamp_min(0))


def _over_the_largest(x: Tensor) -> Tensor:
    """``x`` over its largest element, a constant, so that powers neither overflow nor vanish; (1, 0, ...) for zeros."""
    largest = x.detach().amax(-1, keepdim=True)
    first = (torch.arange(x.shape[-1], device=x.device) == 0).to(x.dtype)
    return torch.where(largest > 0, x / torch.where(largest > 0, largest, 1.0), first)
