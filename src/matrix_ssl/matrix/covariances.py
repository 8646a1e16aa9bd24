"""Covariances and second moments of features, and the rows B with BᵀB equal to them."""

import math
from typing import Literal

from torch import Tensor

from matrix_ssl.matrix.numerics import kernel_checks
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.numerics.scaling import deviations
from matrix_ssl.matrix.numerics.validation import check_representable, checked_matrix

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
