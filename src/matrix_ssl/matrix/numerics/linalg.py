"""Products and eigenvalues: outside autograd by NumPy, whose BLAS computes only half of a symmetric product.

It computes eigenvalues in float64, from 500 columns on in half the time that PyTorch takes. NumPy converts float32 to
float64, so large float32 matrices go to SciPy if that is installed, in two thirds of PyTorch's time.

A tensor is plain if it is on the CPU, in float32 or float64, and is tracked neither by autograd, nor by ``torch.func``,
nor by ``torch.compile``. For all others the functions are those of PyTorch, with the same values up to rounding.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matrix_ssl.matrix.numerics.autograd import is_transformed
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.numerics.scaling import deviations, rescaled

_ROWS = 1024  # rows converted to float64 at a time
_LARGE = 300  # number of columns from which SciPy's float32 eigenvalues are worth the import


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
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for infinite values
            return torch.from_numpy(np.matmul(b.swapaxes(-1, -2), b))
    with without_autocast(rows):
        return rows.mT @ rows


def smaller_product(rows: Tensor) -> Tensor:
    """BᵀB or BBᵀ of rows B (..., n, d), whichever is smaller."""
    return product(rows if rows.shape[-1] <= rows.shape[-2] else rows.mT)


def product_of_deviations(x: Tensor) -> Tensor:
    """BᵀB or BBᵀ of B = x - mean row in float64, whichever is smaller, of finite x (..., n, d); up to a factor.

    A long matrix of float32 is converted a block of rows at a time, since a copy of it costs more than the product.
    """
    if not is_plain(x) or x.dtype != torch.float32 or x.ndim > 2 or len(x) <= max(x.shape[1], _ROWS):
        return smaller_product(rescaled(deviations(x.double())))
    rows = x.detach().numpy()
    mean, total = rows.mean(0, dtype=np.float64), np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS] - mean
        total += block.T @ block
    return torch.from_numpy(total)


def eigenvalues(a: Tensor) -> Tensor:
    """Eigenvalues (..., d) of a symmetric matrix in ascending order, without gradient."""
    if is_plain(a) and (compute := _eigenvalues_by(a)):
        try:
            return torch.from_numpy(compute(a.detach().numpy()))
        except (np.linalg.LinAlgError, ValueError) as error:  # SciPy's of what is not finite
            raise torch.linalg.LinAlgError(str(error)) from error
    with without_autocast(a):
        return torch.linalg.eigvalsh(a.detach())


def _eigenvalues_by(a: Tensor) -> Callable[[Any], Any] | None:
    """Another library's function that is faster than PyTorch's, if there is one."""
    if a.dtype == torch.float64:
        return np.linalg.eigvalsh
    return _scipy() if a.ndim == 2 and len(a) >= _LARGE else None


@functools.cache
def _scipy() -> Callable[[Any], Any] | None:
    try:
        from scipy.linalg import eigvalsh
    except ImportError:  # matrix functions need PyTorch and NumPy alone
        return None
    function: Callable[[Any], Any] = eigvalsh
    return function
