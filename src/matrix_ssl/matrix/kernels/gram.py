"""Scaling and centring of Gram matrices (..., n, n)."""

from torch import Tensor

from matrix_ssl.matrix.numerics import kernel_checks, validation


def normalised_gram(gram: Tensor, *, validate: bool | None = None) -> Tensor:
    """K / tr K, with trace one: (..., n, n); MatrixError unless K is symmetric and its trace is above zero."""
    full = validation.checked_symmetric(gram, "gram", validate)
    trace = full.diagonal(dim1=-2, dim2=-1).sum(-1)
    kernel_checks.check_trace(trace, gram, "gram", validate)
    return full / trace[..., None, None]


def unit_diagonal(gram: Tensor, *, validate: bool | None = None) -> Tensor:
    """Kᵢⱼ / √(Kᵢᵢ Kⱼⱼ), with a diagonal of one: (..., n, n); MatrixError unless the diagonal is above zero."""
    full = validation.checked_symmetric(gram, "gram", validate)
    diagonal = full.diagonal(dim1=-2, dim2=-1)
    kernel_checks.check_diagonal(diagonal, gram, "gram", validate)
    root = diagonal.sqrt()
    return full / (root.unsqueeze(-1) * root.unsqueeze(-2))


def centred_gram(gram: Tensor, *, validate: bool | None = None) -> Tensor:
    """HKH, H = I - 11ᵀ/n: the kernel after subtracting the samples' mean in its feature space: (..., n, n).

    Its eigenvalues over n are those of the covariance in the kernel's feature space. A constant diagonal is lost, and
    with it the properties that ``information.joint_entropies`` gives for such kernels.
    """
    return centred(validation.checked_symmetric(gram, "gram", validate))


def centred(gram: Tensor) -> Tensor:
    """HKH of a symmetric matrix."""
    mean = gram.mean(-1, keepdim=True)
    return gram - mean - mean.mT + mean.mean(-2, keepdim=True)
