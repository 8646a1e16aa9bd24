"""Matrix information theory on symmetric positive semi-definite tensors of shape (..., d, d).

Notation: log is the natural matrix logarithm, so every entropy is in nats. ``eigh`` has a backward that divides by
differences of eigenvalues and gives NaN where two coincide, which is where a uniformity loss leads; functions of a
matrix are therefore differentiated here by divided differences of the scalar function (Daleckii and Krein, 1965),
which stay finite there. Half precision is computed in float32, and autocast does not reach inside.

References:
    Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024, section 2.
    Roy and Vetterli, "The effective rank", EUSIPCO 2007.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DividedDifference = Callable[[Tensor, Tensor], Tensor]


def matrix_log(a: Tensor) -> Tensor:
    """Natural logarithm of a symmetric positive definite matrix.

    Args:
        a: (..., d, d), symmetric, eigenvalues above zero. Only ``(a + aᵀ) / 2`` matters.

    Returns:
        (..., d, d), symmetric. Not finite where an eigenvalue is zero or negative.

    Raises:
        ValueError: ``a`` is not square or is empty.
    """
    return _spectral_function(_square(a), torch.log, _log_difference)


def log1p_ratio(a: Tensor, scale: float) -> Tensor:
    """The matrix function ψ(x) = log(1 + x / scale) / x of a symmetric positive semi-definite matrix; ψ(0) = 1 / scale.

    It carries a logarithm to the smaller side: log(BᵀB + scale·I) = log(scale)·I + Bᵀ ψ(BBᵀ) B for any B.

    Args:
        a: (..., n, n), symmetric positive semi-definite.
        scale: above zero.

    Returns:
        (..., n, n), symmetric, finite and differentiable at rank deficiency.
    """
    value = functools.partial(_log1p_ratio, scale=scale)
    difference = functools.partial(_log1p_ratio_difference, scale=scale)
    return _spectral_function(_square(a), value, difference)


def matrix_entropy(a: Tensor) -> Tensor:
    """Matrix entropy ME(A) = -tr(A log A) + tr A, with 0 log 0 = 0.

    Among matrices of trace one it is largest, log d + 1, at I/d and smallest, 1, at rank one. Its gradient is infinite
    at a zero eigenvalue: add a ridge before differentiating a rank-deficient matrix.

    Args:
        a: (..., d, d), symmetric positive semi-definite.

    Returns:
        (...), in nats plus the trace.

    Reference: Zhang et al., ICML 2024, definition 2.1.
    """
    eigenvalues = torch.linalg.eigvalsh(_square(a)).clamp_min(0)  # rounding can leave a zero eigenvalue below zero
    return (torch.special.entr(eigenvalues) + eigenvalues).sum(-1)


def matrix_cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """Matrix cross-entropy MCE(P, Q) = tr(-P log Q + Q). For given P it is smallest, ME(P), at Q = P.

    Args:
        p: (..., d, d), symmetric positive semi-definite.
        q: (..., d, d), symmetric positive definite.

    Returns:
        (...).

    Reference: Zhang et al., ICML 2024, definition 2.3.
    """
    p, q = _square(p), _square(q)
    return q.diagonal(dim1=-2, dim2=-1).sum(-1) - (p * matrix_log(q)).sum((-2, -1))


def matrix_kl(p: Tensor, q: Tensor) -> Tensor:
    """Matrix Kullback-Leibler divergence MKL(P‖Q) = tr(P log P - P log Q - P + Q) = MCE(P, Q) - ME(P).

    Not negative, and zero only at P = Q.

    Args:
        p: (..., d, d), symmetric positive semi-definite.
        q: (..., d, d), symmetric positive definite.

    Returns:
        (...).

    Reference: Zhang et al., ICML 2024, definition 2.2.
    """
    return matrix_cross_entropy(p, q) - matrix_entropy(p)


def spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the features' centred covariance, divided by their sum, in descending order.

    Args:
        features: (n, d), one row a sample. The smaller of the n x n and d x d matrices is decomposed.

    Returns:
        (min(n, d)), not negative, summing to one. Equal rows give all zero, or a single one where rounding leaves them
        off their mean: an ``effective_rank`` of 1 either way.
    """
    rows = _at_least_float32(features)
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows - rows.mean(0)
        rows = rows / rows.abs().max().clamp_min(torch.finfo(rows.dtype).tiny)  # squares of large features overflow
        gram = rows.mT @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.mT
        eigenvalues = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)
        return eigenvalues / eigenvalues.sum().clamp_min(torch.finfo(rows.dtype).tiny)


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """Effective rank exp(-Σ pᵢ log pᵢ) of a spectrum: between 1 and the number of non-zero eigenvalues.

    Args:
        eigenvalues: (..., k), not negative, summing to one, as ``spectrum`` returns them. All zero gives 1.

    Returns:
        (...).

    Reference: Roy and Vetterli, EUSIPCO 2007, definition 1, on the eigenvalues of the covariance as in Zhang et al.,
    ICML 2024, definition 2.5. (RankMe uses the singular values of the features instead, and is larger.)
    """
    return torch.special.entr(eigenvalues).sum(-1).exp()


