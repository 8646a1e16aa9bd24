"""The Matrix-SSL loss: the default, the published approximation and the paper's own constants."""

import warnings
from typing import Literal

import torch
from torch import Tensor

from matrix_ssl.losses._checks import check_choice, check_number, check_order, check_rows
from matrix_ssl.losses._order import MatrixSSLTerms, Objective, covariance_loss, order_loss
from matrix_ssl.losses._plan import Algorithm, Logarithm

Side = Literal["auto", "samples", "features"]


class NegativeDeterminantWarning(UserWarning):
    """det(C(p, z) + ridge·I) < 0: the branches are anti-correlated beyond the ridge, tr log is not defined there."""


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
    algorithm: Algorithm = "auto",
    side: Side = "auto",
) -> Tensor:
    """Matrix-SSL: matrix uniformity plus ``alignment_weight`` times matrix alignment, the mean of both orders.

    ``logarithm="taylor"`` with ridge = uniformity_weight = 0.5 (the published script) or 1 (its README) is the
    objective that the paper's models were trained with: log X is cut after ``order`` terms of its series about I.
    The series converges only for eigenvalues in (-ridge, 2 - ridge); ``"exact"`` needs no such condition.

    From ridge 1 on the determinant inside the uniformity term is positive, since no singular value of C(p, z) exceeds
    1. Below, it turns negative when the branches are anti-correlated beyond the ridge; the value is then log |det|,
    whose gradient is not to be trusted. On the CPU that raises a warning; ``matrix_ssl_terms`` counts it everywhere.

    Cost: value and gradient are computed together, and each student output saves one tensor of its own size, in
    float32 or better, until the backward pass. ``"exact"`` means up to rounding, whichever algorithm: a polynomial or a
    quadrature gets as many terms as a bound on its error asks for. ``algorithm="auto"`` takes the cheapest; on the CPU
    the bound uses the Frobenius norm of the covariance, on other devices only what is known without waiting for them.

    Args:
        z1, z2: (n, d), student outputs of the two views.
        p1, p2: (n, d), teacher outputs of the two views.
        ridge: μ > 0, added to every covariance.
        uniformity_weight: λ ≥ 0, the multiple of I whose cross-entropy the uniformity term is.
        alignment_weight: γ ≥ 0.
        logarithm: ``"exact"``, or ``"taylor"`` for the published approximation.
        order: number of Taylor terms, at least 1; used with ``"taylor"`` only.
        algorithm: for the exact logarithm: ``"eigh"``, ``"quadrature"``, ``"polynomial"`` or ``"auto"``.
        side: ``"samples"`` computes with n x n matrices, ``"features"`` with d x d, ``"auto"`` with the smaller.

    Returns:
        A scalar, in nats; it can be differentiated once, by all four outputs.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; a number is out of its range; a name is unknown.

    Warns:
        NegativeDeterminantWarning: see above.

    Reference: Zhang et al., ICML 2024, equations 12 to 14, with the constants of the published code.
    """
    terms = matrix_ssl_terms(
        z1, z2, p1, p2,
        ridge=ridge,
        uniformity_weight=uniformity_weight,
        alignment_weight=alignment_weight,
        logarithm=logarithm,
        order=order,
        algorithm=algorithm,
        side=side,
    )  # fmt: skip
    _warn_if_negative(terms.negative_determinants, ridge)
    return terms.loss


def matrix_ssl_terms(
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
    algorithm: Algorithm = "auto",
    side: Side = "auto",
) -> MatrixSSLTerms:
    """``matrix_ssl_loss`` with its parts and the count of negative determinants, 0 to 2; no warning is raised."""
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    objective = _objective(ridge, uniformity_weight, alignment_weight, logarithm, order, algorithm)
    return _mean_of_orders(z1, z2, p1, p2, objective, side)


def matrix_ssl_order_terms(
    p: Tensor,
    z: Tensor,
    *,
    ridge: float = 0.1,
    uniformity_weight: float = 0.1,
    alignment_weight: float = 1.0,
    logarithm: Logarithm = "exact",
    order: int = 4,
    algorithm: Algorithm = "auto",
    side: Side = "auto",
) -> MatrixSSLTerms:
    """One order of ``matrix_ssl_terms``, for methods that have one order, or that share the orders among processes.

    Args:
        p: (n, d), teacher outputs of one view.
        z: (n, d), student outputs of the other view.

    Other arguments, returns and raises as in ``matrix_ssl_loss``, whose value is the mean over (p2, z1) and (p1, z2).
    """
    check_rows(p=p, z=z)
    objective = _objective(ridge, uniformity_weight, alignment_weight, logarithm, order, algorithm)
    return order_loss(p, z, objective, samples_side=_is_samples_side(p, side))


