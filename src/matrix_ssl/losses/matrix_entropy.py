"""The matrix entropy loss: make each view's own covariance as uniform as possible, and the views of an image alike.

With unit rows, not centred, C = zᵀz / n has trace one, and MKL(C ‖ I/d) = log d - S(C): the entropy S is the uniformity
of Matrix-SSL with its arguments exchanged. The non-zero eigenvalues of C are those of zzᵀ / n, so the smaller of the
two matrices is used. A kernel k can replace the inner product in the latter: S is then the entropy of the covariance
operator of the rows in the kernel's feature space.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from matrix_ssl.losses import density
from matrix_ssl.losses.fused import fused, nothing
from matrix_ssl.losses.rows import check_rows, pull_back, symmetric_product, unit_rows
from matrix_ssl.matrix.numerics.precision import full_precision
from matrix_ssl.matrix.numerics.validation import check_constant, check_not_negative, check_real

ALIGNMENT_WEIGHT = 4.0  # chosen on held-out images of CIFAR-10 (LOG.md)


class MatrixEntropyTerms(NamedTuple):
    """A loss and its parts. Only the loss has a gradient."""

    loss: Tensor  # (), minus the entropy minus alignment_weight times the cosine
    entropy: Tensor  # (), mean of the two views, in nats
    cosine: Tensor  # (), mean over the images of the cosine of their two views


def matrix_entropy_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    alignment_weight: float = ALIGNMENT_WEIGHT,
    order: float = 1.0,
    width: float = 0.0,
) -> Tensor:
    """Matrix entropy: -½ [S(C₁) + S(C₂)] - alignment_weight · mean cos(z₁, z₂), with C = zᵀz / n of unit rows.

    S is the Rényi entropy of order α, log(tr C^α) / (1 - α), and at α = 1 the von Neumann entropy -tr(C log C). The
    linear form at order 1 is the loss of VNE (Kim et al.); order 2, -log ‖C‖²_F, is the entropy of FroSSL (Skean et
    al.), whose code for two views scales columns instead of rows.

    Value and gradient are computed together, with n x n or d x d matrices, whichever are smaller; no eigenvector is
    differentiated, and for each output one tensor of its size is saved. Whole orders from 2 upwards (on the CPU, up to
    8) take α - 2 matrix products, the others an eigendecomposition; order 1 uses a quadrature on devices other than the
    CPU, which avoids waiting for them. Where C is singular, the gradient, 2/n times the rows times the slope of S at C,
    tends to zero in the missing directions for α > ½; eigenvalues below ε of the largest are rounding and get the slope
    of that level. The relative error of the gradient is about √ε where eigenvalues of that size matter, and rounding
    otherwise.

    Args:
        z1, z2: (n, d), outputs for the two views; rows are scaled to length one here.
        alignment_weight: w ≥ 0; with a kernel a smaller weight suffices, about 2 at a width of 0.5.
        order: order α > 0 of the entropy.
        width: width τ > 0 of the kernel exp((⟨a, b⟩ - 1) / τ) that replaces ⟨a, b⟩; 0 for ⟨a, b⟩ itself.

    Returns:
        A scalar, in nats; it can be differentiated once, with respect to both outputs.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; a number is out of its range.

    References:
        Kim, Kang, Hwang, Shin and Rhee, "VNE: An Effective Method for Improving Deep Representation by Manipulating
        Eigenvalue Distribution", CVPR 2023, https://arxiv.org/abs/2304.01434.
        Skean, Dhakal, Jacobs and Sanchez Giraldo, "FroSSL: Frobenius Norm Minimization for Efficient Multiview
        Self-Supervised Learning", ECCV 2024, https://arxiv.org/abs/2310.02903.
        Sanchez Giraldo, Rao and Principe, IEEE Transactions on Information Theory 61(1), 2015 (entropies of kernels).

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import matrix_entropy_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> matrix_entropy_loss(z1, z2).backward()
    """
    return matrix_entropy_terms(z1, z2, alignment_weight=alignment_weight, order=order, width=width).loss


def matrix_entropy_terms(
    z1: Tensor,
    z2: Tensor,
    *,
    alignment_weight: float = ALIGNMENT_WEIGHT,
    order: float = 1.0,
    width: float = 0.0,
) -> MatrixEntropyTerms:
    """``matrix_entropy_loss`` with its parts; arguments and errors are the same.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import matrix_entropy_terms
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> terms = matrix_entropy_terms(z1, z2, width=0.5)
        >>> terms.loss.backward()
    """
    check_rows(z1=z1, z2=z2)
    check_constants(alignment_weight, order, width)
    return MatrixEntropyTerms(*_matrix_entropy(z1, z2, alignment_weight, order, width))


def view_entropy(z: Tensor, *, order: float = 1.0, width: float = 0.0) -> Tensor:
    """The entropy of one view, for splitting views among processes; arguments are those of ``matrix_entropy_loss``."""
    check_rows(z=z)
    check_constants(0.0, order, width)
    return _view_entropy(z, order, width)[0]


def covariance_entropy(covariance: Tensor, *, order: float = 1.0) -> Tensor:
    """The entropy of one view from C, which several processes can sum instead of gathering rows.

    Args:
        covariance: (d, d), zᵀz / n of rows of length one, symmetric positive semi-definite; it is divided by its trace.
        order: α > 0.

    Raises:
        ValueError: the covariance is not (d, d); the order is out of its range.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import covariance_entropy, unit_rows
        >>> z = unit_rows(torch.randn(64, 16, requires_grad=True))
        >>> covariance_entropy(z.T @ z / 64).backward()
    """
    check_real(covariance, "covariance")
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or covariance.shape[0] < 1:
        raise ValueError(f"Expected a covariance of shape (d, d), got {tuple(covariance.shape)}.")
    check_constants(0.0, order, 0.0)
    return _covariance_entropy(covariance, order)[0]


def check_constants(alignment_weight: float, order: float, width: float) -> None:
    """Raises ValueError where a constant of ``matrix_entropy_loss`` is out of its range."""
    check_constant(alignment_weight=alignment_weight, width=width)
    check_not_negative(alignment_weight=alignment_weight, width=width)
    density.check_order(order)


@fused(tensors=2, values=3)
def _matrix_entropy(
    z1: Tensor, z2: Tensor, alignment_weight: float, order: float, width: float, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = len(z1)
    a, b = unit_rows(z1), unit_rows(z2)
    cosine = torch.linalg.vecdot(a, b).mean()
    entropies, gradients = [], []
    for rows, partner, z, is_needed in ((a, b, z1, needed[0]), (b, a, z2, needed[1])):
        value, by_rows = _entropy_of_rows(rows, order, width, is_needed)
        entropies.append(value)
        if by_rows is None:
            gradients.append(nothing(z))
        else:
            gradients.append(pull_back(by_rows.mul_(-0.5).sub_(partner, alpha=alignment_weight / n), z))
    entropy = (entropies[0] + entropies[1]) / 2
    return -entropy - alignment_weight * cosine, entropy, cosine, gradients[0], gradients[1]


@fused(tensors=1, values=1)
def _view_entropy(z: Tensor, order: float, width: float, needed: list[bool]) -> tuple[Tensor, Tensor]:
    value, by_rows = _entropy_of_rows(unit_rows(z), order, width, needed[0])
    return value, nothing(z) if by_rows is None else pull_back(by_rows, z)


@fused(tensors=1, values=1)
def _covariance_entropy(covariance: Tensor, order: float, needed: list[bool]) -> tuple[Tensor, Tensor]:
    c = full_precision(covariance)
    c = (c + c.mT) / 2
    value, slope = density.entropy(c, order)
    trace = c.trace().clamp_min(torch.finfo(c.dtype).tiny)  # for the zero matrix, too
    slope.diagonal().sub_(torch.linalg.vecdot(slope, c).sum() / trace)  # the entropy does not depend on the trace
    return value, slope if needed[0] else nothing(covariance)


def _entropy_of_rows(rows: Tensor, order: float, width: float, needed: bool) -> tuple[Tensor, Tensor | None]:
    """The entropy of unit rows (n, d), and its gradient by them up to multiples of each row."""
    n, d = rows.shape
    if width == 0 and n >= d:
        value, slope = density.entropy(symmetric_product(rows.mT, rows.mT).div_(n), order)
        return value, (rows @ slope).mul_(2 / n) if needed else None
    matrix = symmetric_product(rows, rows)
    if width > 0:
        matrix.sub_(1).div_(width).exp_()
    value, slope = density.entropy(matrix.div_(n), order)
    if not needed:
        return value, None
    if width == 0:
        return value, (slope @ rows).mul_(2 / n)
    return value, (slope.mul_(matrix) @ rows).mul_(2 / width)  # k' = k / width, and the matrix is k / n
