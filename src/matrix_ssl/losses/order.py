"""One order (teacher p, student z) of Matrix-SSL: value and gradient in one pass over the smaller side.

With A, B the centred unit rows of p and z over √n, the covariances are C = AᵀB, P = AᵀA and S = BᵀB. On the side of the
samples the n x n matrices H = BAᵀ and K = BBᵀ replace them, because

    log |det(C + μI)|           = d log μ + log |det(I + H/μ)|                              (Sylvester)
    tr[(P + μI) log(S + μI)]    = log μ · tr(P + μI) + <W, ψ(K)>,   W = HHᵀ + μK

and ψ(x) = log(1 + x/μ)/x. The Taylor series has T(μ - 1) instead of log μ. The adjoint of the centring is the identity
on these gradients, whose columns already sum to zero.

In the gradient of the exact alignment, the part for P = S is known, because the derivative of the logarithm at Q in the
direction Q is I. Only the rest, L(Q, P - S), is left to an approximation. This matters: the known part pulls along the
rows, where the unit length cancels it, and an error in it would be large compared with the little that remains.
"""

import math
from dataclasses import fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from matrix_ssl.losses.fused import fused, nothing
from matrix_ssl.losses.logarithm import Form, series
from matrix_ssl.losses.logarithm.plan import exact_logarithm
from matrix_ssl.losses.logarithm.trace import log_det_one_plus, taylor_coefficients, trace_polynomial
from matrix_ssl.losses.objective import DEFAULTS, Objective, check_choice
from matrix_ssl.losses.rows import add_symmetric_product, centred_rows, check_rows, pull_back, symmetric_product
from matrix_ssl.matrix.numerics.precision import full_precision
from matrix_ssl.matrix.numerics.validation import check_real

Side = Literal["auto", "samples", "features"]
_SIDES = get_args(Side)
_CONSTANTS = tuple(field.name for field in fields(Objective))


class MatrixSSLTerms(NamedTuple):
    """A loss and its parts. Only the loss has a gradient."""

    loss: Tensor  # (), uniformity plus alignment_weight times alignment
    uniformity: Tensor  # (), includes its own weight
    alignment: Tensor  # (), not multiplied by alignment_weight
    negative_determinants: Tensor  # (), number of orders whose cross-covariance plus ridge has a negative determinant


def matrix_ssl_order_terms(
    p: Tensor, z: Tensor, *, objective: Objective = DEFAULTS, side: Side = "auto"
) -> MatrixSSLTerms:
    """One order of ``matrix_ssl_terms``, for methods with a single order and for splitting orders among processes.

    ``p`` (n, d) are teacher outputs of one view, ``z`` (n, d) student outputs of the other; the other arguments and the
    errors are those of ``matrix_ssl_terms``, which is the mean over (p2, z1) and (p1, z2). The loss can be
    differentiated once, with respect to both.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import Objective, matrix_ssl_order_terms
        >>> p, z = torch.randn(2, 64, 16).unbind()
        >>> terms = matrix_ssl_order_terms(p, z.requires_grad_(), objective=Objective(ridge=0.5))
        >>> terms.loss.backward()
    """
    check_rows(p=p, z=z)
    check_choice("side", side, _SIDES)
    samples_side = side == "samples" or (side == "auto" and p.shape[0] < p.shape[1])
    return MatrixSSLTerms(*_order_loss(p, z, *_constants(objective), samples_side))


def matrix_ssl_covariance_terms(
    cross: Tensor, teacher: Tensor, student: Tensor, *, objective: Objective = DEFAULTS
) -> MatrixSSLTerms:
    """One order of ``matrix_ssl_terms`` from covariances, which several processes can sum instead of gathering rows.

    The loss can be differentiated once, with respect to all three.

    Args:
        cross: (d, d), C(p, z) = pᵀ J z / n with rows scaled to length one and J = I - 11ᵀ/n.
        teacher: (d, d), C(p, p), symmetric positive semi-definite.
        student: (d, d), C(z, z), symmetric positive semi-definite. For rows of length one its trace is at most one;
            where it is larger, use ``algorithm="eigh"`` on devices other than the CPU, because the bound on the
            spectrum there assumes a trace of at most one.
        objective: constants of the loss.

    Raises:
        ValueError: the shapes differ or are not square.

    Example:
        >>> import torch
        >>> from matrix_ssl.losses import matrix_ssl_covariance_terms, unit_rows
        >>> from matrix_ssl.matrix import covariance, cross_covariance
        >>> p, z = unit_rows(torch.randn(64, 16)), unit_rows(torch.randn(64, 16, requires_grad=True))
        >>> matrix_ssl_covariance_terms(cross_covariance(p, z), covariance(p), covariance(z)).loss.backward()
    """
    for name, x in (("cross", cross), ("teacher", teacher), ("student", student)):
        check_real(x, name)
    shapes = [tuple(x.shape) for x in (cross, teacher, student)]
    if len(set(shapes)) > 1 or cross.ndim != 2 or cross.shape[0] != cross.shape[1] or cross.shape[0] < 1:
        raise ValueError(f"Expected cross, teacher and student of one shape (d, d), got {shapes}.")
    return MatrixSSLTerms(*_covariance_loss(cross, teacher, student, *_constants(objective)))


