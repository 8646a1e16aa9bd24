"""Centring and scaling of rows so that no square leaves the range of its dtype."""

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.matrix.numerics.validation import looks_at_values


def deviations(rows: Tensor) -> Tensor:
    """Rows minus their mean."""
    return rows - rows.mean(-2, keepdim=True)


def largest_element(x: Tensor, dimensions: tuple[int, ...] = (-2, -1)) -> Tensor:
    """The largest |x| over the dimensions, which are kept as size 1, without gradient."""
    x = x.detach()
    return torch.maximum(x.amax(dimensions, keepdim=True), -x.amin(dimensions, keepdim=True))


def in_range(x: Tensor, largest: Tensor) -> bool:
    """Whether values can be read and sums of fourth powers keep their digits without rescaling."""
    return looks_at_values(x, None) and bool(((largest > 2.0**-10) & (largest < 2.0**10)).all())


def rescaled(rows: Tensor, dimensions: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Rows, multiplied by a power of two where squares could leave the range; no digit changes.

    The factor has no gradient; the gradient of anything that does not depend on the scale is still correct.
    """
    largest = largest_element(rows, dimensions)
    if in_range(rows, largest):
        return rows
    smallest = 2.0**-1001 if rows.dtype == torch.float64 else 2.0**-121  # below it the factor would be infinite
    power = torch.frexp(largest).mantissa / largest  # exact; ldexp of PyTorch 2.4 ends at the powers of float32
    return rows * torch.where(largest >= smallest, power, 1 / (2 * smallest))


def unit_length(rows: Tensor) -> Tensor:
    """Rows scaled to length one, whatever their scale; a row of zeros stays zero."""
    lengths = lengths_in_range(rows)
    return F.normalize(rescaled(rows, (-1,)), dim=-1) if lengths is None else rows / lengths


def lengths_in_range(rows: Tensor) -> Tensor | None:
    """Lengths (..., n, 1) of rows, if readable and non-zero, with squares in range; None otherwise."""
    if not looks_at_values(rows, None) or not rows.numel():
        return None
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    least, most = lengths.detach().aminmax()
    return lengths if least > 1e-6 and most < 1e15 else None
