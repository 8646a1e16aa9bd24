"""Canonical correlations (CCA), SVCCA and PWCCA.

All are computed from the centred features X = U Σ Vᵀ through Z = U Vᵀ, whose columns are orthonormal: canonical
correlations are the singular values of Z_xᵀ Z_y. The derivative of Z comes from a formula that divides by sums of
singular values, not by their differences.
"""

from typing import Any

import torch
from torch import Tensor

from matrix_ssl.matrix.comparison.rows import scaled_rows
from matrix_ssl.matrix.numerics import kernel_checks
from matrix_ssl.matrix.numerics.autograd import Parts, differentiable, once
from matrix_ssl.matrix.numerics.precision import full_precision, without_autocast
from matrix_ssl.matrix.numerics.validation import is_number


def canonical_correlations(x: Tensor, y: Tensor, *, validate: bool | None = None) -> Tensor:
    """Canonical correlations of x and y in descending order: (..., min(n, d, e)), from 0 to 1.

    These are the correlations of the most strongly correlated pairs of linear combinations of columns. Invertible
    linear maps of either argument do not change them. Beyond the rank of x or y they are zero; with n ≤ d and n ≤ e all
    n - 1 are one, which says nothing: use ``svcca``. A singular value of the features counts as zero below
    2 ε √max(n, d) times the largest, with the ε of their dtype (for half precision, that of float32).

    Computed in float64 from singular value decompositions of the features, so that the error is ε times their condition
    number, which a covariance would square. float32 features carry the error of their own rounding. It can be
    differentiated once; the gradient is correct where correlations or singular values coincide.

    Args:
        x: (..., n, d).
        y: (..., n, e), of the same samples.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: an argument is not a matrix, empty, or not finite, or the numbers of rows differ.

    Reference: Hotelling, "Relations between two sets of variates", Biometrika 28, 1936.
    """
    return _correlations(x, y, 1.0, validate)[0]


def cca(x: Tensor, y: Tensor, *, power: int = 1, validate: bool | None = None) -> Tensor:
    """Mean over min(rank x, rank y) canonical correlations to a power: (...), from 0 to 1.

    ``power`` = 1 gives the mean correlation and 2 the mean squared one, R²_CCA: 1 if all that one represents is a
    linear map of the other. With the mean correlation, a correlation of zero, where there is a kink, contributes no
    gradient. Arguments and errors are those of ``canonical_correlations``; any other power is a ValueError.

    Reference: Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414: table 1.
    """
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}.")
    correlations, count = _correlations(x, y, 1.0, validate)
    return correlations.pow(power).sum(-1) / count.clamp_min(1)


def svcca(x: Tensor, y: Tensor, *, variance: float = 0.99, validate: bool | None = None) -> Tensor:
    """SVCCA: the mean canonical correlation of the directions with ``variance`` of the variance of each: (...), 0 to 1.

    x and y each keep their largest singular values, as few as account for at least that share of the sum of squares.
    The mean is over the smaller of the two numbers. Rotations and scales do not change it, other linear maps do. Where
    the last value kept equals the first one dropped, it jumps and has no gradient.

    Args:
        x, y: as in ``canonical_correlations``.
        variance: the share, above 0 and at most 1.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: as in ``canonical_correlations``.
        ValueError: the share is not in (0, 1].

    Reference: Raghu, Gilmer, Yosinski and Sohl-Dickstein, "SVCCA: Singular Vector Canonical Correlation Analysis for
        Deep Learning Dynamics and Interpretability", NeurIPS 2017, https://arxiv.org/abs/1706.05806.
    """
    if not is_number(variance) or not 0 < variance <= 1:
        raise ValueError(f"variance must be a share above 0 and at most 1, got {variance!r}.")
    correlations, count = _correlations(x, y, variance, validate)
    return correlations.sum(-1) / count.clamp_min(1)


def pwcca(x: Tensor, y: Tensor, *, validate: bool | None = None) -> Tensor:
    """PWCCA: the mean canonical correlation, weighted by how much of x its canonical variates account for: (...).

    The weight of a variate h, a unit vector over samples, is Σⱼ |⟨h, xⱼ⟩| over the centred columns xⱼ of x. It is not
    symmetric: the weights are those of x. Ranges from 0 to 1; computed in float64; invariant to invertible linear maps
    of y, and to a shift and a factor of x. Where correlations coincide, the variates, and so the weights, are one
    choice among many; it therefore has no gradient, and a backward pass is an error.

    Arguments and errors are those of ``canonical_correlations``.

    Reference: Morcos, Raghu and Bengio, "Insights on representational similarity in neural networks with canonical
        correlation", NeurIPS 2018, https://arxiv.org/abs/1806.05759: equations 3 and 4.
    """
    a, b, dtype = _two_rows(x, y, validate)
    value: Tensor = _projection_weighted(a, b, _rounding(x), _rounding(y))
    return value.to(dtype)


