"""Rows of a batch: shapes, unit length, centring and their adjoint; products on the smaller of two sides."""

import math

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics.precision import full_precision
from matrix_ssl.matrix.numerics.validation import check_real

_SHORTEST = 1e-12  # rows below this length have no direction


def check_rows(**outputs: Tensor) -> None:
    """Raises ValueError unless all are dense tensors of real numbers and of one shape (n, d) with n ≥ 2 and d ≥ 1."""
    for name, x in outputs.items():
        check_real(x, name)
    shapes = [tuple(x.shape) for x in outputs.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] < 2 or shapes[0][1] < 1:
        one = len(shapes[0]) == 2 and shapes[0][0] == 1
        hint = " A batch of one has no covariance: pass drop_last=True to the DataLoader." if one else ""
        raise ValueError(f"Expected {', '.join(outputs)} of one shape (n, d) with n ≥ 2, got {shapes}.{hint}")


def unit_rows(x: Tensor) -> Tensor:
    """Rows (..., d) divided by their length, in float32 or better; a row of zeros, having no direction, stays zero.

    A row whose length overflows, above 1.8e19 in float32, becomes NaN: only a training that has diverged has such rows.
    """
    x = full_precision(x)
    return x * _inverse_lengths(x)


def centred_rows(x: Tensor) -> Tensor:
    """Unit rows minus their mean, over √n, so that the product of two such matrices is a covariance."""
    x = full_precision(x)
    rows = x * (_inverse_lengths(x) / math.sqrt(len(x)))
    return rows.sub_(rows.mean(0))


def pull_back(gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
    """The gradient with respect to raw rows x from that with respect to ``scale`` times their unit rows, overwritten.

    The component along each row is dropped. The result stays in float32 or better, whatever the dtype of x. A row of
    zeros gets a gradient of zero instead of an infinite one.
    """
    rows = full_precision(x)
    inverse = _inverse_lengths(rows)
    along = torch.linalg.vecdot(gradient, rows).unsqueeze(1) * inverse.square()
    return gradient.addcmul_(rows, along, value=-1).mul_(inverse * scale)


def _inverse_lengths(x: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = torch.where(lengths > _SHORTEST, 1 / lengths.clamp_min(_SHORTEST), 0.0)
    return torch.where(lengths.isinf(), torch.nan, inverse)


def symmetric_product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y.mT`` where the product is known to be symmetric."""
    return add_symmetric_product(x.new_empty(len(x), len(x)), (x, y), beta=0)


def add_symmetric_product(
    total: Tensor, *pairs: tuple[Tensor, Tensor], alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """``beta · total + alpha · Σ x @ y.mT`` in place, where ``total`` and the sum are known to be symmetric.

    On the CPU only the blocks on and above the diagonal are computed, which for large matrices takes 0.6 of the time; a
    GPU is better served by one large product.
    """
    n = len(total)
    step = max(128, -(-n // 8)) if n >= 512 and total.device.type == "cpu" else n
    for start in range(0, n, step):
        end = min(start + step, n)
        block, scale = total[start:end, start:], beta
        for x, y in pairs:
            block.addmm_(x[start:end], y[start:].mT, alpha=alpha, beta=scale)
            scale = 1.0
        total[end:, start:end] = block[:, end - start :].mT
    return total


def cross_product_norm(a: Tensor, b: Tensor) -> Tensor:
    """‖aᵀb‖_F², (), of a, b (n, d): from a d x d matrix or, where n < d, from n x n ones as <a aᵀ, b bᵀ>."""
    n, d = a.shape
    if n < d:
        return ((a @ a.mT) * (b @ b.mT)).sum()
    return (a.mT @ b).square().sum()
