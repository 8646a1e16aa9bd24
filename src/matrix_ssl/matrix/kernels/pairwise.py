"""Kernels: symmetric positive semi-definite Gram matrices (..., n, n) of samples x (..., n, d), one row per sample.

They are computed in float64 or float32 (half precision in float32) and can be differentiated any number of times.
Distances are ‖x - y‖² = ‖x‖² + ‖y‖² - 2⟨x, y⟩ of centred rows; in float32 a Gaussian kernel is off by less than 1e-4 if
the width is at least a tenth of the mean distance. The Laplace kernel takes square roots and is less accurate where
samples nearly coincide: pass float64. Invalid arguments raise the errors of ``matrix_ssl.matrix``.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics import kernel_checks, validation
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.numerics.scaling import lengths_in_range, unit_length

WidthRule = Literal["median", "silverman"]
_RULES = get_args(WidthRule)


def linear_kernel(x: Tensor, *, validate: bool | None = None) -> Tensor:
    """Linear kernel ⟨xᵢ, xⱼ⟩: (..., n, n).

    Its eigenvalues over n are those of the second moment xᵀx / n, and zeros.

    Raises:
        MatrixError: ``x`` is not a matrix, empty, or not finite.
    """
    gram = _products(validation.checked_matrix(x, "x", validate))
    validation.check_representable(gram, x, "x", validate)
    return gram


def cosine_kernel(x: Tensor, *, validate: bool | None = None) -> Tensor:
    """Cosine kernel ⟨xᵢ, xⱼ⟩ / (‖xᵢ‖ ‖xⱼ‖), from -1 to 1, with a diagonal of one: (..., n, n).

    A row of zero length raises an error, too. Zhang et al. and Song et al., ICML 2024, base their matrix information on
    this kernel.
    """
    gram = _products(unit_rows(x, "x", validate))
    return torch.where(_own(gram), 1.0, gram)  # an angle or a small temperature would amplify rounding errors


def polynomial_kernel(
    x: Tensor, *, degree: int, scale: float = 1.0, offset: float = 1.0, validate: bool | None = None
) -> Tensor:
    """Polynomial kernel (scale ⟨xᵢ, xⱼ⟩ + offset)^degree: (..., n, n); degree ≥ 1, scale > 0, offset ≥ 0."""
    validation.check_positive(scale=scale)
    validation.check_not_negative(offset=offset)
    if not validation.is_number(degree) or not 1 <= degree < math.inf or degree != int(degree):
        raise ValueError(f"degree must be a whole number, 1 or above, got {degree!r}.")
    gram = (scale * linear_kernel(x, validate=validate) + offset) ** int(degree)
    validation.check_representable(gram, x, "x", validate, "powers")
    return gram


def gaussian_kernel(x: Tensor, *, width: float | Tensor | WidthRule, validate: bool | None = None) -> Tensor:
    """Gaussian kernel exp(-‖xᵢ - xⱼ‖² / 2σ²), from 0 to 1, with a diagonal of one: (..., n, n).

    Args:
        x: (..., n, d).
        width: σ above zero, as a number or a tensor (...), or a rule, ``"median"`` or ``"silverman"``: see
            ``kernel_width``. A width set by a rule is a constant without gradient.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: ``x`` is not a matrix, empty, or not finite, a rule gives a width of zero, or widths do not fit.
        ValueError: the width is not above zero, or the rule is unknown.
    """
    squares = _checked_distances(x, validate)
    sigma = _width(x, squares, width, validate)
    return torch.exp(squares / sigma / (-2 * sigma))  # σ² could underflow


def laplace_kernel(x: Tensor, *, width: float | Tensor | WidthRule, validate: bool | None = None) -> Tensor:
    """Laplace kernel exp(-‖xᵢ - xⱼ‖ / σ) with the Euclidean distance, from 0 to 1, with a diagonal of one: (..., n, n).

    It has a kink where two samples are equal; such pairs contribute no gradient. Arguments and errors are those of
    ``gaussian_kernel``.
    """
    squares = _checked_distances(x, validate)
    sigma = _width(x, squares, width, validate)
    return torch.exp(-square_root(squares) / sigma)


def angular_kernel(x: Tensor, *, validate: bool | None = None) -> Tensor:
    """Angular kernel 1 - θᵢⱼ / π, θ the angle between two samples, from 0 to 1, with a diagonal of one: (..., n, n).

    It is positive semi-definite, being the probability that a random hyperplane does not separate the two samples.
    Samples in the same or in opposite directions, where the angle has a kink, contribute no gradient. A row of zeros
    raises an error, too.

    Reference: Cho and Saul, "Kernel Methods for Deep Learning", NeurIPS 2009: the arc-cosine kernel of order 0.
    """
    cosine = cosine_kernel(x, validate=validate)
    eps = 4 * torch.finfo(cosine.dtype).eps
    inside = cosine.abs() < 1 - eps
    angle = torch.where(inside, torch.where(inside, cosine, 0.0).acos(), torch.where(cosine > 0, 0.0, math.pi))
    return 1 - angle / math.pi


def exponential_kernel(x: Tensor, *, temperature: float, validate: bool | None = None) -> Tensor:
    """Exponential of the cosine, exp((cos θᵢⱼ - 1) / τ), with a diagonal of one: (..., n, n).

    It is the Gaussian kernel of width √τ for samples scaled to length one; the kernel of contrastive losses and, with
    ``width`` = τ, of ``matrix_ssl.losses.view_entropy``. A row of zeros and a temperature that is not above zero raise
    errors, too.
    """
    validation.check_positive(temperature=temperature)
    return torch.exp((cosine_kernel(x, validate=validate) - 1) / temperature)


def kernel_width(x: Tensor, rule: WidthRule, *, validate: bool | None = None) -> Tensor:
    """Width σ of a Gaussian kernel of x (..., n, d) by a rule: (...), without gradient.

    ``"median"`` is the median Euclidean distance between different samples; for an even number of distances, the lower
    of the two in the middle. ``"silverman"`` is s (4 / (n (d + 2)))^(1 / (d + 4)), where s is the square root of the
    mean variance of the columns, computed with the divisor n - 1.

    Raises:
        MatrixError: ``x`` is not a matrix, empty, or not finite, or has fewer than two rows; or the width is zero,
            since (most) samples are equal.
        ValueError: the rule is unknown.

    References:
        Garreau, Jitkrittum and Kanagawa, "Large sample analysis of the median heuristic", 2017,
        https://arxiv.org/abs/1707.07269.
        Silverman, "Density Estimation for Statistics and Data Analysis", 1986, section 4.3.2.
    """
    rows = validation.checked_matrix(x, "x", validate)
    if not isinstance(rule, str) or rule not in _RULES:
        raise ValueError(f"rule must be 'median' or 'silverman', got {rule!r}.")
    squares = _checked_distances(x.detach(), validate) if rule == "median" else rows
    return _width(x, squares, rule, validate)[..., 0, 0]


def unit_rows(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """Rows scaled to length one, in full precision; raises where one has length zero."""
    rows = validation.checked_matrix(x, name, validate)
    lengths = lengths_in_range(rows)
    if lengths is not None:
        return rows / lengths
    kernel_checks.check_rows(rows, x, name, validate)
    return unit_length(rows)


def _products(rows: Tensor) -> Tensor:
    with without_autocast(rows):
        return rows @ rows.mT


def squared_distances(rows: Tensor) -> Tensor:
    """‖xᵢ - xⱼ‖², zero on the diagonal; computed from centred rows, so that an offset costs no digits."""
    gram = _products(rows - rows.mean(-2, keepdim=True))
    lengths = gram.diagonal(dim1=-2, dim2=-1)
    squares = lengths.unsqueeze(-1) + lengths.unsqueeze(-2) - 2 * gram
    return torch.where(_own(gram), 0.0, squares.clamp_min(0))


def _own(gram: Tensor) -> Tensor:
    """Where a sample meets itself, (n, n)."""
    return torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)


def _checked_distances(x: Tensor, validate: bool | None) -> Tensor:
    squares = squared_distances(validation.checked_matrix(x, "x", validate))
    validation.check_representable(squares, x, "x", validate)
    return squares


def square_root(x: Tensor) -> Tensor:
    """√x without gradient at zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def _width(x: Tensor, squares: Tensor, width: float | Tensor | WidthRule, validate: bool | None) -> Tensor:
    """σ as (..., 1, 1); ``squares`` are the squared distances; for Silverman's rule alone, the rows will do."""
    if isinstance(width, Tensor):
        kernel_checks.check_width(width, validate)
        kernel_checks.check_leading(width.shape, x.shape[:-2], "width", "x")
        return width.to(squares.dtype)[..., None, None]
    if not isinstance(width, str):
        validation.check_positive(width=width)
        return squares.new_full((1, 1), width)
    n, d = x.shape[-2:]
    if width not in _RULES:
        raise ValueError(f"width must be a number above zero, 'median' or 'silverman', got {width!r}.")
    kernel_checks.check_sample_count(n, 2, x, "x", f"the width by the rule {width!r}")
    if width == "median":
        i, j = torch.triu_indices(n, n, 1, device=x.device)
        sigma = squares.detach()[..., i, j].median(-1).values.sqrt()
    else:
        variance = x.detach().to(squares.dtype).var(-2).mean(-1)
        sigma = variance.sqrt() * (4 / (n * (d + 2))) ** (1 / (d + 4))
    kernel_checks.check_width_of_rule(sigma, x, width, validate)
    return sigma[..., None, None]
