"""The published Matrix-SSL objective in the form it was published in: dense matrices, series, automatic derivatives.

It is here to be measured against, and to be read. J = I - 11ᵀ/n is a dense n x n matrix, every covariance and every
power of the series is a dense d x d matrix, each power is one more product. The teacher carries no gradient.

With unit rows, C(a, b) = aᵀ J b / n, ridge μ and log cut after ``order`` terms of its series about I:

    uniformity(p, z) = -tr[weight·I log(C(p, z) + μI)]
    alignment(p, z)  = -tr[(C(p, p) + μI) log(C(z, z) + μI)]
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def order_terms(
    p: Tensor, z: Tensor, *, ridge: float, uniformity_weight: float, order: int = 4
) -> tuple[Tensor, Tensor]:
    """Uniformity and alignment of one order: teacher outputs p and student outputs z, (n, d) each."""
    n, d = z.shape
    p, z = F.normalize(p.detach(), dim=1), F.normalize(z, dim=1)
    centring = torch.eye(n, dtype=z.dtype) - torch.ones(n, n, dtype=z.dtype) / n
    identity = torch.eye(d, dtype=z.dtype)

    def covariance(a: Tensor, b: Tensor) -> Tensor:
        return a.mT @ centring @ b / n + ridge * identity

    uniformity = cross_entropy(uniformity_weight * identity, covariance(p, z), order=order)
    alignment = cross_entropy(covariance(p, p), covariance(z, z), order=order)
    return uniformity, alignment


def order_loss(p: Tensor, z: Tensor, *, ridge: float, uniformity_weight: float, order: int = 4) -> Tensor:
    """Uniformity plus alignment of one order."""
    uniformity, alignment = order_terms(p, z, ridge=ridge, uniformity_weight=uniformity_weight, order=order)
    return uniformity + alignment


def loss(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    ridge: float = 0.5,
    uniformity_weight: float = 0.5,
    alignment_weight: float = 1.0,
    order: int = 4,
) -> Tensor:
    """The mean of the orders (p2, z1) and (p1, z2), alignment weighted."""
    settings = {"ridge": ridge, "uniformity_weight": uniformity_weight}
    first, second = (order_terms(p, z, order=order, **settings) for p, z in ((p2, z1), (p1, z2)))
    return (first[0] + second[0]) / 2 + alignment_weight * (first[1] + second[1]) / 2


def cross_entropy(p: Tensor, q: Tensor, *, order: int) -> Tensor:
    """-tr(P log Q) with the series."""
    return -(p @ taylor_log(q, order=order)).trace()


def taylor_log(q: Tensor, *, order: int) -> Tensor:
    """Σ_{k ≤ order} (-1)^(k+1) (Q - I)ᵏ / k."""
    x = q - torch.eye(len(q), dtype=q.dtype)
    power, total = x, x
    for k in range(2, order + 1):
        power = power @ x
        total = total + (-1) ** (k + 1) / k * power
    return total
