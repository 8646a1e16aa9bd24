"""Matrix cross-entropy and divergence of two symmetric positive semi-definite matrices."""

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics import validation
from matrix_ssl.matrix.spectra import spectral_entropies
from matrix_ssl.matrix.spectra.matrix_functions import trace_of_logarithm


def matrix_cross_entropy(p: Tensor, q: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Matrix cross-entropy MCE(P, Q) = tr(-P log Q + Q), of P + ridge·I and Q + ridge·I: (...).

    For a fixed P its minimum is ME(P), at Q = P. It is +inf where Q is singular and P does not vanish along an
    eigenvector of a zero eigenvalue of Q, and finite otherwise. An eigenvalue of Q counts as zero below 2 ε √d times
    the largest, and P as zero below 2 ε √d times its Frobenius norm, with the ε of the dtype. Directions in which Q is
    zero contribute no gradient except that of tr Q. Computed in float64, because a logarithm in float32 is off by 1e-7
    times the condition number.

    Args:
        p: (..., d, d), symmetric positive semi-definite, which is not checked: its eigenvalues are not computed.
        q: (..., d, d), symmetric positive semi-definite; leading dimensions are broadcast.
        ridge: μ ≥ 0, added to both.

    Raises:
        MatrixError: an argument is not symmetric, ``q`` is not positive semi-definite, or the shapes do not fit.

    Reference: Zhang et al., ICML 2024, definition 2.3.
    """
    validation.check_ridge(ridge)
    p_full, q_full = validation.checked_symmetric(p, "p", validate), validation.checked_symmetric(q, "q", validate)
    validation.check_same_width(p, q, "p and q")
    value, eigenvalues = cross_entropy_of(p_full.double(), q_full.double(), ridge, validation.coarser(p_full, q_full))
    validation.check_positive_semidefinite(eigenvalues + ridge, q, "q", validate)
    return value.to(torch.promote_types(p_full.dtype, q_full.dtype))


def matrix_kl(p: Tensor, q: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """Matrix Kullback-Leibler divergence MKL(P‖Q) = tr(P log P - P log Q - P + Q), of P + ridge·I and Q + ridge·I.

    Equals MCE(P, Q) - ME(P). It is non-negative up to rounding, and zero only at P = Q. Like the cross-entropy, it is
    +inf where the support of P does not lie within that of Q, with the same tolerance. Arguments, return value and
    errors are those of ``matrix_cross_entropy``, except that ``p`` must be positive semi-definite, too.

    Reference: Zhang et al., ICML 2024, definition 2.2.
    """
    validation.check_ridge(ridge)
    p_full, q_full = validation.checked_symmetric(p, "p", validate), validation.checked_symmetric(q, "q", validate)
    validation.check_same_width(p, q, "p and q")
    value, of_p, of_q = kl_of(p_full.double(), q_full.double(), ridge, validation.coarser(p_full, q_full))
    validation.check_positive_semidefinite(of_p + ridge, p, "p", validate)
    validation.check_positive_semidefinite(of_q + ridge, q, "q", validate)
    return value.to(torch.promote_types(p_full.dtype, q_full.dtype))


def cross_entropy_of(p: Tensor, q: Tensor, ridge: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cross-entropy of symmetric, unchecked p and q, and the eigenvalues of q; ``dtype`` as in ``zero_level``."""
    value, eigenvalues, *_ = trace_of_logarithm(p, q, ridge, dtype)
    return q.diagonal(dim1=-2, dim2=-1).sum(-1) + q.shape[-1] * ridge - value, eigenvalues


def kl_of(p: Tensor, q: Tensor, ridge: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The divergence as ``cross_entropy_of``, and the eigenvalues of p and of q."""
    cross_entropy, of_q = cross_entropy_of(p, q, ridge, dtype)
    of_p = torch.linalg.eigvalsh(p)
    return cross_entropy - spectral_entropies.matrix_entropy(of_p, ridge, dtype), of_p, of_q