def matrix_ssl_covariance_terms(
    cross: Tensor,
    teacher: Tensor,
    student: Tensor,
    *,
    ridge: float = 0.1,
    uniformity_weight: float = 0.1,
    alignment_weight: float = 1.0,
    logarithm: Logarithm = "exact",
    order: int = 4,
    algorithm: Algorithm = "auto",
) -> MatrixSSLTerms:
    """One order of ``matrix_ssl_terms`` from covariances, which several processes can sum instead of gathering rows.

    With rows scaled to length one and J = I - 11ᵀ/n:

    Args:
        cross: (d, d), C(p, z) = pᵀ J z / n.
        teacher: (d, d), C(p, p), symmetric positive semi-definite.
        student: (d, d), C(z, z), likewise. Its trace is at most one for rows of length one; where it is larger, use
            ``algorithm="eigh"`` on devices other than the CPU, because their bound on the spectrum is that trace.

    Other arguments and returns as in ``matrix_ssl_loss``; differentiable once, by all three.

    Raises:
        ValueError: the shapes differ or are not square; a number is out of its range; a name is unknown.
    """
    shapes = [tuple(x.shape) for x in (cross, teacher, student)]
    if len(set(shapes)) > 1 or cross.ndim != 2 or cross.shape[0] != cross.shape[1] or cross.shape[0] < 1:
        raise ValueError(f"expected cross, teacher and student of one shape (d, d), got {shapes}")
    objective = _objective(ridge, uniformity_weight, alignment_weight, logarithm, order, algorithm)
    return covariance_loss(cross, teacher, student, objective)


def matrix_ssl_paper_loss(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    ridge: float = 0.1,
    alignment_weight: float = 1.0,
    algorithm: Algorithm = "auto",
    side: Side = "auto",
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
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    objective = _objective(ridge, 1 / z1.shape[1], alignment_weight, "exact", 1, algorithm)._replace(trace_weight=1.0)
    terms = _mean_of_orders(z1, z2, p1, p2, objective, side)
    _warn_if_negative(terms.negative_determinants, ridge)
    return terms.loss


def _objective(
    ridge: float,
    uniformity_weight: float,
    alignment_weight: float,
    logarithm: Logarithm,
    order: int,
    algorithm: Algorithm,
) -> Objective:
    check_number("ridge", ridge, above=0)
    check_number("uniformity_weight", uniformity_weight)
    check_number("alignment_weight", alignment_weight)
    check_choice("logarithm", logarithm, ("exact", "taylor"))
    check_choice("algorithm", algorithm, ("auto", "eigh", "quadrature", "polynomial"))
    check_order(order)
    return Objective(ridge, uniformity_weight, alignment_weight, logarithm, order, algorithm)


def _is_samples_side(x: Tensor, side: Side) -> bool:
    check_choice("side", side, ("auto", "samples", "features"))
    return side == "samples" or (side == "auto" and x.shape[0] < x.shape[1])


def _mean_of_orders(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, objective: Objective, side: Side) -> MatrixSSLTerms:
    samples_side = _is_samples_side(z1, side)
    first = order_loss(p2, z1, objective, samples_side=samples_side)
    second = order_loss(p1, z2, objective, samples_side=samples_side)
    loss, uniformity, alignment = ((x + y) / 2 for x, y in zip(first[:3], second[:3], strict=True))
    return MatrixSSLTerms(loss, uniformity, alignment, first.negative_determinants + second.negative_determinants)


def _warn_if_negative(count: Tensor, ridge: float) -> None:
    if count.device.type == "cpu" and not torch.compiler.is_compiling() and count > 0:  # free here, a wait elsewhere
        warnings.warn(
            f"det(C(p, z) + {ridge:g}·I) is negative: student and teacher are anti-correlated beyond the ridge and the "
            f"uniformity term is not to be trusted; use a larger ridge.",
            NegativeDeterminantWarning,
            stacklevel=3,
        )
