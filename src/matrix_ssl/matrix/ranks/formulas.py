"""Ranks as functions of a spectrum (..., m) in any order, eigenvalues of a covariance or singular values of features.

Zeros are treated as in ``spectra.zero_eigenvalues``; a spectrum of zeros has rank 1 if the rank is a ratio, and 0 if
it is a count.
"""

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics.scaling import rescaled


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """(Σ λ)² / Σ λ²."""
    eigenvalues = rescaled(eigenvalues, (-1,))
    return ratio(eigenvalues.sum(-1).square(), eigenvalues.square().sum(-1))


def stable_rank(squares: Tensor) -> Tensor:
    """Σ σ² / max σ², of the squares of singular values."""
    return ratio(squares.sum(-1), squares.amax(-1))


def count_above(values: Tensor, threshold: float) -> Tensor:
    """How many are above ``threshold`` times the largest."""
    return (values > threshold * values.amax(-1, keepdim=True)).sum(-1)


def count_of_share(eigenvalues: Tensor, share: float) -> Tensor:
    """How many of the largest make up at least ``share`` of the sum, up to rounding; 0 if all are zero."""
    descending = eigenvalues.sort(-1, descending=True).values
    cumulated = descending.cumsum(-1)
    target = share * (1 - 1e-12) * cumulated[..., -1:]
    return ((cumulated < target).sum(-1) + 1).where(cumulated[..., -1] > 0, 0)


def power_law(eigenvalues: Tensor, zero: Tensor, *, first: int, last: int) -> tuple[Tensor, Tensor]:
    """α of λ_r ∝ r^-α by least squares on log λ_r and log r with weights 1/r, and how many λ_r were fitted.

    r are the ranks ``first`` to ``last``, from 1, of those above ``zero`` (..., 1); with fewer than two α is NaN.
    """
    descending = eigenvalues.sort(-1, descending=True).values[..., first - 1 : last]
    r = torch.arange(first, first + descending.shape[-1], dtype=descending.dtype, device=descending.device)
    valid = descending > zero
    weights = valid / r
    total = weights.sum(-1, keepdim=True)
    x, y = r.log(), torch.where(valid, descending, 1.0).log()
    away = x - (weights * x).sum(-1, keepdim=True) / total
    return -(weights * away * y).sum(-1) / (weights * away.square()).sum(-1), valid.sum(-1)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 1 without a gradient where ``below`` is zero."""
    nonzero = below > 0
    return torch.where(nonzero, above, 1.0) / torch.where(nonzero, below, 1.0)
