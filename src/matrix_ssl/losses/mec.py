"""Maximum entropy coding (MEC): the coding length of the batch, by its Taylor series as published or exactly."""

from torch import Tensor

from matrix_ssl.losses.fused import fused, nothing
from matrix_ssl.losses.logarithm.trace import log_det_one_plus, taylor_coefficients, trace_polynomial
from matrix_ssl.losses.objective import MEC_DEFAULTS, Logarithm, MECObjective
from matrix_ssl.losses.rows import check_rows, pull_back, unit_rows
from matrix_ssl.matrix.numerics.precision import full_precision
from matrix_ssl.matrix.numerics.validation import check_real


def mec_loss(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    distortion: float = MEC_DEFAULTS.distortion,
    logarithm: Logarithm = MEC_DEFAULTS.logarithm,
    order: int = MEC_DEFAULTS.order,
) -> Tensor:
    """Maximum entropy coding (MEC): -s·log det(I + p zᵀ / s) / n, averaged over both orders, with uncentred rows.

    s = n · distortion / d is the paper's λ⁻¹, with n the size of the whole batch over all processes. The published loss
    truncates log(I + X) after ``order`` terms of its Taylor series; at order 1 it is SimSiam's negative cosine
    similarity. ``logarithm="exact"`` uses log |det|. Value and gradient are computed together, with n x n or d x d
    matrices, whichever are smaller. The result is a scalar in nats that can be differentiated once, with respect to all
    four outputs.

    Args:
        z1, z2: (n, d), student outputs of the two views.
        p1, p2: (n, d), teacher outputs of the two views.
        distortion: ε > 0, ``eps`` of the published code, there the square of a decoding error; the default is the
            published value after warm-up.
        logarithm: ``"taylor"`` as published, or ``"exact"``.
        order: number of Taylor terms, at least 1; used with ``"taylor"`` only.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; a number is out of its range; a name is unknown.

    Reference: Liu et al., NeurIPS 2022, equations 4 and 6, https://arxiv.org/abs/2210.11464.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import mec_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> p1, p2 = torch.randn(2, 64, 16)
        >>> mec_loss(z1, z2, p1, p2).backward()
    """
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    objective = MECObjective(distortion, logarithm, order)
    n, d = z1.shape
    constants = (n * objective.distortion / d, objective.logarithm, objective.order)
    return (_mec_order_loss(p1, z2, *constants)[0] + _mec_order_loss(p2, z1, *constants)[0]) / 2


def mec_moment_loss(moment: Tensor, *, samples: int, objective: MECObjective = MEC_DEFAULTS) -> Tensor:
    """One order of ``mec_loss`` from the second moment, which several processes can sum instead of gathering rows.

    ``mec_loss`` is the mean over (p1, z2) and (p2, z1).

    Args:
        moment: (d, d), pᵀz, summed over the rows of the whole batch, with rows scaled to length one.
        samples: n, the number of these rows.
        objective: constants of the loss, the keyword arguments of ``mec_loss``.

    Raises:
        ValueError: the moment is not (d, d); there are no samples.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import mec_moment_loss, unit_rows
        >>> p, z = torch.randn(64, 16), torch.randn(64, 16, requires_grad=True)
        >>> mec_moment_loss(unit_rows(p).T @ unit_rows(z), samples=64).backward()
    """
    check_real(moment, "moment")
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or moment.shape[0] < 1:
        raise ValueError(f"Expected a moment of shape (d, d), got {tuple(moment.shape)}.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    scale = samples * objective.distortion / len(moment)
    return _mec_moment_loss(moment, samples, scale, objective.logarithm, objective.order)[0]


@fused(tensors=2, values=1)
def _mec_order_loss(
    p: Tensor, z: Tensor, scale: float, logarithm: str, order: int, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    a, b = unit_rows(p), unit_rows(z)
    n, d = a.shape
    if n < d:
        value, gradient = _coding_length(b @ a.mT, n, scale, logarithm, order)
        by_p = pull_back(gradient.mT @ b, p) if needed[0] else nothing(p)
        by_z = pull_back(gradient @ a, z) if needed[1] else nothing(z)
    else:
        value, gradient = _coding_length(a.mT @ b, n, scale, logarithm, order)
        by_p = pull_back(b @ gradient.mT, p) if needed[0] else nothing(p)
        by_z = pull_back(a @ gradient, z) if needed[1] else nothing(z)
    return value, by_p, by_z


@fused(tensors=1, values=1)
def _mec_moment_loss(
    moment: Tensor, samples: int, scale: float, logarithm: str, order: int, needed: list[bool]
) -> tuple[Tensor, Tensor]:
    value, gradient = _coding_length(full_precision(moment), samples, scale, logarithm, order)
    return value, gradient if needed[0] else nothing(moment)


def _coding_length(x: Tensor, n: int, scale: float, logarithm: str, order: int) -> tuple[Tensor, Tensor]:
    """-scale/n · log det(I + X/scale) and its gradient by X; the determinant is the same for p zᵀ, z pᵀ and pᵀz."""
    if logarithm == "exact":
        value, gradient, _ = log_det_one_plus(x / scale)
    else:
        value, gradient = trace_polynomial(x / scale, taylor_coefficients(order))
    return value * (-scale / n), gradient / -n
