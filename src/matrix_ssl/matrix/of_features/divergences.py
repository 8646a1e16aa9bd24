"""Divergences between covariances of features, or between the Gram matrices of two encoders."""

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from matrix_ssl.matrix.comparison.rows import named_representations
from matrix_ssl.matrix.covariances import About, rows_about
from matrix_ssl.matrix.information import density_matrices, divergence
from matrix_ssl.matrix.information.entropy import collision_entropy, norm_and_trace
from matrix_ssl.matrix.numerics import kernel_checks, validation
from matrix_ssl.matrix.numerics.linalg import product, smaller_product
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.numerics.scaling import rescaled, unit_length
from matrix_ssl.matrix.of_features.kernels import two_unit_rows
from matrix_ssl.matrix.spectra import logarithm, spectral_entropies
from matrix_ssl.matrix.spectra.divided_differences import log_difference
from matrix_ssl.matrix.spectra.eigenvalues import eigenvalues_of
from matrix_ssl.matrix.spectra.matrix_functions import spectral_function


def matrix_cross_entropy(
    x: Tensor, y: Tensor, *, ridge: float = 0.0, about: About = "mean", validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.matrix_cross_entropy`` of the covariances of x (..., n, d), P, and y (..., k, d), Q: (...).

    Computed on the smaller side of y with a ridge, and on that of the features without. Leading dimensions are
    broadcast.
    """
    value = _cross_entropy(*_two_rows(x, y, ridge, about, validate), ridge)
    validation.check_representable(torch.where(value.isnan(), value, 0.0), x, "x", validate, "fourth powers")
    return value


def matrix_kl(
    x: Tensor, y: Tensor, *, ridge: float = 0.0, about: About = "mean", validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.matrix_kl`` of the covariances of x and y plus ridge·I; see ``matrix_cross_entropy``."""
    value = _kl(*_two_rows(x, y, ridge, about, validate), ridge)
    validation.check_representable(torch.where(value.isnan(), value, 0.0), x, "x", validate, "fourth powers")
    return value


def gram_kl(x: Tensor, y: Tensor, *, ridge: float = 0.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.matrix_kl`` of two encoders, between the Gram matrices of their outputs for the same samples.

    The Gram matrices are those of rows scaled to length one, divided by n so that their trace is one, with ridge·I
    added to both: (...). The divergence, which is not symmetric, measures how far the second encoder's similarities
    between samples fail to describe the first's. Without a ridge it is infinite unless y separates all samples that x
    separates (the range of x's matrix lies within that of y's), for which y in general needs n columns; a ridge of
    1 / n gives every sample as much additional weight as it already has. Computed on the smaller side: n or the number
    of columns of y.

    Args:
        x: (..., n, d), P.
        y: (..., n, e), Q, of the same n samples.
        ridge: μ ≥ 0.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: an argument is not a matrix, empty, or not finite, or the numbers of rows differ.

    Reference: Zhang et al., ICML 2024, definition 2.2; the Gram matrices of Song et al., ICML 2024.
    """
    validation.check_ridge(ridge)
    a, b = two_unit_rows(x, y, validate)
    root = math.sqrt(a.shape[-2])
    dtype = torch.promote_types(a.dtype, b.dtype)
    return _kl(
        (a.mT / root).to(dtype), (b.mT / root).to(dtype), ridge
    )  # rows of length n, whose moment is the Gram matrix


def gram_kl_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None = None, *, ridge: float, validate: bool | None = None
) -> Tensor:
    """``gram_kl`` of every representation in ``xs``, P, with every one in ``ys``, Q: (..., L, M), computed in float64.

    Each n x n Gram matrix is computed and decomposed only once; all pairs are then inner products of Gram matrices and
    their logarithms. Not symmetric, and zero on the diagonal when ``xs`` is compared with itself.

    Args:
        xs: L representations (..., n, dᵢ).
        ys: M representations (..., n, eⱼ) of the same samples; by default ``xs``.
        ridge: μ > 0, such as 1 / n.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: as in ``gram_kl``; the errors name ``xs[i]`` or ``ys[j]``.
        ValueError: there is no representation, or the ridge is not above zero.
    """
    validation.check_constant(ridge=ridge)
    validation.check_positive(ridge=ridge)
    first, second = named_representations(xs, ys)
    everything = [validation.checked_matrix(x, name, validate) for name, x in (first | second).items()]
    grams = [product(unit_length(x.double()).mT) / x.shape[-2] for x in everything]
    k = torch.stack(torch.broadcast_tensors(*grams), -3)
    # log(ridge) (tr P + n ridge) is part of both terms and would cost digits by cancellation: omitted from both
    logarithms, *_ = spectral_function(
        k, lambda x: torch.log1p(x.clamp_min(0) / ridge), lambda x, y: log_difference(x + ridge, y + ridge)
    )
    shifted, traces = k + ridge * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device), _traces(k)
    own = (shifted * logarithms).sum((-2, -1)) - traces
    count, others = len(first), len(second or first)
    with without_autocast(k):
        crossed = shifted[..., :count, :, :].flatten(-2) @ logarithms[..., -others:, :, :].flatten(-2).mT
    value = own[..., :count].unsqueeze(-1) - crossed + traces[..., -others:].unsqueeze(-2)
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in everything))
    return value.to(dtype)


def jensen_renyi_divergence(
    *features: Tensor,
    alpha: float,
    weights: density_matrices.Weights = None,
    about: About = "mean",
    validate: bool | None = None,
) -> Tensor:
    """``matrix_ssl.matrix.jensen_renyi_divergence`` of covariances of features (..., nᵢ, d) scaled to trace one: (...).

    The numbers of rows may differ. Computed on the smaller side: d or nᵢ for each, d or Σ nᵢ for the mixture.
    """
    validation.check_entropy_order(alpha)
    if len(features) < 2:
        raise ValueError(f"At least 2 sets of features are needed, got {len(features)}.")
    names = [f"features {number}" for number in range(1, len(features) + 1)]
    w = density_matrices.mixture_weights(weights, len(features))
    parts = []
    for x, name in zip(features, names, strict=True):
        rows = rescaled(rows_about(x, name, about, validate))
        trace = _trace(rows)
        validation.check_representable(trace, x, name, validate, "sums")
        kernel_checks.check_trace(trace, x, f"covariance of {name}", validate)
        parts.append(rows / trace[..., None, None].sqrt())
    for (first, name), (second, other) in itertools.combinations(zip(features, names, strict=True), 2):
        validation.check_same_width(first, second, f"{name} and {other}")
    lead = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
    mixture = torch.cat(
        [part.expand(*lead, *part.shape[-2:]) * math.sqrt(weight) for part, weight in zip(parts, w, strict=True)], -2
    )
    single = sum(weight * _entropy(part, alpha) for weight, part in zip(w, parts, strict=True))
    return _entropy(mixture, alpha) - single


def holevo_information(
    *features: Tensor, weights: density_matrices.Weights = None, about: About = "mean", validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.holevo_information`` of the covariances of features; see ``jensen_renyi_divergence``."""
    return jensen_renyi_divergence(*features, alpha=1.0, weights=weights, about=about, validate=validate)


def schatten_divergence(
    x: Tensor, y: Tensor, *, order: float = 1.0, about: About = "mean", validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.schatten_divergence`` of the covariances of x (..., n, d) and y (..., k, d): (...).

    Computed on the side of the features, since the difference of two covariances has no smaller symmetric counterpart.
    """
    a, b = (rescaled(rows_about(z, name, about, validate)) for z, name in ((x, "x"), (y, "y")))
    validation.check_same_width(x, y, "x and y")
    for rows, features, name in ((a, x, "x"), (b, y, "y")):
        validation.check_representable(_trace(rows), features, name, validate, "sums")
        kernel_checks.check_trace(_trace(rows), features, f"covariance of {name}", validate)
    dtype = torch.promote_types(a.dtype, b.dtype)
    first, second = product(a.to(dtype)), product(b.to(dtype))
    return density_matrices.schatten_divergence(first, second, order=order, validate=validate)


def _cross_entropy(a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """MCE of AᵀA and BᵀB."""
    d = b.shape[-1]
    if ridge == 0 or b.shape[-2] >= d:
        return divergence.cross_entropy_of(product(a), product(b), ridge, b.dtype)[0]
    constant = math.log(ridge) * (_trace(a) + d * ridge)
    return _trace(b) + d * ridge - constant - _trace_of_log1p(a, b, ridge)


def _kl(a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """MKL of AᵀA and BᵀB."""
    if ridge == 0 or b.shape[-2] >= b.shape[-1]:
        return divergence.kl_of(product(a), product(b), ridge, b.dtype)[0]
    # log(ridge)·(tr P + d·ridge) is part of both terms and would cost digits by cancellation: omitted from both
    gram = smaller_product(a)
    eigenvalues = eigenvalues_of(gram, used=gram.shape[-1]).clamp_min(0)
    own = ((eigenvalues + ridge) * torch.log1p(eigenvalues / ridge)).sum(-1)
    return own - _trace_of_log1p(a, b, ridge) - _trace(a) + _trace(b)


def _two_rows(x: Tensor, y: Tensor, ridge: float, about: About, validate: bool | None) -> tuple[Tensor, Tensor]:
    validation.check_ridge(ridge)
    a, b = rows_about(x, "x", about, validate), rows_about(y, "y", about, validate)
    validation.check_same_width(x, y, "x and y")
    for rows, features, name in ((a, x, "x"), (b, y, "y")):
        validation.check_representable(_trace(rows), features, name, validate)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _entropy(rows: Tensor, alpha: float) -> Tensor:
    """The Rényi entropy of BᵀB over its trace."""
    gram = smaller_product(rows)
    if alpha == 2:
        return collision_entropy(*norm_and_trace(gram, 0.0, rows.shape[-1]))
    return spectral_entropies.renyi_of(gram, alpha)[0]


def _traces(a: Tensor) -> Tensor:
    return a.diagonal(dim1=-2, dim2=-1).sum(-1)


def _trace(rows: Tensor) -> Tensor:
    """tr BᵀB."""
    return rows.square().sum((-2, -1))


def _trace_of_log1p(a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """tr[(AᵀA + μI) log(I + BᵀB / μ)] on the side of the rows of B."""
    with without_autocast(b):
        gram, cross = b @ b.mT, b @ a.mT
        weights = cross @ cross.mT + ridge * gram
    return (weights * logarithm.log1p_ratio(gram, ridge, validate=False)).sum((-2, -1))
