"""Entropies of two kernels of the same samples."""

import torch
from torch import Tensor

from matrix_ssl.matrix.entropy import renyi_entropy_of
from matrix_ssl.matrix.validation import check_same_width, checked_symmetric, coarser


def joint_entropy(k1: Tensor, k2: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Joint entropy of two kernels: the Rényi entropy of their Hadamard product, scaled to trace one.

    For kernels with a constant diagonal it is not below either entropy, for every alpha, and not above their sum for
    alpha = 0 and alpha = 1.

    Args:
        k1, k2: (..., n, n), symmetric positive semi-definite, of the same n samples.
        alpha: the order of the entropy, zero or above; 1 is the von Neumann entropy, 2 takes no eigenvalues.
        validate: whether to check values; by default on the CPU outside of ``torch.compile``.

    Returns:
        (...), in nats.

    Raises:
        MatrixError: a kernel is not square, empty, not finite or not symmetric, their product is not positive
            semi-definite, or the shapes do not fit.
        ValueError: alpha is below zero.

    Reference: Giraldo, Rao and Principe, IEEE Transactions on Information Theory 61(1), 2015.
    """
    first, second = _two_kernels(k1, k2, validate)
    return _joint_entropy(first, second, coarser(k1, k2), alpha, validate)


def mutual_information(k1: Tensor, k2: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """Mutual information S(K1) + S(K2) - S(K1, K2) of two kernels, S being the Rényi entropy.

    For kernels with a constant diagonal it is not above either entropy, for every alpha. It is not negative for alpha
    = 1, by the subadditivity of the von Neumann entropy, and alpha = 0; for other orders it can be negative. Kernels of
    independent factors, 11ᵀ ⊗ B and A ⊗ 11ᵀ, give zero.

    Args, raises as in ``joint_entropy``.

    Returns:
        (...), in nats.

    Reference: Giraldo, Rao and Principe, IEEE Transactions on Information Theory 61(1), 2015; Zhang et al., ICML
    2024, section 2.
    """
    first, second = _two_kernels(k1, k2, validate)
    entropy1 = renyi_entropy_of(first, k1, "k1", alpha=alpha, validate=validate)
    entropy2 = renyi_entropy_of(second, k2, "k2", alpha=alpha, validate=validate)
    return entropy1 + entropy2 - _joint_entropy(first, second, coarser(k1, k2), alpha, validate)


def _two_kernels(k1: Tensor, k2: Tensor, validate: bool | None) -> tuple[Tensor, Tensor]:
    first, second = checked_symmetric(k1, "k1", validate), checked_symmetric(k2, "k2", validate)
    check_same_width(k1, k2, "k1 and k2")
    return first, second


def _joint_entropy(first: Tensor, second: Tensor, dtype: torch.dtype, alpha: float, validate: bool | None) -> Tensor:
    product = first * second
    rounded = product.detach().to(dtype)  # the tolerance is that of the dtype that was passed
    return renyi_entropy_of(product, rounded, "k1 * k2", alpha=alpha, validate=validate)
