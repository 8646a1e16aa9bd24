"""Covariances of features, and the smaller of the two matrices that have their spectrum."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.errors import MatrixShapeError
from matrix_ssl.matrix.precision import without_autocast
from matrix_ssl.matrix.validation import checked_matrix, looks_at_values

About = Literal["mean", "origin"]


def covariance(x: Tensor, *, validate: bool | None = None) -> Tensor:
    """Covariance (x - mean)ᵀ (x - mean) / n of x (..., n, d), one row a sample: (..., d, d), of rank below n.

    Raises:
        MatrixError: ``x`` is not a matrix, empty, or not finite.
    """
    rows = centred_rows(x, "x", validate)
    with without_autocast(rows):
        return rows.mT @ rows


def cross_covariance(x: Tensor, y: Tensor, *, validate: bool | None = None) -> Tensor:
    """Cross-covariance (x - mean x)ᵀ (y - mean y) / n of x (..., n, d) and y (..., n, e): (..., d, e), not symmetric.

    Raises:
        MatrixError: an argument is not a matrix, empty, or not finite, or the numbers of rows differ.
    """
    a, b = centred_rows(x, "x", validate), centred_rows(y, "y", validate)
    check_same_samples(a, b)
    with without_autocast(a):
        return a.mT @ b


def check_same_samples(x: Tensor, y: Tensor) -> None:
    """Raises MatrixShapeError unless both have the same number of rows."""
    if x.shape[-2] != y.shape[-2]:
        raise MatrixShapeError(
            f"Arguments x and y have the shapes {tuple(x.shape)} and {tuple(y.shape)}: they must have the same samples."
        )


def second_moment(x: Tensor, *, validate: bool | None = None) -> Tensor:
    """Second moment xᵀx / n of x (..., n, d), one row a sample: (..., d, d), the covariance about the origin.

    Raises:
        MatrixError: ``x`` is not a matrix, empty, or not finite.
    """
    rows = rows_about(x, "x", "origin", validate)
    with without_autocast(rows):
        return rows.mT @ rows


def rows_about(x: Tensor, name: str, about: About, validate: bool | None) -> Tensor:
    """B = (x - mean row) / √n, or x / √n about the origin, in full precision: BᵀB is the (second) moment."""
    if about == "mean":
        return centred_rows(x, name, validate)
    if about != "origin":
        raise ValueError(f"about must be 'mean' or 'origin', got {about!r}.")
    return checked_matrix(x, name, validate) / math.sqrt(x.shape[-2])


def centred_rows(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """B = (x - mean row) / √n in full precision, so that BᵀB is the covariance."""
    rows = checked_matrix(x, name, validate)
    return (rows - rows.mean(-2, keepdim=True)) / math.sqrt(rows.shape[-2])


def small_gram(rows: Tensor) -> Tensor:
    """BᵀB or BBᵀ, whichever is smaller: they share all eigenvalues but zeros."""
    with without_autocast(rows):
        return rows.mT @ rows if rows.shape[-1] <= rows.shape[-2] else rows @ rows.mT


def near_one(rows: Tensor, dimensions: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Rows times a power of two, so that the largest is 0.5 to 1: squares stay in range, and no digit changes.

    The factor has no gradient: for what does not depend on the scale the gradient is right all the same.
    """
    largest = rows.detach().abs().amax(dimensions, keepdim=True)
    smallest = 2.0**-1001 if rows.dtype == torch.float64 else 2.0**-121  # below it the factor would be infinite
    power = torch.frexp(largest).mantissa / largest  # exact; ldexp of PyTorch 2.4 ends at the powers of float32
    return rows * torch.where(largest >= smallest, power, 1 / (2 * smallest))


def unit_length(rows: Tensor) -> Tensor:
    """Rows of length one at every scale; a row of zeros stays one."""
    if looks_at_values(rows, None) and rows.numel():
        least, most = torch.linalg.vector_norm(rows.detach(), dim=-1).aminmax()
        if least > 1e-6 and most < 1e15:  # squares are in range: the same digits as below, in half the time
            return F.normalize(rows, dim=-1)
    return F.normalize(near_one(rows, (-1,)), dim=-1)
