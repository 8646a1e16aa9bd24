"""log |det(I + X)| with its gradient from one LU factorisation."""

import torch
from torch import Tensor


def log_det_one_plus(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log |det(I + X)|, its gradient (I + X)⁻ᵀ, and whether the determinant is negative (0 or 1).

    No error is raised for a singular matrix, whose logarithm is -inf: checking would stop a GPU's queue.
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
