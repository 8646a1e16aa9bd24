"""Rényi entropy of a density matrix, a symmetric positive semi-definite matrix divided by its trace, and its gradient.

With ρ = A / tr A of eigenvalues p, and α the order,

    S_α(ρ) = log(tr ρ^α) / (1 - α),     dS_α = <α / (1 - α) · ρ^(α-1) / tr ρ^α, dρ>
    S_1(ρ) = -tr(ρ log ρ),              dS_1 = <-log ρ, dρ>

up to a multiple of I, which does not matter to changes that keep the trace. ρ^(α-1) and log ρ are functions of ρ
itself, so no eigenvector is differentiated and equal eigenvalues do no harm. They are computed by

    powers        for whole orders: α - 2 matrix products
    resolvents    for order 1 where an eigendecomposition would make the device wait (``logarithm.resolvents``)
    eigh          otherwise

A polynomial approximation of the logarithm would need a lower end of the spectrum, which a covariance without a ridge
does not have. 0 log 0 counts as 0. Up to order 1 the derivative at zero is infinite. Eigenvalues under ε of the
largest, or for resolvents under ``zero_level``, are rounding and have the derivative of that level. For orders below 1,
to whose value they would contribute as well, those under ``zero_level`` do not count at all.
"""

from typing import Literal

import torch
from torch import Tensor

from matrix_ssl.losses.logarithm import resolvents
from matrix_ssl.losses.logarithm.resolvents import zero_level
from matrix_ssl.losses.rows import symmetric_product
from matrix_ssl.matrix.numerics.validation import check_constant, check_positive

Algorithm = Literal["powers", "resolvents", "eigh"]

_MOST_POWERS = 8  # an eigendecomposition costs 9 symmetric products of the same size on a CPU in float32
_NEAR_ONE = 0.25  # orders this close to 1 are computed without the cancellation in tr ρ^α - 1


def choose(order: float, device: str) -> Algorithm:
    """The algorithm for the entropy of an order on a type of device, chosen without looking at the matrix."""
    if order == int(order) and order >= 2 and (order <= _MOST_POWERS or device != "cpu"):
        return "powers"
    return "resolvents" if order == 1 and device != "cpu" else "eigh"


def entropy(a: Tensor, order: float, algorithm: Algorithm | None = None) -> tuple[Tensor, Tensor]:
    """S_α(A / tr A), (), in nats, and its gradient with respect to A up to a multiple of I, (m, m).

    Args:
        a: (m, m), symmetric positive semi-definite, in float32 or float64.
        order: α > 0.
        algorithm: by default that of ``choose``.
    """
    trace = a.trace()
    empty = trace <= 0
    scale = torch.where(empty, 1.0, trace)
    rho = a / scale
    rho[0, 0] += empty  # replaces the zero matrix by one of rank one, whose entropy is 0
    chosen = algorithm or choose(order, a.device.type)
    if chosen == "powers":
        value, slope = _by_powers(rho, int(order))
    elif chosen == "resolvents":
        value, slope = _by_resolvents(rho)
    elif a.device.type == "cpu" and not torch.isfinite(trace):
        return torch.full_like(trace, torch.nan), torch.full_like(a, torch.nan)  # LAPACK would raise an error
    else:
        value, slope = _by_eigenvalues(rho, order)
    return value, slope.div_(scale)


def _by_powers(rho: Tensor, order: int) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.matrix_norm(rho)
    scaled = rho / norm
    power, size = (
        scaled.clone(),
        torch.zeros_like(norm),
    )  # of norm one, times exp(size), so that it does not underflow
    for _ in range(order - 2):
        power = symmetric_product(power, scaled)
        length = torch.linalg.matrix_norm(power)
        power, size = power.div_(length), size + length.log()
    total = torch.linalg.vecdot(power, scaled).sum()
    value = (order * norm.log() + size + total.log()) / (1 - order)
    return value, power.mul_(order / (1 - order) / (total * norm))


def _by_resolvents(rho: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.matrix_norm(rho)  # not below the largest eigenvalue
    log = resolvents.logarithm(rho / norm)
    log.diagonal().add_(norm.log())
    return -torch.linalg.vecdot(rho, log).sum(), log.neg_()


def _by_eigenvalues(rho: Tensor, order: float) -> tuple[Tensor, Tensor]:
    eigenvalues, vectors = torch.linalg.eigh(rho)
    largest = eigenvalues[-1]
    level = largest * (zero_level(len(rho), rho.dtype) if order < 1 else torch.finfo(rho.dtype).eps)
    p = torch.where(eigenvalues > (level if order < 1 else 0), eigenvalues, 0.0)
    log = eigenvalues.clamp_min(level).log()
    if order == 1:
        value, slope = -torch.xlogy(p, p).sum(), -log
    elif abs(order - 1) < _NEAR_ONE:
        change = torch.expm1((order - 1) * log)  # p^(α-1) - 1: the 1 only adds a multiple of I
        excess = (p * change).sum()  # tr ρ^α - 1
        value, slope = torch.log1p(excess) / (1 - order), change * (order / (1 - order) / (1 + excess))
    else:
        powers = ((order - 1) * (log - largest.log())).exp()
        total = (p / largest * powers).sum()
        value = (order * largest.log() + total.log()) / (1 - order)
        slope = powers * (order / (1 - order) / (total * largest))
    if order < 1:
        slope = torch.where(p > 0, slope, 0.0)  # it diverges towards zero
    return value, symmetric_product(vectors * slope, vectors)


def check_order(order: float) -> None:
    """Raises ValueError unless the order is a finite number above zero."""
    check_constant(order=order)
    check_positive(order=order)
