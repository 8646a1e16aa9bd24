"""Both spectra of features, about the mean and about the origin, from one singular value decomposition.

With x - mean = U S Vᵀ and z = √n V mean, xᵀx = V (S² + z zᵀ) Vᵀ: the singular values of x are those of diag(S) with the
row z below it. Each lies between two neighbouring values of S, the largest at most √n ‖mean‖ above the last, where

    1 + Σⱼ zⱼ² / (Sⱼ² - σ²)

has its only zero, which bisection finds. Directions missing from V, where n ≤ d, belong to a zero of S.

Reference: Golub, "Some modified matrix eigenvalue problems", SIAM Review 15(2), 1973, section 5.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 60  # of the bisection: rounding is reached after 53


class Spectra(NamedTuple):
    """What all ranks except the self-cluster score and LiDAR are functions of, each up to a constant.

    Attributes:
        eigenvalues: (k,) of the covariance, in ascending order.
        singular_values: (k,) of the features, in ascending order.
    """

    eigenvalues: Tensor
    singular_values: Tensor


def both_spectra(rows: Tensor) -> Spectra:
    """The spectra of rows (n, d) in float64, k = min(n, d), without gradient; eigenvalues are those times n."""
    n, d = rows.shape
    mean = rows.mean(0)
    centred = rows - mean
    if n > d:
        centred = torch.linalg.qr(centred, mode="r").R
    _, values, v = torch.linalg.svd(centred, full_matrices=False)
    along = v @ mean
    if n <= d:  # the last value is zero, and its direction arbitrary
        along[-1] = torch.hypot(along[-1], torch.linalg.vector_norm(mean - v.mT @ along))
    values, along = values.flip(0), math.sqrt(n) * along.flip(0)
    return Spectra(values.square(), with_a_row(values, along))


def with_a_row(values: Tensor, row: Tensor) -> Tensor:
    """Singular values (k,), ascending, of diag(values) with one more row (k,); ``values`` are ascending, too."""
    below, weights = values.unsqueeze(1), row.square()
    distances = (values - below) * (values + below)  # Sⱼ² - Sᵢ², to the last digit
    room = torch.cat([distances.diagonal(1), weights.sum().unsqueeze(0)])
    low, high = torch.zeros_like(values), room.sqrt()  # of t, σᵢ² = Sᵢ² + t²
    terms = torch.empty_like(distances)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        torch.sub(distances, middle.square().unsqueeze(1), out=terms)
        beyond = torch.div(weights, terms, out=terms).sum(1) > -1
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return torch.hypot(values, (low + high) / 2)
