"""Centred rows whose fourth powers neither overflow nor vanish, and exactly zero for features that are constant."""

import torch
from torch import Tensor

from matrix_ssl.matrix import validation
from matrix_ssl.matrix.covariances import in_range, largest_element


def scaled_rows(x: Tensor, name: str, validate: bool | None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Rows about their mean up to a factor for each matrix (..., n, d), in full precision or ``dtype``.

    The factor is one, or one over the largest element where fourth powers could leave the range. Elements of less than
    16 ε of the largest of x, all that the mean of equal rows leaves, count as zero together.
    """
    full = validation.checked_matrix(x, name, validate)
    full = full if dtype is None else full.to(dtype)
    mean = full.mean(-2, keepdim=True)
    rows = full - mean
    largest, level = largest_element(rows), 16 * torch.finfo(full.dtype).eps
    if in_range(rows, largest) and (largest > level * (largest + largest_element(mean))).all():
        return rows
    constant = largest <= level * largest_element(full)
    return torch.where(constant, 0.0, rows / torch.where(constant, 1.0, largest))
