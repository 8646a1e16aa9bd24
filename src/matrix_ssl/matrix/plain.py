"""Products and eigenvalues that nobody differentiates, by NumPy, whose BLAS computes half of a symmetric product.

Its eigenvalues are those of float64, in half of the time of PyTorch's from 500 columns on; those of float32 are left to
PyTorch, since NumPy converts them to float64.

A tensor is plain if it is on the CPU, in float32 or float64, and neither autograd, ``torch.func`` nor ``torch.compile``
follows what becomes of it. For all others the functions are those of PyTorch, with the same values up to rounding.
"""

import numpy as np
import torch
from torch import Tensor

from matrix_ssl.matrix.precision import without_autocast
from matrix_ssl.matrix.transforms import is_transformed


def is_plain(x: Tensor) -> bool:
    """Whether NumPy may compute with a tensor."""
    if torch.compiler.is_compiling() or is_transformed(x) or x.device.type != "cpu":
        return False
    followed = torch.is_grad_enabled() and x.requires_grad
    followed |= torch.autograd.forward_ad.unpack_dual(x).tangent is not None
    return not followed and x.dtype in (torch.float32, torch.float64)


def product(rows: Tensor) -> Tensor:
    """BᵀB of rows B (..., n, d)."""
    if is_plain(rows):
        b = rows.detach().numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # infinite values are the caller's to see
            return torch.from_numpy(np.matmul(b.swapaxes(-1, -2), b))
    with without_autocast(rows):
        return rows.mT @ rows


def smaller_product(rows: Tensor) -> Tensor:
    """BᵀB or BBᵀ of rows B (..., n, d), whichever is smaller."""
    return product(rows if rows.shape[-1] <= rows.shape[-2] else rows.mT)


def eigenvalues(a: Tensor) -> Tensor:
    """Eigenvalues (..., d) of a symmetric matrix in ascending order, without gradient."""
    if a.dtype == torch.float64 and is_plain(a):
        try:
            return torch.from_numpy(np.linalg.eigvalsh(a.detach().numpy()))
        except np.linalg.LinAlgError as error:
            raise torch.linalg.LinAlgError(str(error)) from error
    with without_autocast(a):
        return torch.linalg.eigvalsh(a.detach())
