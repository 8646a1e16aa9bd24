"""Entropies of all orders of the eigenvalues of a symmetric matrix, with a ridge added to them.

``matrix_entropy_of`` and ``renyi_of`` take the matrix, symmetric and unchecked. They can be differentiated twice, and
also return the eigenvalues, for the check; ``zeros`` is the number of additional zero eigenvalues of the larger matrix
that a matrix stands for. All other functions take the eigenvalues (..., d), in any order.
"""

import math

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.matrix.spectra.eigenvalues import eigenvalues_of
from matrix_ssl.matrix.spectra.power_sums import near_one, power_sums
from matrix_ssl.matrix.spectra.zero_eigenvalues import without_gradient_at_zero, zero_level


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


def matrix_entropy_of(a: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Σ -λ log λ + λ."""
    power, total, eigenvalues = power_sums(a, 1.0, ridge, scaled=False)
    return power + total, eigenvalues


def renyi_of(a: Tensor, order: float, ridge: float = 0.0, *, zeros: int = 0) -> tuple[Tensor, Tensor]:
    """log(Σ p^order) / (1 - order) of p = λ over their sum; 0 if all are zero."""
    if order == 0:
        count, eigenvalues = _rank(a, ridge, zeros)
        return count.log(), eigenvalues
    if order == math.inf:
        eigenvalues = eigenvalues_of(a, used=1)
        x = eigenvalues + ridge
        total = x.clamp_min(0).sum(-1) + zeros * ridge
        return _log(total) - _log(x[..., -1].clamp_min(0)), eigenvalues.detach()
    power, total, eigenvalues = power_sums(a, order, ridge, zeros=zeros)
    if order == 1:
        return power / _not_zero(total) + _log(total), eigenvalues
    if near_one(order):
        return torch.log1p((1 - order) * power / _not_zero(total)) / (1 - order) + _log(total), eigenvalues
    return (_log(power) - order * _log(total)) / (1 - order), eigenvalues


def tsallis_from_renyi(renyi: Tensor, order: float) -> Tensor:
    """(exp((1 - order) · renyi) - 1) / (1 - order), the Tsallis entropy of the same order."""
    return renyi if order == 1 else torch.expm1((1 - order) * renyi) / (1 - order)


def _power_minus_identity(p: Tensor, alpha: float) -> Tensor:
    """p^alpha - p without cancellation near alpha = 1: Σ p = 1 turns the sum of these into Σ p^alpha - 1."""
    safe = torch.where(p > 0, p, 1.0)
    return torch.where(p > 0, safe * torch.expm1((alpha - 1) * safe.log()), -p)


def _over_the_largest(x: Tensor) -> Tensor:
    """``x`` over its largest element, a constant, so that powers neither overflow nor vanish; (1, 0, ...) for zeros."""
    largest = x.detach().amax(-1, keepdim=True)
    first = (torch.arange(x.shape[-1], device=x.device) == 0).to(x.dtype)
    return torch.where(largest > 0, x / torch.where(largest > 0, largest, 1.0), first)


def _rank(a: Tensor, ridge: float, zeros: int) -> tuple[Tensor, Tensor]:
    """The number of eigenvalues above zero, at least one, without gradient."""
    eigenvalues = linalg.eigenvalues(a)
    x = eigenvalues + ridge
    count = (x > zero_level(x, ridge)).sum(-1) + (zeros if ridge > 0 else 0)
    return count.clamp_min(1).to(a.dtype), eigenvalues


def _not_zero(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)


def _log(x: Tensor) -> Tensor:
    """log x, and 0 without gradient at zero."""
    return _not_zero(x).log()
