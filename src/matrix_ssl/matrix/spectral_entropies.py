"""Entropies of all orders of the eigenvalues λ + ridge of a symmetric matrix, for matrices and features alike.

Matrices are symmetric and unchecked, and functions of them also return the eigenvalues, for the check. ``zeros`` is the
number of additional zero eigenvalues of the larger matrix that a matrix stands for.
"""

import math

import torch
from torch import Tensor

from matrix_ssl.matrix._eigenvalues import zero_level
from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.matrix.spectral_sums import eigenvalues_of, near_one, spectral_sums


def matrix_entropy_of(a: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Σ -λ log λ + λ."""
    power, total, eigenvalues = spectral_sums(a, 1.0, ridge, scaled=False)
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
    power, total, eigenvalues = spectral_sums(a, order, ridge, zeros=zeros)
    if order == 1:
        return power / _not_zero(total) + _log(total), eigenvalues
    if near_one(order):
        return torch.log1p((1 - order) * power / _not_zero(total)) / (1 - order) + _log(total), eigenvalues
    return (_log(power) - order * _log(total)) / (1 - order), eigenvalues


def tsallis_from_renyi(renyi: Tensor, order: float) -> Tensor:
    """(exp((1 - order) · renyi) - 1) / (1 - order), the Tsallis entropy of the same order."""
    return renyi if order == 1 else torch.expm1((1 - order) * renyi) / (1 - order)


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
