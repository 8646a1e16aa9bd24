"""Covariances of features, and the smaller of the two matrices that have their spectrum."""

import math

from torch import Tensor

from matrix_ssl.errors import MatrixShapeError
from matrix_ssl.matrix.precision import without_autocast
from matrix_ssl.matrix.validation import checked_matrix


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


def centred_rows(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """B = (x - mean row) / √n in full precision, so that BᵀB is the covariance."""
    rows = checked_matrix(x, name, validate)
    return (rows - rows.mean(-2, keepdim=True)) / math.sqrt(rows.shape[-2])


def small_gram(rows: Tensor) -> Tensor:
    """BᵀB or BBᵀ, whichever is smaller: they share all eigenvalues but zeros."""
    with without_autocast(rows):
        return rows.mT @ rows if rows.shape[-1] <= rows.shape[-2] else rows @ rows.mT