class _SpectralFunction(torch.autograd.Function):
    """U f(Λ) Uᵀ of a symmetric matrix, with the Daleckii-Krein derivative."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, function: Callable[[Tensor], Tensor], difference: DividedDifference) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(a)
        ctx.save_for_backward(eigenvalues, vectors)
        ctx.difference = difference
        return (vectors * function(eigenvalues).unsqueeze(-2)) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        eigenvalues, vectors = ctx.saved_tensors
        weights = ctx.difference(eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2))
        rotated = vectors.mT @ (gradient + gradient.mT).mul(0.5) @ vectors
        return vectors @ (weights * rotated) @ vectors.mT, None, None


def _spectral_function(a: Tensor, function: Callable[[Tensor], Tensor], difference: DividedDifference) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return _SpectralFunction.apply((a + a.mT) / 2, function, difference)


def _log_difference(a: Tensor, b: Tensor) -> Tensor:
    """(log a - log b) / (a - b), as 2/(a+b) · atanh(y)/y with y = (a-b)/(a+b): no cancellation where a ≈ b."""
    y = (a - b) / (a + b)
    ratio = torch.where(y == 0, 1.0, torch.atanh(y) / torch.where(y == 0, 1.0, y))
    return 2 / (a + b) * ratio


def _log1p_ratio(x: Tensor, scale: float) -> Tensor:
    x = x.clamp_min(0)  # rounding can leave a zero eigenvalue below zero
    return torch.where(x == 0, 1 / scale, torch.log1p(x / scale) / torch.where(x == 0, 1.0, x))


def _log1p_ratio_difference(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """(ψ(a) - ψ(b)) / (a - b).

    With L(x) = xψ(x) = log(1 + x/scale), ψ[a, b] = (L[a, b] - ψ(a)) / b. Taking b as the larger one, the subtraction
    loses at most a factor 2·scale/b; below b = scale/20 the power series of ψ is summed instead, whose twelve terms
    leave 20⁻¹² ≈ 2e-16.
    """
    small, large = torch.minimum(a, b).clamp_min(0), torch.maximum(a, b).clamp_min(0)
    direct = (_log_difference(small + scale, large + scale) - _log1p_ratio(small, scale)) / torch.where(
        large == 0, 1.0, large
    )
    u, v = small / scale, large / scale
    power, inner, series = torch.ones_like(u), torch.zeros_like(u), torch.zeros_like(u)
    for k in range(1, 13):
        inner = power + v * inner  # Σ_{j<k} uʲ v^(k-1-j)
        power = power * u
        series = series + (-1) ** k / (k + 1) * inner
    return torch.where(v < 0.05, series / scale**2, direct)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _square(a: Tensor) -> Tensor:
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise ValueError(f"expected a square matrix (..., d, d) with d > 0, got shape {tuple(a.shape)}")
    return _at_least_float32(a)
