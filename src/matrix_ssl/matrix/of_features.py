"""The quantities of ``matrix_ssl.matrix`` directly from features (..., n, d), one row a sample, on the smaller side.

Entropies, divergences, ``effective_rank`` and ``log_det`` are those of C + ridge·I, C = (x - mean)ᵀ (x - mean) / n the
covariance; ``joint_entropy`` and ``mutual_information`` those of linear kernels, the inner products of rows scaled to
length one. With m = min(n, d) the eigenvalues of C are those of an m x m matrix and d - m zeros, and a logarithm is
carried to the side of the samples by ψ(x) = log(1 + x / μ) / x: log(BᵀB + μI) = log(μ) I + Bᵀ ψ(BBᵀ) B.

Numerics, checks and errors are those of ``matrix_ssl.matrix``; of features only shapes and finiteness are checked.
Divergences are computed in the dtype of the features: in float32 they err by up to 1e-7 times the condition number
times tr P. Without a ridge the gradient of the matrix and the von Neumann entropy is correct at rank deficiency, too,
since σ² log σ² has the derivative zero at σ = 0. At exact collapse, where all rows are equal, an entropy of a matrix
scaled to trace one is 0 and has no gradient without a ridge.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.errors import NotFiniteError, NotPositiveDefiniteError
from matrix_ssl.matrix import _eigenvalues, divergence, entropy, logarithm, validation
from matrix_ssl.matrix.calculus import LogDeterminant
from matrix_ssl.matrix.covariances import centred_rows, check_same_samples, small_gram
from matrix_ssl.matrix.precision import without_autocast


def matrix_entropy(x: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.matrix_entropy`` of the covariance of x (..., n, d) plus ridge·I: (...)."""
    return _eigenvalues.matrix_entropy(_covariance_eigenvalues(x, ridge, validate, scales=True), ridge)


