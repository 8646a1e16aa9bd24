"""Centred rows whose fourth powers neither overflow nor vanish, and exactly zero for features that are constant."""

import torch
from torch import Tensor

from matrix_ssl.matrix import validation


def scaled_rows(x: Tensor, name: str, validate: bool | None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Rows about their mean over the largest element of each matrix (..., n, d), in full precision or ``dtype``.

    Elements of less than 16 ε of the largest of x, all that the mean of equal rows leaves, count as zero together.
    """
    full = validation.checked_matrix(x, name, validate)
    full = full if dtype is None else full.to(dtype)
    rows = full - full.mean(-2, keepdim=True)
    largest = rows.detach().abs().amax((-2, -1), keepdim=True)
    constant = largest <= 16 * torch.finfo(full.dtype).eps * full.detach().abs().amax((-2, -1), keepdim=True)
    return torch.where(constant, 0.0, rows / torch.where(constant, 1.0, largest))
