"""Rows of a batch: shapes, unit length, centring and their adjoint; products on the smaller of two sides."""

import math

import torch
from torch import Tensor

from matrix_ssl.matrix.covariances import largest_element
from matrix_ssl.matrix.precision import full_precision
from matrix_ssl.matrix.validation import looks_at_values

_SHORTEST = 1e-12  # rows below this length have no direction
_LARGE = {torch.float32: (2.0**50, 2.0**-75), torch.float64: (2.0**500, 2.0**-530)}  # elements, and their factor


def check_rows(**outputs: Tensor) -> None:
    """Raises ValueError unless all have one shape (n, d) with n ≥ 2 and d ≥ 1."""
    shapes = [tuple(x.shape) for x in outputs.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] < 2 or shapes[0][1] < 1:
        raise ValueError(f"Expected {', '.join(outputs)} of one shape (n, d) with n ≥ 2, got {shapes}.")


def unit_rows(x: Tensor) -> Tensor:
    """Rows (..., d) divided by their length, in float32 or better; a row of zeros, having no direction, stays zero."""
    x = _in_range(full_precision(x))
    return x * _inverse_lengths(x)


def centred_rows(x: Tensor) -> Tensor:
    """Unit rows minus their mean, over √n, so that the product of two such matrices is a covariance."""
    x = _in_range(full_precision(x))
    rows = x * (_inverse_lengths(x) / math.sqrt(len(x)))
    return rows.sub_(rows.mean(0))


def pull_back(gradient: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
    """The gradient with respect to raw rows x from that with respect to ``scale`` times their unit rows, overwritten.

    The component along each row is dropped. The result stays in float32 or better, whatever the dtype of x. A row of
    zeros gets a gradient of zero instead of an infinite one.
    """
    full = full_precision(x)
    rows = _in_range(full)
    inverse = _inverse_lengths(rows)
    along = torch.linalg.vecdot(gradient, rows).unsqueeze(1) * inverse.square()
    gradient = gradient.addcmul_(rows, along, value=-1).mul_(inverse * scale)
    return gradient if rows is full else gradient.mul_(_factors(full))


def _in_range(x: Tensor) -> Tensor:
    """Rows (..., d), multiplied by a constant power of two where the sum of their squares could overflow."""
    if looks_at_values(x, None):
        limit, _ = _LARGE[x.dtype]
        if not x.numel() or torch.linalg.vector_norm(x.detach(), ord=torch.inf) < limit:
            return x
    return x * _factors(x)


def _factors(x: Tensor) -> Tensor:
    """The factors (..., 1) of ``_in_range``, one for most rows."""
    limit, factor = _LARGE[x.dtype]
    return torch.where(largest_element(x, (-1,)) < limit, x.new_ones(()), factor)


def _inverse_lengths(x: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(lengths > _SHORTEST, 1 / lengths.clamp_min(_SHORTEST), 0.0)


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