def _correlations(x: Tensor, y: Tensor, variance: float, validate: bool | None) -> tuple[Tensor, Tensor]:
    """Canonical correlations, and the smaller of the two ranks."""
    a, b, dtype = _two_rows(x, y, validate)
    (p, of_p), (q, of_q) = (orthonormal(rows, variance, _rounding(z))[:2] for rows, z in ((a, x), (b, y)))
    n, d, e = a.shape[-2], a.shape[-1], b.shape[-1]
    with without_autocast(p):
        product = p.mT @ q if d * e <= n * n else (p @ p.mT) @ (q @ q.mT)
    count = min(n, d, e)
    values = torch.linalg.svdvals(product)[..., :count].clamp_max(1)
    level = 4 * max(n, d, e) ** 0.5 * torch.finfo(values.dtype).eps
    values = torch.where(values > level, values, values.detach())  # zero up to rounding: a kink
    return values.to(dtype), torch.minimum(of_p, of_q)


def _two_rows(x: Tensor, y: Tensor, validate: bool | None) -> tuple[Tensor, Tensor, torch.dtype]:
    a, b = (scaled_rows(z, name, validate, dtype=torch.float64) for z, name in ((x, "x"), (y, "y")))
    kernel_checks.check_same_samples(x, y, "x and y")
    return a, b, torch.promote_types(full_precision(x).dtype, full_precision(y).dtype)


def _rounding(x: Tensor) -> float:
    """ε of features in full precision."""
    return torch.finfo(full_precision(x).dtype).eps


def _kept(values: Tensor, variance: float, eps: float, n: int, d: int) -> Tensor:
    """Which singular values (..., k), in descending order, are not zero and among those with this share of variance."""
    level = 2 * max(n, d) ** 0.5 * eps * values.amax(-1, keepdim=True)
    kept = values > level
    if variance < 1:
        square = values.square()
        before = square.cumsum(-1) - square
        kept &= before < variance * square.sum(-1, keepdim=True)
    return kept


class Orthonormal(Parts):
    """U Vᵀ of the singular values of x (..., n, d) that are kept, their number, and the decomposition."""

    @staticmethod
    def forward(x: Tensor, variance: float, eps: float) -> tuple[Tensor, ...]:
        with without_autocast(x):
            u, s, v = torch.linalg.svd(x, full_matrices=False)
            kept = _kept(s, variance, eps, *x.shape[-2:])
            return (u * kept.to(u.dtype).unsqueeze(-2)) @ v, kept.sum(-1), u, s, v, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output[2:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        x, u, s, v, kept = ctx.saved_tensors
        with torch.no_grad(), without_autocast(x):
            slope = _slope_of_orthonormal(gradient, u, s, v, kept.to(u.dtype))
        return once("A canonical correlation", slope, x, gradient), None, None


def _slope_of_orthonormal(gradient: Tensor, u: Tensor, s: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    """The derivative of U f(Σ) Vᵀ, f one for values that are kept and zero for others, applied to a gradient.

    With M = Uᵀ G V: (fᵢ - fⱼ)/(σᵢ - σⱼ) of its symmetric part, (fᵢ + fⱼ)/(σᵢ + σⱼ) of the other, f/σ outside of U or V.
    """
    f, g = kept.unsqueeze(-1), kept.unsqueeze(-2)
    a, b = s.unsqueeze(-1), s.unsqueeze(-2)
    inner = u.mT @ gradient @ v.mT
    symmetric, skew = (inner + inner.mT) / 2, (inner - inner.mT) / 2
    gap = torch.where(f == g, 1.0, a - b)
    total = torch.where(a + b > 0, a + b, 1.0)
    core = u @ (torch.where(f == g, 0.0, (f - g) / gap) * symmetric + (f + g) / total * skew) @ v
    inverse = torch.where(kept > 0, 1 / torch.where(kept > 0, s, 1.0), 0.0).unsqueeze(-2)
    right = gradient @ v.mT
    left = u.mT @ gradient
    beside = ((right - u @ inner) * inverse) @ v
    above = (u * inverse) @ (left - inner @ v)
    return core + beside + above


orthonormal = differentiable(Orthonormal)


class ProjectionWeighted(Parts):
    """PWCCA of centred rows."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, eps_a: float, eps_b: float) -> Tensor:
        with without_autocast(a):
            decompositions = [torch.linalg.svd(z, full_matrices=False) for z in (a, b)]
            p, q = (
                z.U * _kept(z.S, 1.0, eps, *rows.shape[-2:]).to(z.U.dtype).unsqueeze(-2)
                for z, rows, eps in zip(decompositions, (a, b), (eps_a, eps_b), strict=True)
            )
            left, values, _ = torch.linalg.svd(p.mT @ q, full_matrices=False)
            weights = ((p @ left).mT @ a).abs().sum(-1)
            total = weights.sum(-1)
            return (weights * values.clamp_max(1)).sum(-1) / torch.where(total > 0, total, 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise RuntimeError("PWCCA has no gradient, since its weights have none: use cca or svcca.")


_projection_weighted = differentiable(ProjectionWeighted)
