"""Logarithms of symmetric matrices, and their trace: the logarithm of the determinant."""

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics import validation
from matrix_ssl.matrix.numerics.linalg import smaller_product
from matrix_ssl.matrix.spectra.divided_differences import log1p_ratio_difference, log1p_ratio_value, log_difference
from matrix_ssl.matrix.spectra.eigenvalues import eigenvalues_of
from matrix_ssl.matrix.spectra.matrix_functions import log_determinant, log_determinant_and_factor, spectral_function
from matrix_ssl.matrix.spectra.zero_eigenvalues import zero_level


def matrix_log(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Natural logarithm of a symmetric positive definite matrix, log(A + ridge·I): (..., d, d), symmetric.

    Computed by eigendecomposition in float64 (a logarithm in float32 is off by 1e-7 times the condition number) and
    differentiated by divided differences, which are exact where eigenvalues coincide. It can be differentiated once.
    Without a ridge, an eigenvalue below 2 ε √d times the largest, with the ε of the dtype, is zero up to rounding and
    raises an error. Where values are not checked, the logarithm is not finite if an eigenvalue is zero or below.

    Args:
        a: (..., d, d), symmetric with eigenvalues above -ridge.
        ridge: μ ≥ 0, added to every eigenvalue.

    Raises:
        MatrixError: ``a`` is not symmetric, or not positive definite with the ridge.
    """
    validation.check_ridge(ridge)
    full = validation.checked_symmetric(a, "a", validate)
    value, eigenvalues, _ = spectral_function(
        full.double(), lambda x: (x + ridge).log(), lambda x, y: log_difference(x + ridge, y + ridge)
    )
    if validation.looks_at_values(a, validate):
        shifted = eigenvalues + ridge
        zero = zero_level(shifted, ridge, dtype=full.dtype)
        validation.check_positive_definite(shifted, (shifted <= zero).any(-1), a, "a")
    return value.to(full.dtype)


def log1p_ratio(a: Tensor, scale: float, *, validate: bool | None = None) -> Tensor:
    """The matrix function ψ(x) = log(1 + x / scale) / x of a symmetric positive semi-definite matrix; ψ(0) = 1 / scale.

    It carries a logarithm to the smaller side: log(BᵀB + scale·I) = log(scale)·I + Bᵀ ψ(BBᵀ) B for any B. The result is
    symmetric, finite and differentiable once, even at rank deficiency.

    Args:
        a: (..., n, n), symmetric positive semi-definite.
        scale: above zero.

    Raises:
        MatrixError: ``a`` is not symmetric or not positive semi-definite.
    """
    validation.check_constant(scale=scale)
    validation.check_positive(scale=scale)
    full = validation.checked_symmetric(a, "a", validate)
    value, eigenvalues, _ = spectral_function(
        full, lambda x: log1p_ratio_value(x, scale), lambda x, y: log1p_ratio_difference(x, y, scale)
    )
    validation.check_positive_semidefinite(eigenvalues, a, "a", validate)
    return value


def log_det(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """log det(A + ridge·I) = tr log(A + ridge·I) of a symmetric positive definite matrix, by Cholesky, in nats: (...).

    Its gradient is the inverse of A + ridge·I. Arguments and errors are those of ``matrix_log``; where values are not
    checked, the result is NaN if the matrix is not positive definite.
    """
    validation.check_ridge(ridge)
    full = validation.checked_symmetric(a, "a", validate)
    return log_det_of(full, ridge, "a", validation.looks_at_values(a, validate))


def log_det_of(full: Tensor, ridge: float, name: str, look: bool) -> Tensor:
    """log det of a matrix in full precision plus ridge·I; ``look`` says whether to raise where it is not defined."""
    full = full + ridge * torch.eye(full.shape[-1], dtype=full.dtype, device=full.device)
    value, factor = log_determinant_and_factor(full)
    if look:
        bad = value.isnan()
        if ridge == 0:  # rounding can leave a singular matrix with a factor
            bad = bad | _nearly_singular(full.detach(), factor.detach())
        if bad.any():
            eigenvalues = torch.linalg.eigvalsh(full.detach())
            bad = value.isnan() | (bad & (eigenvalues <= zero_level(eigenvalues, ridge)).any(-1))
            validation.check_positive_definite(eigenvalues, bad, full, name)
    return value


def _nearly_singular(a: Tensor, factor: Tensor) -> Tensor:
    """Whether the least eigenvalue may be below the zero level, (...), by inverse iteration from a Cholesky factor."""
    d = a.shape[-1]
    x = torch.arange(1, d + 1, dtype=a.dtype, device=a.device).cos().unsqueeze(-1).expand(*a.shape[:-1], 1)
    for _ in range(3):
        x = torch.cholesky_solve(x / torch.linalg.vector_norm(x, dim=-2, keepdim=True), factor)
    least = 1 / torch.linalg.vector_norm(x, dim=(-2, -1))  # not below the least eigenvalue, and near it
    level = 4 * zero_level(torch.linalg.matrix_norm(a).unsqueeze(-1), d=d).squeeze(-1)
    return ~(least > level)


def log_det_of_rows(rows: Tensor, factor: float, shift: float, x: Tensor, name: str, validate: bool | None) -> Tensor:
    """log det(factor · G + shift · I), shift above zero, G the smaller of BᵀB and BBᵀ of rows B: (...).

    The rounding error of a large G can exceed the shift, so that digits are lost, or the sum is not positive definite
    and has no Cholesky factor, on any device. Where values can be read, float32 then falls back to float64, and float64
    to eigenvalues, which count as zero below the zero level. Elsewhere all is computed in float64, and the value is NaN
    only where that has no factor; not so on MPS, which has no float64, and with ``validate=False``, for losses whose
    rows are short and whose products should not take many times as long. Errors name ``x``.
    """
    look, exact = validation.looks_at_values(rows, validate or None), rows.dtype == torch.float64
    if not (look or exact or validate is False or rows.device.type == "mps"):
        return log_det_of_rows(rows.double(), factor, shift, x, name, validate).to(rows.dtype)
    gram = smaller_product(rows) * factor
    validation.check_representable(gram, x, name, validate)
    value = log_determinant(gram + shift * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
    if not look:
        return value
    lost = value.isnan()
    if not exact:
        rounding = torch.finfo(gram.dtype).eps * gram.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
        lost = lost | (rounding > 0.1 * shift)
    if not lost.any() or not gram.isfinite().all():
        return value
    if not exact:
        return log_det_of_rows(rows.double(), factor, shift, x, name, validate).to(rows.dtype)
    eigenvalues = eigenvalues_of(gram, used=gram.shape[-1])
    return (torch.where(eigenvalues > zero_level(eigenvalues), eigenvalues, 0.0) + shift).log().sum(-1)