def _constants(objective: Objective) -> list[Any]:
    """The arguments of the operators, by name because PyTorch 2.4 cannot compile ``astuple``."""
    return [getattr(objective, name) for name in _CONSTANTS]


@fused(tensors=2, values=4)
def _order_loss(
    p: Tensor, z: Tensor, ridge: float, uniformity_weight: float, alignment_weight: float, logarithm: str, order: int,
    algorithm: str, trace_weight: float, samples_side: bool, needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    constants: list[Any] = [ridge, uniformity_weight, alignment_weight, logarithm, order, algorithm, trace_weight]
    objective = Objective(*constants)
    values, by_a, by_b = (_samples if samples_side else _features)(p, z, objective, needed)
    scale = 1 / math.sqrt(len(p))
    by_p = nothing(p) if by_a is None else pull_back(by_a, p, scale)
    by_z = nothing(z) if by_b is None else pull_back(by_b, z, scale)
    return *values, by_p, by_z


@fused(tensors=3, values=4)
def _covariance_loss(
    cross: Tensor, teacher: Tensor, student: Tensor, ridge: float, uniformity_weight: float, alignment_weight: float,
    logarithm: str, order: int, algorithm: str, trace_weight: float, needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    constants: list[Any] = [ridge, uniformity_weight, alignment_weight, logarithm, order, algorithm, trace_weight]
    objective = Objective(*constants)
    c, p, s = (full_precision(x) for x in (cross, teacher, student))
    values, *gradients = _covariances(c, (p + p.mT) / 2, (s + s.mT) / 2, objective)
    matrices = zip((cross, teacher, student), gradients, needed, strict=True)
    by_cross, by_teacher, by_student = (g if n else nothing(x) for x, g, n in matrices)
    return *values, by_cross, by_teacher, by_student


def _samples(
    p: Tensor, z: Tensor, objective: Objective, needed: list[bool]
) -> tuple[MatrixSSLTerms, Tensor | None, Tensor | None]:
    """The loss from H and K, and its gradients by A and B, which are recomputed instead of kept."""
    ridge, weight, d = objective.ridge, objective.alignment_weight, p.shape[1]
    a, b = centred_rows(p), centred_rows(z)
    cross, gram, trace = b @ a.mT, symmetric_product(b, b), _inner(a, a)
    del a, b
    square = symmetric_product(gram, gram)
    if objective.logarithm == "exact":  # W = K² + ridge·K + (HHᵀ - K²)
        direction = add_symmetric_product(square.clone(), (cross, cross), beta=-1)
        function, by_gram = _logarithm(gram, square, direction, objective, "ratio")
        add_symmetric_product(by_gram, (function, gram), alpha=-1).diagonal().add_(1)
    else:
        direction = add_symmetric_product(gram.clone(), (cross, cross), beta=ridge)
        function, by_gram = _logarithm(gram, square, direction, objective, "ratio")
        by_gram.add_(function, alpha=ridge)
    del square, direction
    by_gram = by_gram.mul_(-weight)
    spread = function @ cross
    log_at_zero = _log_at_zero(objective)
    alignment = -log_at_zero * (trace + ridge * d) - _inner(spread, cross) - ridge * _inner(function, gram)
    del function
    uniformity, by_cross, negative = _uniformity(cross, d, objective)
    by_cross.add_(spread, alpha=-2 * weight)
    if objective.trace_weight:
        uniformity, alignment = _with_traces(uniformity, alignment, cross, gram, by_cross, by_gram, d, objective)
    del cross, gram, spread
    a, b = centred_rows(p), centred_rows(z)
    by_a = (by_cross.mT @ b).add_(a, alpha=-2 * weight * log_at_zero) if needed[0] else None
    by_b = (by_cross @ a).addmm_(by_gram, b, alpha=2) if needed[1] else None
    return _terms(uniformity, alignment, negative, objective), by_a, by_b


def _features(
    p: Tensor, z: Tensor, objective: Objective, needed: list[bool]
) -> tuple[MatrixSSLTerms, Tensor | None, Tensor | None]:
    """The loss from C, P and S, and its gradients by A and B, which are recomputed instead of kept."""
    a, b = centred_rows(p), centred_rows(z)
    cross, teacher, student = a.mT @ b, symmetric_product(a.mT, a.mT), symmetric_product(b.mT, b.mT)
    del a, b
    values, by_cross, by_teacher, by_student = _covariances(cross, teacher, student, objective)
    del cross, teacher, student
    a, b = centred_rows(p), centred_rows(z)
    by_a = (b @ by_cross.mT).addmm_(a, by_teacher, alpha=2) if needed[0] else None
    by_b = (a @ by_cross).addmm_(b, by_student, alpha=2) if needed[1] else None
    return values, by_a, by_b


def _covariances(
    cross: Tensor, teacher: Tensor, student: Tensor, objective: Objective
) -> tuple[MatrixSSLTerms, Tensor, Tensor, Tensor]:
    """The loss from C, P and S, and its gradients by them."""
    ridge, weight, d = objective.ridge, objective.alignment_weight, len(cross)
    square = symmetric_product(student, student)
    if objective.logarithm == "exact":  # P + ridge·I = (S + ridge·I) + (P - S)
        function, by_student = _logarithm(student, square, teacher - student, objective, "log")
        by_student.diagonal().add_(1)
    else:
        direction = teacher.clone()
        direction.diagonal().add_(ridge)
        function, by_student = _logarithm(student, square, direction, objective, "log")
    log_at_zero = _log_at_zero(objective)
    alignment = -log_at_zero * (teacher.trace() + ridge * d) - _inner(teacher, function) - ridge * function.trace()
    by_teacher, by_student = function.mul_(-weight), by_student.mul_(-weight)
    by_teacher.diagonal().sub_(weight * log_at_zero)
    del square
    uniformity, by_cross, negative = _uniformity(cross, d, objective)
    if objective.trace_weight:
        uniformity, alignment = _with_traces(uniformity, alignment, cross, student, by_cross, by_student, d, objective)
    return _terms(uniformity, alignment, negative, objective), by_cross, by_teacher, by_student


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vecdot(x, y).sum()


def _uniformity(x: Tensor, d: int, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """-λ tr log(C + μI), its gradient by X and whether the determinant is negative, for X = C or X = H."""
    ridge, weight = objective.ridge, objective.uniformity_weight
    if objective.logarithm == "exact":
        value, gradient, negative = log_det_one_plus(x / ridge)
        return -weight * (value + d * math.log(ridge)), gradient.mul_(-weight / ridge), negative
    taylor = series.taylor(ridge, objective.order)
    shifted = x.clone()
    shifted.diagonal().add_(taylor.shift)
    value, gradient = trace_polynomial(shifted, taylor_coefficients(objective.order))
    value = value + (d - len(x)) * taylor.at_zero  # the eigenvalues of C that H does not have are zero
    return -weight * value, gradient.mul_(-weight), torch.zeros_like(value)


def _logarithm(a: Tensor, square: Tensor, direction: Tensor, objective: Objective, form: Form) -> tuple[Tensor, Tensor]:
    """f(A) and its derivative in a direction, from A and A², which is overwritten."""
    if objective.logarithm == "taylor":
        return series.function(a, square, direction, series.taylor(objective.ridge, objective.order), form)
    return exact_logarithm(a, square, direction, objective.ridge, objective.algorithm, form)


def _log_at_zero(objective: Objective) -> float:
    if objective.logarithm == "taylor":
        return series.taylor(objective.ridge, objective.order).at_zero
    return math.log(objective.ridge)


def _with_traces(
    uniformity: Tensor, alignment: Tensor, cross: Tensor, student: Tensor, by_cross: Tensor, by_student: Tensor, d: int,
    objective: Objective,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Adds tr(C + μI) and tr(S + μI), and their gradients in place; the traces are the same on both sides."""
    weight = objective.trace_weight
    by_cross.diagonal().add_(weight)
    by_student.diagonal().add_(weight * objective.alignment_weight)
    constant = d * objective.ridge
    return uniformity + weight * (cross.trace() + constant), alignment + weight * (student.trace() + constant)


def _terms(uniformity: Tensor, alignment: Tensor, negative: Tensor, objective: Objective) -> MatrixSSLTerms:
    return MatrixSSLTerms(uniformity + objective.alignment_weight * alignment, uniformity, alignment, negative)
