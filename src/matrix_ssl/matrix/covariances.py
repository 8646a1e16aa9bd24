"""Covariances and second moments of features, and the centring and scaling of rows behind them."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.matrix import kernel_checks
from matrix_ssl.matrix.precision import without_autocast
from matrix_ssl.matrix.validation import check_representable, checked_matrix, looks_at_values

About = Literal["mean", "origin"]


def covariance(x: Tensor, *, validate: bool | None = None) -> Tensor:
    """Covariance (x - mean)ᵀ (x - mean) / n of x (..., n, d), one row per sample: (..., d, d), of rank below n.

    Raises:
        MatrixError: ``x`` is not a matrix, empty, or not finite.
    """
    rows = centred_rows(x, "x", validate)
    with without_autocast(rows):
        result = rows.mT @ rows
    check_representable(result, x, "x", validate)
    return result


def cross_covariance(x: Tensor, y: Tensor, *, validate: bool | None = None) -> Tensor:
    """Cross-covariance (x - mean x)ᵀ (y - mean y) / n of x (..., n, d) and y (..., n, e): (..., d, e), not symmetric.

    Raises:
        MatrixError: an argument is not a matrix, empty, or not finite, or the numbers of rows differ.
    """
    a, b = centred_rows(x, "x", validate), centred_rows(y, "y", validate)
    kernel_checks.check_same_samples(x, y, "x and y")
    with without_autocast(a):
        result = a.mT @ b
    check_representable(result, x, "x", validate, "products with y")
    return result


def second_moment(x: Tensor, *, validate: bool | None = None) -> Tensor:
    """Second moment xᵀx / n of x (..., n, d), one row per sample: (..., d, d), the covariance about the origin.

    Raises:
        MatrixError: ``x`` is not a matrix, empty, or not finite.
    """
    rows = rows_about(x, "x", "origin", validate)
    with without_autocast(rows):
        result = rows.mT @ rows
    check_representable(result, x, "x", validate)
    return result


def rows_about(x: Tensor, name: str, about: About, validate: bool | None) -> Tensor:
    """B = (x - mean row) / √n, or x / √n about the origin, in full precision: BᵀB is the (second) moment."""
    return centre(x, name, about, validate) / math.sqrt(x.shape[-2])


def centre(x: Tensor, name: str, about: About, validate: bool | None) -> Tensor:
    """x - mean row, or x about the origin, in full precision."""
    if about not in ("mean", "origin"):
        raise ValueError(f"about must be 'mean' or 'origin', got {about!r}.")
    rows = checked_matrix(x, name, validate)
    return deviations(rows) if about == "mean" else rows


def centred_rows(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """B = (x - mean row) / √n in full precision, so that BᵀB is the covariance."""
    return deviations(checked_matrix(x, name, validate)) / math.sqrt(x.shape[-2])


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
