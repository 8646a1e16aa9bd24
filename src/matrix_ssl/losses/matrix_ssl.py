"""The Matrix-SSL loss: the default, the published approximation and the objective with the paper's constants."""

import warnings

import torch
from torch import Tensor

from matrix_ssl.losses.objective import DEFAULTS, Algorithm, Logarithm, Objective
from matrix_ssl.losses.order import MatrixSSLTerms, Side, matrix_ssl_order_terms
from matrix_ssl.losses.rows import check_rows


class NegativeDeterminantWarning(UserWarning):
    """det(C(p, z) + ridge·I) < 0: the branches are anti-correlated beyond the ridge, and tr log is undefined."""


def matrix_ssl_loss(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    ridge: float = DEFAULTS.ridge,
    uniformity_weight: float = DEFAULTS.uniformity_weight,
    alignment_weight: float = DEFAULTS.alignment_weight,
    logarithm: Logarithm = DEFAULTS.logarithm,
    order: int = DEFAULTS.order,
    algorithm: Algorithm = DEFAULTS.algorithm,
    side: Side = "auto",
) -> Tensor:
    """Matrix-SSL: matrix uniformity plus ``alignment_weight`` times matrix alignment, averaged over both orders.

    ``logarithm="taylor"`` with ridge = uniformity_weight = 0.5 (the published script) or 1 (its README) is the
    objective that the paper's models were trained with: the series of log X about I is truncated after ``order`` terms.
    The series converges only for eigenvalues in (-ridge, 2 - ridge); ``"exact"`` needs no such condition.

    From ridge 1 upwards the determinant inside the uniformity term is positive, since no singular value of C(p, z)
    exceeds 1. Below, it becomes negative when the branches are anti-correlated beyond the ridge; the value is then log
    |det|, whose gradient cannot be trusted. On the CPU this issues a warning; ``matrix_ssl_terms`` counts such cases on
    every device.

    Value and gradient are computed together; for each student output, one tensor of its size is saved until the
    backward pass. ``"exact"`` means exact up to rounding: a polynomial or a quadrature gets as many terms as a bound on
    its error requires. ``algorithm="auto"`` picks the cheapest; on the CPU the bound uses the Frobenius norm of the
    covariance, on other devices only what is known without waiting for them.

    Args:
        z1, z2: (n, d), student outputs of the two views.
        p1, p2: (n, d), teacher outputs of the two views.
        ridge: μ > 0, added to every covariance.
        uniformity_weight: λ ≥ 0; the uniformity term is the cross-entropy of λ·I.
        alignment_weight: γ ≥ 0.
        logarithm: ``"exact"``, or ``"taylor"`` for the published approximation.
        order: number of Taylor terms, at least 1; used with ``"taylor"`` only.
        algorithm: of the exact logarithm: ``"eigh"``, ``"quadrature"``, ``"polynomial"`` or ``"auto"``.
        side: ``"samples"`` computes with n x n matrices, ``"features"`` with d x d, ``"auto"`` with the smaller.

    Returns:
        A scalar, in nats; it can be differentiated once, with respect to all four outputs.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; a number is out of its range; a name is unknown.

    Reference: Zhang et al., ICML 2024, equations 12 to 14, with the constants of the published code.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import matrix_ssl_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> p1, p2 = torch.randn(2, 64, 16)
        >>> matrix_ssl_loss(z1, z2, p1, p2, ridge=1.0).backward()
    """
    objective = Objective(ridge, uniformity_weight, alignment_weight, logarithm, order, algorithm)
    return _loss_with_warning(matrix_ssl_terms(z1, z2, p1, p2, objective=objective, side=side), ridge)


def matrix_ssl_terms(
    z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, *, objective: Objective = DEFAULTS, side: Side = "auto"
) -> MatrixSSLTerms:
    """``matrix_ssl_loss`` with its parts and the count of negative determinants, 0 to 2; no warning is issued.

    ``objective`` holds the constants; other arguments and errors are those of ``matrix_ssl_loss``. The terms are means
    over both orders; only the loss has a gradient.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import Objective, matrix_ssl_terms
        >>> z1, z2, p1, p2 = torch.randn(4, 64, 16).unbind()
        >>> terms = matrix_ssl_terms(z1.requires_grad_(), z2, p1, p2, objective=Objective(ridge=0.5))
        >>> terms.loss.backward()
        >>> int(terms.negative_determinants)
        0
    """
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    first = matrix_ssl_order_terms(p2, z1, objective=objective, side=side)
    second = matrix_ssl_order_terms(p1, z2, objective=objective, side=side)
    loss, uniformity, alignment = ((x + y) / 2 for x, y in zip(first[:3], second[:3], strict=True))
    return MatrixSSLTerms(loss, uniformity, alignment, first.negative_determinants + second.negative_determinants)


def matrix_ssl_paper_loss(
    z1: Tensor,
    z2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    ridge: float = DEFAULTS.ridge,
    alignment_weight: float = DEFAULTS.alignment_weight,
    algorithm: Algorithm = DEFAULTS.algorithm,
    side: Side = "auto",
) -> Tensor:
    """The paper's objective with its constants, all logarithms exact: the mean over (p2, z1) and (p1, z2) of

        MCE(I/d, C(p, z) + ridge·I) + alignment_weight · MCE(C(p, p) + ridge·I, C(z, z) + ridge·I)

    where MCE(P, Q) = tr(-P log Q + Q). It shares the arguments, errors and warning of ``matrix_ssl_loss`` and differs
    from it by uniformity_weight = 1/d and by the two traces, whose gradient the published code drops.

    Reference: Zhang et al., ICML 2024, equations 12 to 14.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import matrix_ssl_paper_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> p1, p2 = torch.randn(2, 64, 16)
        >>> matrix_ssl_paper_loss(z1, z2, p1, p2, ridge=1.0).backward()
    """
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    objective = Objective(
        ridge, 1 / z1.shape[1], alignment_weight, logarithm="exact", algorithm=algorithm, trace_weight=1.0
    )
    return _loss_with_warning(matrix_ssl_terms(z1, z2, p1, p2, objective=objective, side=side), ridge)


def _loss_with_warning(terms: MatrixSSLTerms, ridge: float) -> Tensor:
    count = terms.negative_determinants
    if count.device.type == "cpu" and not torch.compiler.is_compiling() and count > 0:  # free here; elsewhere a wait
        warnings.warn(
            f"det(C(p, z) + {ridge:g}·I) is negative: student and teacher are anti-correlated beyond the ridge, and "
            f"the uniformity term cannot be trusted. Use a larger ridge.",
            NegativeDeterminantWarning,
            stacklevel=3,
        )
    return terms.loss
