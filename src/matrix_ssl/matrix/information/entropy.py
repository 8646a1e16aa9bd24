"""Entropies of every order of a symmetric positive semi-definite matrix, such as a covariance or a Gram matrix."""

import math

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics import validation
from matrix_ssl.matrix.spectra import spectral_entropies
from matrix_ssl.matrix.spectra.eigenvalues import eigenvalues_of
from matrix_ssl.matrix.spectra.zero_eigenvalues import without_gradient_at_zero


def matrix_entropy(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Matrix entropy ME(A) = -tr(A log A) + tr A, of A + ridge·I: (...), in nats plus the trace.

    Among matrices with trace one, its maximum is log d + 1, at I/d, and its minimum is 1, at rank one. Its gradient,
    -log A, is infinite at a zero eigenvalue, which therefore contributes none; ``matrix_ssl.matrix`` describes this,
    rounding and checks.

    Args:
        a: (..., d, d), symmetric positive semi-definite.
        ridge: μ ≥ 0.

    Raises:
        MatrixError: ``a`` is not symmetric or not positive semi-definite.

    Reference: Zhang et al., ICML 2024, definition 2.1.
    """
    full = _checked(a, ridge, validate)
    entropy, eigenvalues = spectral_entropies.matrix_entropy_of(full, ridge)
    validation.check_positive_semidefinite(eigenvalues + ridge, a, "a", validate)
    return entropy


def von_neumann_entropy(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Von Neumann entropy -tr(ρ log ρ) of ρ = A' / tr A', A' = A + ridge·I, in nats.

    Ranges from 0, at rank one, to log d, at multiples of I, and equals ME(ρ) - 1. The zero matrix gives 0. Arguments,
    return value and errors are those of ``matrix_entropy``.
    """
    full = _checked(a, ridge, validate)
    return renyi_entropy_of(full, a, "a", alpha=1.0, ridge=ridge, validate=validate)


def renyi_entropy(a: Tensor, *, alpha: float, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Rényi entropy log(tr ρ^alpha) / (1 - alpha) of ρ = A' / tr A', A' = A + ridge·I, in nats.

    Ranges from 0, at rank one, to log d, at multiples of I, and does not increase with alpha. alpha = 1 is the limit,
    the von Neumann entropy; alpha = 0 is the logarithm of the rank, without a gradient; alpha = 2 is -log ‖ρ‖²_F and
    needs no eigenvalues; alpha = ∞ is -log of the largest eigenvalue of ρ. The zero matrix gives 0.

    Above alpha = 1 the derivative at a zero eigenvalue is finite and part of the gradient. Below, it is infinite and
    omitted. For alpha = 2 only ‖A‖_F ≤ tr A is checked, which positive semi-definiteness implies.

    Arguments, return value and errors are those of ``matrix_entropy``; an ``alpha`` below zero is a ValueError, too,
    while ``math.inf`` is allowed.

    Reference: Giraldo, Rao and Principe, IEEE Transactions on Information Theory 61(1), 2015; here in nats.
    """
    full = _checked(a, ridge, validate)
    return renyi_entropy_of(full, a, "a", alpha=alpha, ridge=ridge, validate=validate)


def tsallis_entropy(a: Tensor, *, alpha: float, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Tsallis entropy (tr ρ^alpha - 1) / (1 - alpha) of ρ = A' / tr A', A' = A + ridge·I, dimensionless: (...).

    Ranges from 0, at rank one, to (d^(1 - alpha) - 1) / (1 - alpha), at multiples of I. With S the Rényi entropy of the
    same order, it equals expm1((1 - alpha) S) / (1 - alpha). alpha = 1 is the von Neumann entropy, alpha = 2 the linear
    entropy 1 - tr ρ², and alpha = 0 the rank minus one. alpha = ∞ is not allowed, since it would give zero for every
    matrix.

    Arguments, return value and errors are those of ``renyi_entropy``.

    Reference: Tsallis, "Possible generalization of Boltzmann-Gibbs statistics", Journal of Statistical Physics 52,
        1988.
    """
    check_tsallis_order(alpha)
    renyi = renyi_entropy(a, alpha=alpha, ridge=ridge, validate=validate)
    return spectral_entropies.tsallis_from_renyi(renyi, alpha)


def min_entropy(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Min-entropy -log of the largest eigenvalue of ρ = A' / tr A', A' = A + ridge·I, in nats: (...).

    This is the Rényi entropy of order ∞, hence the smallest of all orders, and at least half the one of order 2. Where
    the largest eigenvalue is repeated, the gradient is that of one of the copies, and a second derivative is an error.

    Arguments, return value and errors are those of ``matrix_entropy``.
    """
    return renyi_entropy(a, alpha=math.inf, ridge=ridge, validate=validate)


def truncated_entropy(a: Tensor, *, k: int, validate: bool | None = None) -> Tensor:
    """-Σ pᵢ log pᵢ over the k largest eigenvalues p of A / tr A, in nats: (...).

    p is not rescaled to sum to one again, so the value grows with k, up to the von Neumann entropy at k = d. Zero
    eigenvalues contribute no gradient. Where eigenvalue k equals eigenvalue k + 1, the gradient is that of one choice
    between them. A second derivative is an error where one of the k largest equals another eigenvalue.

    Args:
        a: (..., d, d), symmetric positive semi-definite.
        k: from 1 to d.

    Raises:
        MatrixError: ``a`` is not symmetric or not positive semi-definite.
        ValueError: ``k`` is not between 1 and d.

    Reference: Xiong et al., "UNComp: Uncertainty-Aware Long-Context Compressor for Efficient Large Language Model
        Inference", 2024, https://arxiv.org/abs/2410.03090: truncated matrix entropy.
    """
    return spectral_entropies.entropy_of_shares(_largest(a, k, validate))


def low_rank_entropy(a: Tensor, *, k: int, alpha: float, validate: bool | None = None) -> Tensor:
    """Rényi entropy of the k largest eigenvalues p of A / tr A and of a flat remainder, in nats: (...).

    The other d - k are replaced by their mean r = (1 - Σ pᵢ) / (d - k):
    log(Σ pᵢ^alpha + (d - k) r^alpha) / (1 - alpha). The value is never below the Rényi entropy and equals it at k = d.
    For second derivatives see ``truncated_entropy``.

    Args:
        a: (..., d, d), symmetric positive semi-definite.
        k: from 1 to d.
        alpha: the order, above zero and finite; 1 is the von Neumann entropy.

    Raises:
        MatrixError: ``a`` is not symmetric or not positive semi-definite.
        ValueError: ``k`` is not between 1 and d, or the order is not above zero and finite.

    Reference: Dong, Gong, Yu and Li, "Robust and Fast Measure of Information via Low-Rank Representation", AAAI 2023,
        https://arxiv.org/abs/2211.16784.
    """
    validation.check_positive(alpha=alpha)
    return low_rank_of(_largest(a, k, validate), a.shape[-1], alpha)


def renyi_entropy_of(
    full: Tensor, argument: Tensor, name: str, *, alpha: float, ridge: float = 0.0, validate: bool | None = None
) -> Tensor:
    """The Rényi entropy of a symmetric matrix in full precision; errors name ``argument``."""
    validation.check_entropy_order(alpha)
    if alpha == 2:
        squared_norm, trace = norm_and_trace(full, ridge, full.shape[-1])
        validation.check_purity(squared_norm, trace, argument, name, validate)
        return collision_entropy(squared_norm, trace)
    entropy, eigenvalues = spectral_entropies.renyi_of(full, alpha, ridge)
    validation.check_positive_semidefinite(eigenvalues + ridge, argument, name, validate)
    return entropy


def norm_and_trace(a: Tensor, ridge: float, d: int) -> tuple[Tensor, Tensor]:
    """‖A'‖²_F and tr A' of A' = A + μI (d x d), from ``a``, which is A or shares its non-zero eigenvalues.

    Both are those of A' divided by the larger of μ and A's largest element, a constant, so that squares neither
    overflow nor underflow.
    """
    largest = a.detach().abs().amax((-2, -1)).clamp_min(max(ridge, torch.finfo(a.dtype).tiny))
    mu, scaled = ridge / largest, a / largest[..., None, None]
    trace = scaled.diagonal(dim1=-2, dim2=-1).sum(-1)
    return scaled.square().sum((-2, -1)) + 2 * mu * trace + d * mu**2, trace + d * mu


def collision_entropy(squared_norm: Tensor, trace: Tensor) -> Tensor:
    """-log(‖A‖²_F / (tr A)²), 0 for the zero matrix."""
    zero = squared_norm == 0
    return 2 * torch.where(zero, 1.0, trace).log() - torch.where(zero, 1.0, squared_norm).log()


def _checked(a: Tensor, ridge: float, validate: bool | None) -> Tensor:
    validation.check_ridge(ridge)
    return validation.checked_symmetric(a, "a", validate)


def check_tsallis_order(alpha: float) -> None:
    """Raises ValueError unless the order is finite, zero or above."""
    validation.check_entropy_order(alpha)
    if alpha == math.inf:
        raise ValueError("alpha must be finite for a Tsallis entropy, which tends to 0: use min_entropy for alpha = ∞.")


def check_number_of_eigenvalues(k: int, d: int) -> None:
    """Raises ValueError unless k is from 1 to d."""
    if not hasattr(k, "__index__") or not 1 <= k <= d:
        raise ValueError(f"k must be a number of eigenvalues between 1 and {d}, got {k!r}.")


def largest_of(x: Tensor, k: int) -> Tensor:
    """The last k of x (..., d), which is in ascending order, divided by the sum of all; zeros if all are zero."""
    total = x.sum(-1, keepdim=True)
    return x[..., x.shape[-1] - k :] / torch.where(total > 0, total, 1.0)


def low_rank_of(p: Tensor, d: int, alpha: float) -> Tensor:
    """The Rényi entropy of p (..., k) and of d - k equal shares that bring the sum to one."""
    k = p.shape[-1]
    if k == d:
        return spectral_entropies.renyi_entropy(p, alpha)
    total = p.sum(-1, keepdim=True)
    rest = torch.where(total > 0, 1 - total, 0.0).clamp_min(0) / (d - k)  # not of the zero matrix
    return spectral_entropies.renyi_entropy(torch.cat([p, rest.expand(*rest.shape[:-1], d - k)], -1), alpha)


def _largest(a: Tensor, k: int, validate: bool | None) -> Tensor:
    """The k largest eigenvalues of A / tr A, not below zero."""
    full = validation.checked_symmetric(a, "a", validate)
    check_number_of_eigenvalues(k, full.shape[-1])
    eigenvalues = eigenvalues_of(full, used=k)
    validation.check_positive_semidefinite(eigenvalues, a, "a", validate)
    return largest_of(without_gradient_at_zero(eigenvalues, 0.0), k)
