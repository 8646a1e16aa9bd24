"""Entropies of a symmetric positive semi-definite matrix and of two kernels of the same samples."""

import torch
from torch import Tensor

from matrix_ssl.matrix import _eigenvalues, validation


def matrix_entropy(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Matrix entropy ME(A) = -tr(A log A) + tr A, of A + ridge·I: (...), in nats plus the trace.

    Among matrices of trace one it is largest, log d + 1, at I/d and smallest, 1, at rank one. Its gradient, -log A, is
    infinite at a zero eigenvalue, which contributes none; see ``matrix_ssl.matrix`` for this, rounding and checks.

    Args:
        a: (..., d, d), symmetric positive semi-definite.
        ridge: μ ≥ 0.

    Raises:
        MatrixError: ``a`` is not symmetric or not positive semi-definite.

    Reference: Zhang et al., ICML 2024, definition 2.1.
    """
    return _eigenvalues.matrix_entropy(_checked_eigenvalues(a, ridge, validate), ridge)


def von_neumann_entropy(a: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Von Neumann entropy -tr(ρ log ρ) of ρ = A' / tr A', A' = A + ridge·I, in nats.

    Between 0 at rank one and log d at multiples of I, and ME(ρ) - 1. The zero matrix gives 0.
    Args, returns, raises as in ``matrix_entropy``.
    """
    return _eigenvalues.shannon_entropy(_checked_eigenvalues(a, ridge, validate), ridge)


def renyi_entropy(a: Tensor, *, alpha: float, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Rényi entropy log(tr ρ^alpha) / (1 - alpha) of ρ = A' / tr A', A' = A + ridge·I, in nats.

    Between 0 at rank one and log d at multiples of I; it does not increase with alpha. alpha = 1 is the limit, the
    von Neumann entropy; alpha = 0 the logarithm of the rank, without gradient; alpha = 2 is -log ‖ρ‖²_F and takes no
    eigenvalues; alpha = ∞ is -log of the largest eigenvalue of ρ. The zero matrix gives 0.

    Above alpha = 1 the derivative at a zero eigenvalue is finite and part of the gradient. Below, it is infinite and
    omitted. For alpha = 2 only ‖A‖_F ≤ tr A is checked, which positive semi-definiteness implies.

    Args, returns, raises as in ``matrix_entropy``; a ValueError for an ``alpha`` below zero, ``math.inf`` is allowed.

    Reference: Giraldo, Rao and Principe, IEEE Transactions on Information Theory 61(1), 2015; here in nats.
    """
    validation.check_not_negative(ridge=ridge)
    return renyi_entropy_of(
        validation.checked_symmetric(a, "a", validate), a, "a", alpha=alpha, ridge=ridge, validate=validate
    )


def joint_entropy(k1: Tensor, k2: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Joint entropy of two kernels: the Rényi entropy of their Hadamard product, scaled to trace one: (...), in nats.

    For kernels with a constant diagonal it is not below either entropy, for every alpha, and not above their sum for
    alpha = 0 and alpha = 1.

    Args:
        k1, k2: (..., n, n), symmetric positive semi-definite, of the same n samples.
        alpha: the order of the entropy, zero or above; 1 is the von Neumann entropy, 2 takes no eigenvalues.

    Raises:
        MatrixError: a kernel is not symmetric, their product not positive semi-definite, or the shapes do not fit.
        ValueError: alpha is below zero.

    Reference: Giraldo, Rao and Principe, IEEE Transactions on Information Theory 61(1), 2015.
    """
    first, second = _two_kernels(k1, k2, validate)
    return _joint_entropy(first, second, validation.coarser(k1, k2), alpha, validate)


def mutual_information(k1: Tensor, k2: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Mutual information S(K1) + S(K2) - S(K1, K2) of two kernels, S being the Rényi entropy.

    For kernels with a constant diagonal it is not above either entropy, for every alpha. It is not negative for alpha
    = 1, by the subadditivity of the von Neumann entropy, and alpha = 0; for other orders it can be negative. Kernels of
    independent factors, 11ᵀ ⊗ B and A ⊗ 11ᵀ, give zero. Args, returns, raises, reference as in ``joint_entropy``; and
    Zhang et al., ICML 2024, section 2.
    """
    first, second = _two_kernels(k1, k2, validate)
    entropy1 = renyi_entropy_of(first, k1, "k1", alpha=alpha, validate=validate)
    entropy2 = renyi_entropy_of(second, k2, "k2", alpha=alpha, validate=validate)
    return entropy1 + entropy2 - _joint_entropy(first, second, validation.coarser(k1, k2), alpha, validate)


def renyi_entropy_of(
    full: Tensor, argument: Tensor, name: str, *, alpha: float, ridge: float = 0.0, validate: bool | None = None
) -> Tensor:
    """The Rényi entropy of a symmetric matrix in full precision; errors name ``argument``."""
    validation.check_entropy_order(alpha)
    if alpha == 2:
        squared_norm, trace = norm_and_trace(full, ridge, full.shape[-1])
        validation.check_purity(squared_norm, trace, argument, name, validate)
        return collision_entropy(squared_norm, trace)
    eigenvalues = torch.linalg.eigvalsh(full)
    validation.check_positive_semidefinite(eigenvalues + ridge, argument, name, validate)
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
    validation.check_not_negative(ridge=ridge)
    eigenvalues = torch.linalg.eigvalsh(validation.checked_symmetric(a, "a", validate))
    validation.check_positive_semidefinite(eigenvalues + ridge, a, "a", validate)
    return eigenvalues


def _two_kernels(k1: Tensor, k2: Tensor, validate: bool | None) -> tuple[Tensor, Tensor]:
    first, second = validation.checked_symmetric(k1, "k1", validate), validation.checked_symmetric(k2, "k2", validate)
    validation.check_same_width(k1, k2, "k1 and k2")
    return first, second


def _joint_entropy(first: Tensor, second: Tensor, dtype: torch.dtype, alpha: float, validate: bool | None) -> Tensor:
    product = first * second
    rounded = product.detach().to(dtype)  # the tolerance is that of the dtype that was passed
    return renyi_entropy_of(product, rounded, "k1 * k2", alpha=alpha, validate=validate)
