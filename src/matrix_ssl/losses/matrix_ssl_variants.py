"""Matrix-SSL with other uniformity or alignment: what carries over from the matrix entropy, and the published form.

The published terms compare student and teacher: the cross-covariance C(p, z) is spread, and C(p, p) is the target of
C(z, z). The alternatives are

    uniformity "own"       -λ tr log(C(z, z) + μI)      each view's own covariance, whose determinant is never negative
    uniformity "entropy"   -λ S(zᵀz / n)                the same with the divergence's arguments exchanged, no ridge
    alignment "images"     -mean cos(z, p)              each image with its own target, the teacher's other view

for unit rows, with S the von Neumann entropy. With "entropy" and "images" together, the loss is the matrix entropy with
a teacher's outputs as targets.
"""

import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor

from matrix_ssl.losses.matrix_entropy import view_entropy
from matrix_ssl.losses.matrix_ssl import matrix_ssl_terms
from matrix_ssl.losses.objective import DEFAULTS, Objective, check_choice
from matrix_ssl.losses.order import MatrixSSLTerms
from matrix_ssl.losses.rows import check_rows, unit_rows
from matrix_ssl.matrix import of_features
from matrix_ssl.matrix.numerics.precision import without_autocast

Uniformity = Literal["cross", "own", "entropy"]
Alignment = Literal["covariances", "images"]


def matrix_ssl_variant_terms(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    uniformity: Uniformity,
    alignment: Alignment,
    objective: Objective = DEFAULTS,
) -> MatrixSSLTerms:
    """``matrix_ssl_terms`` with a named uniformity and alignment; ``"cross"`` and ``"covariances"`` are its own.

    Args:
        z1, z2: (n, d), student outputs of the two views.
        p1, p2: (n, d), teacher outputs of the two views.
        uniformity: ``"cross"``, ``"own"`` or ``"entropy"``.
        alignment: ``"covariances"`` or ``"images"``.
        objective: the constants; ``"own"`` uses the ridge and the uniformity weight, with an exact logarithm,
            ``"entropy"`` only the uniformity weight, ``"images"`` the alignment weight.

    Raises:
        ValueError: as ``matrix_ssl_loss``; a name is unknown.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import matrix_ssl_variant_terms
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> p1, p2 = torch.randn(2, 64, 16)
        >>> matrix_ssl_variant_terms(z1, z2, p1, p2, uniformity="own", alignment="images").loss.backward()
    """
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    check_choice("uniformity", uniformity, get_args(Uniformity))
    check_choice("alignment", alignment, get_args(Alignment))
    published = dataclasses.replace(
        objective,
        uniformity_weight=objective.uniformity_weight if uniformity == "cross" else 0.0,
        alignment_weight=objective.alignment_weight if alignment == "covariances" else 0.0,
    )
    if uniformity == "cross" or alignment == "covariances":
        loss, spread, agreement, negative = matrix_ssl_terms(z1, z2, p1, p2, objective=published)
    else:
        loss = spread = agreement = negative = torch.zeros((), device=z1.device)
    with without_autocast(z1):
        a, b, c, d = (unit_rows(x) for x in (z1, z2, p1, p2))
        if uniformity != "cross":
            spread = (
                -objective.uniformity_weight
                * (_spread(a, uniformity, objective) + _spread(b, uniformity, objective))
                / 2
            )
            loss, negative = loss + spread, torch.zeros_like(spread)
        if alignment == "images":
            agreement = -(torch.linalg.vecdot(a, d).mean() + torch.linalg.vecdot(b, c).mean()) / 2
            loss = loss + objective.alignment_weight * agreement
    return MatrixSSLTerms(loss, spread.detach(), agreement.detach(), negative.detach())


def _spread(rows: Tensor, uniformity: Uniformity, objective: Objective) -> Tensor:
    if uniformity == "own":
        return of_features.log_det(rows, ridge=objective.ridge, validate=False)
    return view_entropy(rows)
