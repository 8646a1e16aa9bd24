"""Sums over the eigenvalues of a symmetric matrix from which entropies of any order follow, twice differentiable.

The derivative of ``eigh`` divides by differences of eigenvalues, as does the second derivative of ``eigvalsh``; both
give NaN where two coincide. Here the first derivative is a function of the matrix, and the second uses the divided
difference of that function (Daleckii and Krein, 1965), which stays finite.
"""

from typing import Any

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.matrix.numerics.autograd import Parts, differentiable, once
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.spectra.divided_differences import power_difference
from matrix_ssl.matrix.spectra.eigenvalues import needs_vectors
from matrix_ssl.matrix.spectra.zero_eigenvalues import zero_level


def power_sums(
    a: Tensor, order: float, ridge: float, *, zeros: int = 0, scaled: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ h(x) and Σ x over x = (λ + ridge) / c, and the eigenvalues λ of ``a`` (..., d, d) without gradient.

    ``zeros`` is the number of further zero eigenvalues that ``a``, on the smaller side of features, does not have.

    c is the largest λ + ridge of each matrix, or 1 unless ``scaled``. For an order within 0.25 of one, h(x) is
    (x^order - x) / (1 - order), and -x log x in the limit; otherwise h(x) = x^order. Where x counts as zero
    (``zero_level``), h has the value at max(x, 0), but zero below order one, and no slope up to order one.
    """
    sums = _power_sums if (followed := needs_vectors(a)) else _PowerSums.forward
    power, total, eigenvalues, _, _, scale = sums(a, order, ridge, scaled, followed)
    if zeros and ridge > 0:
        x = ridge / scale.squeeze(-1)
        power, total = power + zeros * _value(x, order), total + zeros * x
    return power, total, eigenvalues


def near_one(order: float) -> bool:
    """Whether ``power_sums`` subtracts the sum of eigenvalues, which keeps all digits around order one."""
    return abs(order - 1) < 0.25


class _PowerSums(Parts):
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


_power_sums = differentiable(_PowerSums)


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
