"""Entropies of one symmetric positive semi-definite matrix."""

import torch
from torch import Tensor

from matrix_ssl.matrix import _eigenvalues
from matrix_ssl.matrix.validation import (
    check_entropy_order,
    check_not_negative,
    check_positive_semidefinite,
    check_purity,
    checked_symmetric,
)


def matrix_entropy(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Matrix entropy ME(A) = -tr(A log A) + tr A, of A + ridge·I.

    Among matrices of trace one it is largest, log d + 1, at I/d and smallest, 1, at rank one. Its gradient, -log A, is
    infinite at a zero eigenvalue, which contributes none; see ``matrix_ssl.matrix`` for this, rounding and checks.

    Args:
        a: (..., d, d), symmetric positive semi-definite.
        ridge: μ ≥ 0.
        validate: whether to check values; by default on the CPU outside of ``torch.compile``.

    Returns:
        (...), in nats plus the trace.

    Raises:
        MatrixError: ``a`` is not square, empty, not finite, not symmetric, or not positive semi-definite.

    Reference: Zhang et al., ICML 2024, definition 2.1.
    """
    return _eigenvalues.matrix_entropy(_checked_eigenvalues(a, ridge, validate), ridge)


def von_neumann_entropy(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Von Neumann entropy -tr(ρ log ρ) of ρ = A' / tr A', A' = A + ridge·I.

    Between 0 at rank one and log d at multiples of I, and ME(ρ) - 1. The zero matrix gives 0.

    Args, raises as in ``matrix_entropy``.

    Returns:
        (...), in nats.
    """
    return _eigenvalues.shannon_entropy(_checked_eigenvalues(a, ridge, validate), ridge)


def renyi_entropy(a: Tensor, *, alpha: float, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Rényi entropy log(tr ρ^alpha) / (1 - alpha) of ρ = A' / tr A', A' = A + ridge·I.

    Between 0 at rank one and log d at multiples of I; it does not increase with alpha. alpha = 1 is the limit, the
    von Neumann entropy; alpha = 0 the logarithm of the rank, without gradient; alpha = 2 is -log ‖ρ‖²_F and takes no
    eigenvalues; alpha = ∞ is -log of the largest eigenvalue of ρ. The zero matrix gives 0.

    Above alpha = 1 the derivative at a zero eigenvalue is finite and part of the gradient. Below, it is infinite and
    omitted. For alpha = 2 only ‖A‖_F ≤ tr A is checked, which positive semi-definiteness implies.

    Args:
        a: (..., d, d), symmetric positive semi-definite.
        alpha: the order, zero or above, ``math.inf`` included.
        ridge: μ ≥ 0.
        validate: whether to check values; by default on the CPU outside of ``torch.compile``.

    Returns:
        (...), in nats.

    Raises:
        MatrixError: ``a`` is not square, empty, not finite, not symmetric, or not positive semi-definite.
        ValueError: alpha or ridge is below zero.

    Reference: Giraldo, Rao and Principe, IEEE Transactions on Information Theory 61(1), 2015; here in nats.
    """
    check_not_negative(ridge=ridge)
    return renyi_entropy_of(checked_symmetric(a, "a", validate), a, "a", alpha=alpha, ridge=ridge, validate=validate)


def renyi_entropy_of(
    full: Tensor, argument: Tensor, name: str, *, alpha: float, ridge: float = 0.0, validate: bool | None = None
) -> Tensor:
    """The Rényi entropy of a symmetric matrix in full precision; errors name ``argument``."""
    check_entropy_order(alpha)
    if alpha == 2:
        squared_norm, trace = norm_and_trace(full, ridge, full.shape[-1])
        check_purity(squared_norm, trace, argument, name, validate)
        return collision_entropy(squared_norm, trace)
    eigenvalues = torch.linalg.eigvalsh(full)
    check_positive_semidefinite(eigenvalues + ridge, argument, name, validate)
    return _eigenvalues.renyi_entropy(eigenvalues, alpha, ridge)


def norm_and_trace(a: Tensor, ridge: float, d: int) -> tuple[Tensor, Tensor]:
    """‖A'‖²_F and tr A', A' = A + μI of d x d, from ``a``, which is A or shares its eigenvalues but zeros.

    Both are of A' over the largest element of A or μ, a constant, so that squares neither overflow nor vanish.
    """
    largest = a.detach().abs().amax((-2, -1)).clamp_min(max(ridge, torch.finfo(a.dtype).tiny))
    mu, scaled = ridge / largest, a / largest[..., None, None]
    trace = scaled.diagonal(dim1=-2, dim2=-1).sum(-1)
    return scaled.square().sum((-2, -1)) + 2 * mu * trace + d * mu**2, trace + d * mu


def collision_entropy(squared_norm: Tensor, trace: Tensor) -> Tensor:
    """-log(‖A‖²_F / (tr A)²), 0 for the zero matrix."""
    zero = squared_norm == 0
    return 2 * torch.where(zero, 1.0, trace).log() - torch.where(zero, 1.0, squared_norm).log()


def _checked_eigenvalues(a: Tensor, ridge: float, validate: bool | None) -> Tensor:
    check_not_negative(ridge=ridge)
    eigenvalues = torch.linalg.eigvalsh(checked_symmetric(a, "a", validate))
    check_positive_semidefinite(eigenvalues + ridge, a, "a", validate)
    return eigenvalues