def von_neumann_entropy(x: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.von_neumann_entropy`` of the covariance of x (..., n, d) plus ridge·I: (...), in nats."""
    return _eigenvalues.shannon_entropy(_covariance_eigenvalues(x, ridge, validate), ridge)


def renyi_entropy(x: Tensor, *, alpha: float, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.renyi_entropy`` of the covariance of x (..., n, d) plus ridge·I: (...), in nats."""
    validation.check_entropy_order(alpha)
    if alpha != 2:
        return _eigenvalues.renyi_entropy(_covariance_eigenvalues(x, ridge, validate), alpha, ridge)
    validation.check_not_negative(ridge=ridge)
    rows = centred_rows(x, "x", validate)
    rows = rows if ridge else _near_one(rows)
    return entropy.collision_entropy(*entropy.norm_and_trace(small_gram(rows), ridge, rows.shape[-1]))


def effective_rank(x: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Effective rank of the covariance of x (..., n, d) plus ridge·I, exp of its von Neumann entropy: (...)."""
    return von_neumann_entropy(x, ridge=ridge, validate=validate).exp()


def log_det(x: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.log_det`` of the covariance of x (..., n, d) plus ridge·I: (...), in nats.

    Raises:
        MatrixError: without a ridge also if n ≤ d, where a covariance is singular.
    """
    validation.check_not_negative(ridge=ridge)
    rows = centred_rows(x, "x", validate)
    n, d = rows.shape[-2:]
    if n <= d and ridge == 0:
        raise NotPositiveDefiniteError(
            f"Argument 'x' (shape {tuple(x.shape)}): the covariance of {n} rows has rank {n - 1} at most, below {d}, "
            f"so its determinant is zero. Pass more rows or ridge=."
        )
    gram = small_gram(rows)
    if n > d:
        return logarithm.log_det_of(gram, ridge, "covariance of x", validation.looks_at_values(x, validate))
    # d log(ridge) would cost float32 digits inside the factorisation: added at the end
    identity = torch.eye(n, dtype=gram.dtype, device=gram.device)
    return LogDeterminant.apply(identity + gram / ridge)[0] + d * math.log(ridge)


def matrix_cross_entropy(x: Tensor, y: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.matrix_cross_entropy`` of the covariances of x (..., n, d), P, and y (..., k, d), Q: (...).

    With a ridge the side is the smaller one of y; without, that of the features. Leading dimensions are broadcast.
    """
    a, b = _two_centred_rows(x, y, ridge, validate)
    d = b.shape[-1]
    if ridge == 0 or b.shape[-2] >= d:
        return divergence.cross_entropy_of(_dense(a), _dense(b), ridge, b.dtype)[0]
    constant = math.log(ridge) * (_trace(a) + d * ridge)
    return _trace(b) + d * ridge - constant - _trace_of_log1p(a, b, ridge)


def matrix_kl(x: Tensor, y: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.matrix_kl`` of the covariances of x and y plus ridge·I; as ``matrix_cross_entropy``."""
    a, b = _two_centred_rows(x, y, ridge, validate)
    if ridge == 0 or b.shape[-2] >= b.shape[-1]:
        return divergence.kl_of(_dense(a), _dense(b), ridge, b.dtype)[0]
    # log(ridge)·(tr P + d·ridge) is part of both logarithms and would cancel digits: omitted from both
    eigenvalues = torch.linalg.eigvalsh(small_gram(a)).clamp_min(0)
    own = ((eigenvalues + ridge) * torch.log1p(eigenvalues / ridge)).sum(-1)
    return own - _trace_of_log1p(a, b, ridge) - _trace(a) + _trace(b)


def joint_entropy(x: Tensor, y: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.joint_entropy`` of the linear kernels of x (..., n, d) and y (..., n, e): (...), in nats.

    Rows are scaled to length one. The side is the smaller one of n and d·e.
    """
    return _joint(*_two_unit_rows(x, y, alpha, validate), alpha)


def mutual_information(x: Tensor, y: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.mutual_information`` of the linear kernels of x and y; as ``joint_entropy``."""
    a, b = _two_unit_rows(x, y, alpha, validate)
    single = _gram_entropy(small_gram(a), alpha) + _gram_entropy(small_gram(b), alpha)
    return single - _joint(a, b, alpha)


def _covariance_eigenvalues(x: Tensor, ridge: float, validate: bool | None, *, scales: bool = False) -> Tensor:
    """All d eigenvalues of the covariance of x, without a ridge up to a factor unless it ``scales`` the result."""
    validation.check_not_negative(ridge=ridge)
    rows = centred_rows(x, "x", validate)
    gram = small_gram(rows if ridge or scales else _near_one(rows))
    if validation.looks_at_values(x, validate) and not gram.isfinite().all():
        raise NotFiniteError(
            f"Argument 'x' (shape {tuple(x.shape)}) has values up to {float(x.detach().abs().max()):.3g}, whose "
            f"squares are beyond {gram.dtype}: divide it by a constant, or pass float64."
        )
    eigenvalues = torch.linalg.eigvalsh(gram)
    return F.pad(eigenvalues, (0, rows.shape[-1] - eigenvalues.shape[-1]))


def _two_centred_rows(x: Tensor, y: Tensor, ridge: float, validate: bool | None) -> tuple[Tensor, Tensor]:
    validation.check_not_negative(ridge=ridge)
    a, b = centred_rows(x, "x", validate), centred_rows(y, "y", validate)
    validation.check_same_width(x, y, "x and y")
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _two_unit_rows(x: Tensor, y: Tensor, alpha: float, validate: bool | None) -> tuple[Tensor, Tensor]:
    validation.check_entropy_order(alpha)
    a, b = validation.checked_matrix(x, "x", validate), validation.checked_matrix(y, "y", validate)
    check_same_samples(x, y)
    return F.normalize(_near_one(a, (-1,)), dim=-1), F.normalize(_near_one(b, (-1,)), dim=-1)


def _near_one(rows: Tensor, dimensions: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Rows times a power of two, so that the largest is 0.5 to 1: squares stay in range, and no digit changes.

    The factor has no gradient: for what does not depend on the scale the gradient is right all the same.
    """
    _, exponent = torch.frexp(rows.detach().abs().amax(dimensions, keepdim=True))
    return torch.ldexp(rows, -exponent.clamp_min(-120))


def _dense(rows: Tensor) -> Tensor:
    with without_autocast(rows):
        return rows.mT @ rows


def _trace(rows: Tensor) -> Tensor:
    """tr BᵀB."""
    return rows.square().sum((-2, -1))


def _trace_of_log1p(a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """tr[(AᵀA + μI) log(I + BᵀB / μ)] on the side of the rows of B."""
    with without_autocast(b):
        gram, cross = b @ b.mT, b @ a.mT
        weights = cross @ cross.mT + ridge * gram
    return (weights * logarithm.log1p_ratio(gram, ridge, validate=False)).sum((-2, -1))


def _joint(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    if a.shape[-1] * b.shape[-1] < a.shape[-2]:
        return _gram_entropy(small_gram((a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)), alpha)
    with without_autocast(a):
        return _gram_entropy((a @ a.mT) * (b @ b.mT), alpha)


def _gram_entropy(gram: Tensor, alpha: float) -> Tensor:
    return entropy.renyi_entropy(gram, alpha=alpha, validate=False)
