"""The Matrix-SSL and maximum-entropy-coding losses as pure functions of a whole batch.

Every loss takes raw outputs (n, d): student ``z1, z2`` (after the predictor) and teacher ``p1, p2``, and l2-normalises
their rows itself. It never communicates: under several processes gather the batch first (``matrix_ssl.distributed``).
Half precision is computed in float32 with autocast off. The teacher may carry a gradient; detach it if it must not.

With J = I - 11ᵀ/n, C(a, b) = aᵀ J b / n and ridge μ the two terms of one order (p, z) are

    uniformity(p, z) = -weight · tr log(C(p, z) + μI)              = matrix cross-entropy of weight·I, up to its trace
    alignment(p, z)  = -tr[(C(p, p) + μI) log(C(z, z) + μI)]       = matrix cross-entropy, up to its trace

and a loss is the mean of the orders (p2, z1) and (p1, z2), alignment weighted.

References:
    Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024, section 4.
    Liu, Wang, Li and Li, "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022, equations 4 and 6.
"""

import math
import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.matrix import log1p_ratio, matrix_log

Logarithm = Literal["exact", "taylor"]


class NegativeDeterminantWarning(UserWarning):
    """det(C(p, z) + ridge·I) < 0: the branches are anti-correlated beyond the ridge, tr log is not defined there."""


class MatrixSSLTerms(NamedTuple):
    """The parts of a loss, each the mean over both orders, without gradient weights applied."""

    uniformity: Tensor  # (), includes its own weight
    alignment: Tensor  # (), not yet multiplied by alignment_weight
    negative_determinants: Tensor  # (), 0 to 2: orders whose cross-covariance plus ridge has a negative determinant


def matrix_ssl_loss(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    ridge: float = 0.1,
    uniformity_weight: float = 0.1,
    alignment_weight: float = 1.0,
    logarithm: Logarithm = "exact",
    order: int = 4,
) -> Tensor:
    """Matrix-SSL: matrix uniformity plus ``alignment_weight`` times matrix alignment.

    ``logarithm="taylor"`` with ridge = uniformity_weight = 0.5 (the published script) or 1 (its README) is the
    objective that the paper's models were trained with: log X is cut after ``order`` terms of its series about I.
    The series converges only for eigenvalues in (-ridge, 2 - ridge); ``"exact"`` needs no such condition.

    Above ridge 1 the determinant inside the uniformity term is positive, since no singular value of C(p, z) exceeds 1.
    Below, it turns negative when the branches are anti-correlated beyond the ridge; the value is then log |det|, whose
    gradient is not to be trusted. On the CPU that raises a warning; ``matrix_ssl_terms`` counts it on every device.

    Args:
        z1, z2: (n, d), student outputs of the two views.
        p1, p2: (n, d), teacher outputs of the two views.
        ridge: μ > 0, added to every covariance.
        uniformity_weight: λ ≥ 0, the multiple of I whose cross-entropy the uniformity term is.
        alignment_weight: γ ≥ 0.
        logarithm: ``"exact"``, or ``"taylor"`` for the published approximation.
        order: number of Taylor terms; used with ``"taylor"`` only.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; ridge is not positive; order is below 1.

    Warns:
        NegativeDeterminantWarning: see above.

    Reference: Zhang et al., ICML 2024, equations 12 to 14, with the constants of the published code.
    """
    terms = matrix_ssl_terms(
        z1, z2, p1, p2, ridge=ridge, uniformity_weight=uniformity_weight, logarithm=logarithm, order=order
    )
    _warn_if_negative(terms.negative_determinants, ridge)
    return terms.uniformity + alignment_weight * terms.alignment


def matrix_ssl_terms(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    ridge: float,
    uniformity_weight: float,
    logarithm: Logarithm = "exact",
    order: int = 4,
) -> MatrixSSLTerms:
    """The two terms of ``matrix_ssl_loss`` apart, with the count of negative determinants; arguments as there."""
    _check(z1, z2, p1, p2, ridge=ridge)
    if logarithm not in ("exact", "taylor"):
        raise ValueError(f"logarithm must be 'exact' or 'taylor', got {logarithm!r}")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    with torch.autocast(z1.device.type, enabled=False):
        b1, b2, a1, a2 = (_centred_rows(x) for x in (z1, z2, p1, p2))
        pairs = ((a2, b1), (a1, b2))
        if logarithm == "taylor":
            uniformity = [-uniformity_weight * _taylor_trace_log(a.mT @ b, ridge, order) for a, b in pairs]
            alignment = [_taylor_alignment(a, b, ridge, order) for a, b in pairs]
            return MatrixSSLTerms(_mean(uniformity), _mean(alignment), torch.zeros((), device=z1.device))
        log_dets = [_log_det(a, b, ridge) for a, b in pairs]
        uniformity = [-uniformity_weight * value for value, _ in log_dets]
        alignment = [_alignment(a, b, ridge) for a, b in pairs]
        return MatrixSSLTerms(_mean(uniformity), _mean(alignment), _count_negative(log_dets))


