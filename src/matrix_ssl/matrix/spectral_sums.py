"""Sums over the eigenvalues of a symmetric matrix from which entropies of any order follow, twice differentiable.

The derivative of ``eigh`` divides by differences of eigenvalues, as does the second derivative of ``eigvalsh``; both
give NaN where two coincide. Here the first derivative is a function of the matrix, and the second uses the divided
difference of that function (Daleckii and Krein, 1965), which stays finite.
"""

from typing import Any

import torch
from torch import Tensor

from matrix_ssl.matrix._eigenvalues import zero_level
from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.matrix.numerics.autograd import Parts, differentiable, is_transformed, once
from matrix_ssl.matrix.numerics.precision import without_autocast


def spectral_sums(
    a: Tensor, order: float, ridge: float, *, zeros: int = 0, scaled: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ h(x) and Σ x over x = (λ + ridge) / c, and the eigenvalues λ of ``a`` (..., d, d) without gradient.

    ``zeros`` is the number of further zero eigenvalues that ``a``, on the smaller side of features, does not have.

    c is the largest λ + ridge of each matrix, or 1 unless ``scaled``. For an order within 0.25 of one, h(x) is
    (x^order - x) / (1 - order), and -x log x in the limit; otherwise h(x) = x^order. Where x counts as zero
    (``zero_level``), h has the value at max(x, 0), but zero below order one, and no slope up to order one.
    """
    sums = _spectral_sums if (followed := needs_vectors(a)) else _SpectralSums.forward
    power, total, eigenvalues, _, _, scale = sums(a, order, ridge, scaled, followed)
    if zeros and ridge > 0:
        x = ridge / scale.squeeze(-1)
        power, total = power + zeros * _value(x, order), total + zeros * x
    return power, total, eigenvalues


def needs_vectors(a: Tensor) -> bool:
    """Whether a derivative with respect to ``a`` may be requested."""
    if torch.compiler.is_compiling() or is_transformed(a):
        return True
    return (torch.is_grad_enabled() and a.requires_grad) or torch.autograd.forward_ad.unpack_dual(a).tangent is not None


class Eigenvalues(Parts):
    """Eigenvalues in ascending order, for functions of the ``used`` largest ones and of the sum of all."""

    @staticmethod
    def forward(a: Tensor, used: int) -> tuple[Tensor, Tensor]:
        with without_autocast(a):
            eigenvalues, vectors = torch.linalg.eigh(a)
        return eigenvalues, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, ctx.used = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(a, output[0].detach(), output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:
        return _weighted(gradient, *ctx.saved_tensors, ctx.used), None


_eigenvalues_of = differentiable(Eigenvalues)


class Weighted(Parts):
    """V diag(w) Vᵀ, the derivative of eigenvalues along weights w (..., d)."""

    @staticmethod
    def forward(weights: Tensor, a: Tensor, values: Tensor, vectors: Tensor, used: int) -> Tensor:
        return _rotated(torch.diag_embed(weights), vectors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.used = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        weights, a, *spectrum = ctx.saved_tensors
        guarded = [once("A gradient of eigenvalues", x, x) for x in (weights, a)]
        return *_moved(gradient, *guarded, *spectrum, ctx.used), *(None,) * 3


_weighted = differentiable(Weighted)


class Moved(Parts):
    """The derivatives of ``Weighted`` by weights and matrix, applied to a gradient and differentiable only in it."""

    @staticmethod
    def forward(gradient: Tensor, weights: Tensor, a: Tensor, values: Tensor, vectors: Tensor, used: int
                ) -> tuple[Tensor, Tensor]:  # fmt: skip
        inner = _rotated(gradient, vectors.mT)
        moved = _rotated(_apart(weights, values, used) * (inner + inner.mT) / 2, vectors)
        return inner.diagonal(dim1=-2, dim2=-1).clone(), moved

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.used = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, by_weights: Tensor, by_matrix: Tensor) -> tuple[Any, ...]:
        _, weights, a, values, vectors = ctx.saved_tensors
        with torch.no_grad():
            inner = _rotated(by_matrix, vectors.mT)
            inner = _apart(weights, values, ctx.used) * (inner + inner.mT) / 2 + torch.diag_embed(by_weights)
            slope = _rotated(inner, vectors)
        return once("A gradient of eigenvalues", slope, weights, a, by_weights, by_matrix), *(None,) * 5


_moved = differentiable(Moved)


def _rotated(a: Tensor, vectors: Tensor) -> Tensor:
    """V A Vᵀ."""
    with without_autocast(vectors):
        return vectors @ a @ vectors.mT


def _apart(weights: Tensor, values: Tensor, used: int) -> Tensor:
    """(w_i - w_j) / (λ_i - λ_j) of all pairs, and zero on the diagonal and where neither is among the ``used`` largest.

    Where two coincide it is undefined: an error, or NaN where values cannot be read.
    """
    d = values.shape[-1]
    gap = values.unsqueeze(-1) - values.unsqueeze(-2)
    level = 4 * d**0.5 * torch.finfo(values.dtype).eps * values.abs().amax(-1)[..., None, None]
    single = torch.arange(d, device=values.device) >= d - used
    counted = single.unsqueeze(-1) | single.unsqueeze(-2)
    counted = counted & ~torch.eye(d, dtype=torch.bool, device=values.device)
    close = counted & (gap.abs() <= level)
    if not torch.compiler.is_compiling() and not is_transformed(close) and close.any():
        raise RuntimeError(
            "A function of single eigenvalues can be differentiated once where they coincide: its second derivative "
            "is not defined there."
        )
    ratio = (weights.unsqueeze(-1) - weights.unsqueeze(-2)) / torch.where(counted & ~close, gap, 1.0)
    return torch.where(close, torch.nan, torch.where(counted, ratio, 0.0))


def eigenvalues_of(a: Tensor, *, used: int) -> Tensor:
    """Eigenvalues (..., d) of a symmetric matrix in ascending order, for functions of the largest and of their sum.

    They can be differentiated twice where the ``used`` largest ones, on which a function depends individually, differ
    from all others. The others matter only through their sum, so they may coincide.
    """
    if not needs_vectors(a):
        return linalg.eigenvalues(a)
    eigenvalues: Tensor = _eigenvalues_of(a, used)[0]
    return eigenvalues


def near_one(order: float) -> bool:
    """Whether ``spectral_sums`` subtracts the sum of eigenvalues, which keeps all digits around order one."""
    return abs(order - 1) < 0.25


class _SpectralSums(Parts):
    @staticmethod
    def forward(a: Tensor, order: float, ridge: float, scaled: bool, with_vectors: bool) -> tuple[Tensor, ...]:
        with without_autocast(a):
            if with_vectors:
                eigenvalues, vectors = torch.linalg.eigh(a)
            else:
                eigenvalues = linalg.eigenvalues(a)
                vectors = eigenvalues.clone()  # not used
        x, support, scale = _scaled(eigenvalues, ridge, scaled)
        counted = torch.where(support, x, 0.0) if order < 1 else x.clamp_min(0)
        # at order one a value below the zero level counts, but without gradient: the two agree to rounding
        return _value(counted, order).sum(-1), counted.sum(-1), eigenvalues, vectors, support, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, ctx.order, ctx.ridge, ctx.scaled, _ = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(a, *output[2:])
        if not torch.compiler.is_compiling():
            ctx.save_for_forward(a, *output[2:])

    @staticmethod
    def backward(ctx: Any, power: Tensor, total: Tensor, *_: Any) -> tuple[Tensor, None, None, None, None]:
        a, *spectrum = ctx.saved_tensors
        return _slope(power, total, a, *spectrum, ctx.order, ctx.ridge, ctx.scaled), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, ...]:
        a, *spectrum = ctx.saved_tensors
        one, zero = torch.ones_like(spectrum[0][..., 0]), torch.zeros_like(spectrum[0][..., 0])
        slopes = [
            _slope(*weights, a, *spectrum, ctx.order, ctx.ridge, ctx.scaled) for weights in ((one, zero), (zero, one))
        ]
        return *((slope * tangent).sum((-2, -1)) for slope in slopes), None, None, None, None


_spectral_sums = differentiable(_SpectralSums)


class _Slope(Parts):
    """V (power · h'(x) + total) Vᵀ / c, the derivative of power · Σ h + total · Σ x."""

    @staticmethod
    def forward(power: Tensor, total: Tensor, a: Tensor, eigenvalues: Tensor, vectors: Tensor, support: Tensor,
                scale: Tensor, order: float, ridge: float, scaled: bool) -> Tensor:  # fmt: skip
        slope, flat = _slopes(eigenvalues, support, scale, order, ridge)
        weights = power.unsqueeze(-1) * slope + total.unsqueeze(-1) * flat
        with without_autocast(vectors):
            return (vectors * weights.unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        power, total, a, *spectrum, ctx.order, ctx.ridge, _ = inputs
        ctx.save_for_backward(power, total, a, *spectrum)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        power, total, a, *spectrum = ctx.saved_tensors
        guarded = [once("An entropy's gradient", x, x) for x in (power, total, a)]
        return *_curvature(gradient, *guarded, *spectrum, ctx.order, ctx.ridge), *(None,) * 7


_slope = differentiable(_Slope)


class _Curvature(Parts):
    """The derivatives of ``_Slope`` by power, total and a, applied to a gradient, in which they are linear.

    They can be differentiated only in that gradient, as a Hessian-vector product by two backward passes requires; the
    other arguments refuse a derivative.
    """

    @staticmethod
    def forward(gradient: Tensor, power: Tensor, total: Tensor, a: Tensor, eigenvalues: Tensor, vectors: Tensor,
                support: Tensor, scale: Tensor, order: float, ridge: float) -> tuple[Tensor, ...]:  # fmt: skip
        with without_autocast(gradient):
            rotated = vectors.mT @ (gradient + gradient.mT).mul(0.5) @ vectors
            along = rotated.diagonal(dim1=-2, dim2=-1)
            slope, flat = _slopes(eigenvalues, support, scale, order, ridge)
            difference = power[..., None, None] * _differences(eigenvalues, support, scale, order, ridge)
            curved = vectors @ (difference * rotated) @ vectors.mT
            return (along * slope).sum(-1), (along * flat).sum(-1), curved

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.order, ctx.ridge = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, by_power: Tensor, by_total: Tensor, by_matrix: Tensor) -> tuple[Any, ...]:
        _, power, total, a, eigenvalues, vectors, support, scale = ctx.saved_tensors
        with torch.no_grad(), without_autocast(vectors):
            slope, flat = _slopes(eigenvalues, support, scale, ctx.order, ctx.ridge)
            inner = power[..., None, None] * _differences(eigenvalues, support, scale, ctx.order, ctx.ridge)
            inner = inner * (vectors.mT @ (by_matrix + by_matrix.mT).mul(0.5) @ vectors)
            inner = inner + torch.diag_embed(by_power.unsqueeze(-1) * slope + by_total.unsqueeze(-1) * flat)
            result = vectors @ inner @ vectors.mT
        dependencies = (power, total, a, by_power, by_total, by_matrix)
        return once("An entropy's gradient", result, *dependencies), *(None,) * 9


_curvature = differentiable(_Curvature)


def _scaled(eigenvalues: Tensor, ridge: float, scaled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x, which of them are above the zero level, and c (..., 1)."""
    shifted = eigenvalues + ridge
    support = shifted > zero_level(shifted, ridge)
    largest = shifted.amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0) if scaled else torch.ones_like(largest)
    return shifted / scale, support, scale


def _value(x: Tensor, order: float) -> Tensor:
    if order == 1:
        return torch.special.entr(x)
    if near_one(order):
        positive = x > 0
        log = torch.where(positive, x, 1.0).log()
        return torch.where(positive, x * torch.expm1((order - 1) * log), -x) / (1 - order)
    return x.pow(order)


def _slopes(eigenvalues: Tensor, support: Tensor, scale: Tensor, order: float, ridge: float) -> tuple[Tensor, Tensor]:
    """h'(x) / c and 1 / c; zero where x counts as zero and the order is one or below."""
    x = ((eigenvalues + ridge) / scale).clamp_min(0)
    counted = support if order <= 1 else support.any(-1, keepdim=True).expand_as(support)  # not of the zero matrix
    positive = x > 0
    safe = torch.where(positive, x, 1.0)
    if near_one(order):
        log = safe.log()
        slope = -log - 1 if order == 1 else order * torch.expm1((order - 1) * log) / (1 - order) - 1
        at_zero = 0.0 if order <= 1 else -1 / (1 - order)
    else:
        slope, at_zero = order * safe.pow(order - 1), 0.0
    slope = torch.where(positive, slope, at_zero)
    return torch.where(counted, slope, 0.0) / scale, counted.to(scale.dtype) / scale


def _differences(eigenvalues: Tensor, support: Tensor, scale: Tensor, order: float, ridge: float) -> Tensor:
    """(h'(x) - h'(y)) / (x - y) / c² for all pairs; zero where it would be infinite or one of them counts as zero."""
    x = ((eigenvalues + ridge) / scale).clamp_min(0)
    shape = (*x.shape, x.shape[-1])
    a, b = x.unsqueeze(-1).expand(shape), x.unsqueeze(-2).expand(shape)
    difference = (-order if near_one(order) else order * (order - 1)) * power_difference(a, b, order - 1)
    counted = support.unsqueeze(-1) & support.unsqueeze(-2)
    if order > 1:  # from a zero to another value it is finite
        counted = support.unsqueeze(-1) | support.unsqueeze(-2)
        counted = counted | (support.any(-1)[..., None, None] & (order >= 2))
    return torch.where(counted, difference, 0.0) / scale.unsqueeze(-1).square()


def power_difference(a: Tensor, b: Tensor, exponent: float) -> Tensor:
    """(a^e - b^e) / (e (a - b)) of numbers not below zero, without cancellation; (log a - log b) / (a - b) at e = 0.

    With m the larger one and t = log of the ratio, at most 0, it is m^(e-1) · expm1(e t) / (e expm1(t)). Where both are
    zero it is the limit for equal ones, and 0 where that is infinite.
    """
    large, small = torch.maximum(a, b), torch.minimum(a, b)
    inside = small > 0
    safe = torch.where(large > 0, large, 1.0)
    y = torch.where(inside, (small - large) / (small + large), 0.0)
    t = 2 * torch.atanh(y)
    apart = t < 0
    log = torch.where(apart, t, -1.0)
    ratio = (log if exponent == 0 else torch.expm1(exponent * log) / exponent) / torch.expm1(log)
    value = safe.pow(exponent - 1) * torch.where(apart, ratio, 1.0)
    if exponent <= 0:
        return torch.where(inside, value, 0.0)
    at_one_zero = torch.where(large > 0, safe.pow(exponent - 1) / exponent, float(exponent == 1))
    return torch.where(inside, value, at_one_zero)