def matrix_ssl_paper_loss(
    z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, *, ridge: float = 0.1, alignment_weight: float = 1.0
) -> Tensor:
    """The paper's objective with its constants, all logarithms exact.

    The mean over the orders (p2, z1) and (p1, z2) of

        MCE(I/d, C(p, z) + ridge·I) + alignment_weight · MCE(C(p, p) + ridge·I, C(z, z) + ridge·I)

    where MCE(P, Q) = tr(-P log Q + Q). It differs from ``matrix_ssl_loss`` by uniformity_weight = 1/d and by the two
    traces, whose gradient the published code drops.

    Args, raises and warns as in ``matrix_ssl_loss``.

    Returns:
        A scalar, in nats.

    Reference: Zhang et al., ICML 2024, equations 12 to 14.
    """
    _check(z1, z2, p1, p2, ridge=ridge)
    d = z1.shape[1]
    with torch.autocast(z1.device.type, enabled=False):
        b1, b2, a1, a2 = (_centred_rows(x) for x in (z1, z2, p1, p2))
        pairs = ((a2, b1), (a1, b2))
        log_dets = [_log_det(a, b, ridge) for a, b in pairs]
        uniformity = [(a * b).sum() + d * ridge - v / d for (a, b), (v, _) in zip(pairs, log_dets, strict=True)]
        alignment = [_alignment(a, b, ridge) + b.square().sum() + d * ridge for a, b in pairs]
        _warn_if_negative(_count_negative(log_dets), ridge)
        return _mean(uniformity) + alignment_weight * _mean(alignment)


def mec_loss(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, *, distortion: float = 64.0, order: int = 4) -> Tensor:
    """Maximum entropy coding (MEC): the Taylor series of -s·log det(I + p zᵀ / s) / n, rows uncentred.

    s = n · distortion / d is the paper's λ⁻¹, with n the size of the whole batch over all processes.

    Args:
        z1, z2: (n, d), student outputs of the two views.
        p1, p2: (n, d), teacher outputs of the two views.
        distortion: ε > 0, called ε_d² / d there; 64 is the published value after warm-up.
        order: number of Taylor terms, at least 1.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; distortion is not positive; order is below 1.

    Reference: Liu et al., NeurIPS 2022, equations 4 and 6.
    """
    _check(z1, z2, p1, p2, ridge=distortion)
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    n, d = z1.shape
    scale = n * distortion / d
    with torch.autocast(z1.device.type, enabled=False):
        b1, b2, a1, a2 = (_unit_rows(x) for x in (z1, z2, p1, p2))
        codes = [(a @ b.mT if n <= d else a.mT @ b) / scale for a, b in ((a1, b2), (a2, b1))]
        return -scale / n * _mean([_taylor_trace_log(code, 1.0, order) for code in codes])


def _unit_rows(x: Tensor) -> Tensor:
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return F.normalize(x, dim=1)


def _centred_rows(x: Tensor) -> Tensor:
    """Normalised rows minus their mean, over √n, so that C(a, b) is the product of two of these."""
    rows = _unit_rows(x)
    return (rows - rows.mean(0)) / math.sqrt(len(rows))


def _log_det(a: Tensor, b: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """log |det(aᵀb + ridge·I)| and the sign, on the smaller of n and d (Sylvester's identity)."""
    n, d = a.shape
    product = b @ a.mT if n < d else a.mT @ b
    # d log(ridge) reaches -1400 at d = 2048 and would cost float32 digits inside the factorisation: added at the end
    sign, value = torch.linalg.slogdet(torch.eye(len(product), dtype=b.dtype, device=b.device) + product / ridge)
    return value + d * math.log(ridge), sign


def _alignment(a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """-tr[(aᵀa + ridge·I) log(bᵀb + ridge·I)] on the smaller of n and d."""
    n, d = b.shape
    if n < d:
        gram, cross = b @ b.mT, b @ a.mT
        weights = cross @ cross.mT + ridge * gram
        return -math.log(ridge) * (a.square().sum() + ridge * d) - (weights * log1p_ratio(gram, ridge)).sum()
    identity = ridge * torch.eye(d, dtype=b.dtype, device=b.device)
    return -((a.mT @ a + identity) * matrix_log(b.mT @ b + identity)).sum()


def _taylor_log(x: Tensor, order: int) -> Tensor:
    """Σ_{k ≤ order} (-1)^(k+1) xᵏ/k by Horner's rule: the series of log(I + x)."""
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    total = identity * ((-1) ** (order + 1) / order)
    for k in range(order - 1, 0, -1):
        total = x @ total + identity * ((-1) ** (k + 1) / k)
    return x @ total


def _taylor_trace_log(c: Tensor, ridge: float, order: int) -> Tensor:
    shifted = c + (ridge - 1) * torch.eye(len(c), dtype=c.dtype, device=c.device)
    return _taylor_log(shifted, order).trace()


def _taylor_alignment(a: Tensor, b: Tensor, ridge: float, order: int) -> Tensor:
    identity = torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
    return -((a.mT @ a + ridge * identity) * _taylor_log(b.mT @ b + (ridge - 1) * identity, order)).sum()


def _mean(pair: list[Tensor]) -> Tensor:
    return (pair[0] + pair[1]) / 2


def _count_negative(log_dets: list[tuple[Tensor, Tensor]]) -> Tensor:
    return sum((sign < 0).float() for _, sign in log_dets)  # type: ignore[return-value]


def _warn_if_negative(count: Tensor, ridge: float) -> None:
    if count.device.type == "cpu" and not torch.compiler.is_compiling() and count > 0:  # free here, a sync elsewhere
        warnings.warn(
            f"det(C(p, z) + {ridge:g}·I) is negative: student and teacher are anti-correlated beyond the ridge and the "
            f"uniformity term is not to be trusted; use a larger ridge.",
            NegativeDeterminantWarning,
            stacklevel=3,
        )


def _check(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, *, ridge: float) -> None:
    shapes = [tuple(x.shape) for x in (z1, z2, p1, p2)]
    if len(set(shapes)) > 1 or z1.ndim != 2 or z1.shape[0] < 2 or z1.shape[1] < 1:
        raise ValueError(f"expected z1, z2, p1, p2 of one shape (n, d) with n ≥ 2, got {shapes}")
    if not ridge > 0:
        raise ValueError(f"the ridge (or distortion) must be above zero, got {ridge}")
