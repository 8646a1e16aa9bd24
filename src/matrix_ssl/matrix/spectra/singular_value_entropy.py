"""Sums over singular values from which RankMe follows, twice differentiable.

The derivative of Σ f(σ) with respect to x = U Σ Vᵀ is U f'(Σ) Vᵀ, an odd function of x in the sense of singular values.
Its own derivative has, with g = f' and inner = Uᵀ G V, the divided differences (g_i - g_j)/(σ_i - σ_j) of the symmetric
part of inner, (g_i + g_j)/(σ_i + σ_j) of the skew one, and g_i/σ_i beyond the singular vectors (Noferini, SIAM Journal
on Matrix Analysis and Applications 38(2), 2017). PyTorch's ``svd`` divides by differences of singular values, which
gives NaN where two coincide.
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


def entropy_of_singular_values(x: Tensor, *, squared: bool) -> Tensor:
    """-Σ p log p of p = σ / Σ σ, σ the singular values of x (..., m, n) in float64; 0 if all are zero.

    Args:
        x: (..., m, n).
        squared: compute them from the eigenvalues of the smaller Gram matrix, which is faster but keeps half of the
            digits.
    """
    sums = _singular_sums if (followed := needs_vectors(x)) else _SingularSums.forward
    power, total, *_ = sums(x, squared, followed)
    total = torch.where(total > 0, total, 1.0)
    return power / total + total.log()


class _SingularSums(Parts):
    """Σ -s log s and Σ s over s = σ / max σ, a constant, and the decomposition; zeros have no gradient."""

    @staticmethod
    def forward(x: Tensor, squared: bool, with_vectors: bool) -> tuple[Tensor, ...]:
        with without_autocast(x):
            u, values, v = _decomposition(x, squared) if with_vectors else (x, _values(x, squared), x)
        level = zero_level(values, d=min(x.shape[-2:]))
        largest = values.amax(-1, keepdim=True)
        scale = torch.where(largest > 0, largest, 1.0)
        s = values / scale
        return torch.special.entr(s).sum(-1), s.sum(-1), u, s, v, values > level, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(inputs[0], *output[2:])

    @staticmethod
    def backward(ctx: Any, power: Tensor, total: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        x, *decomposition = ctx.saved_tensors
        return _slope(power, total, x, *decomposition), None, None


_singular_sums = differentiable(_SingularSums)


class _Slope(Parts):
    """U (power · (-log s - 1) + total) Vᵀ / c, the derivative of power · Σ -s log s + total · Σ s."""

    @staticmethod
    def forward(power: Tensor, total: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor, support: Tensor,
                scale: Tensor) -> Tensor:  # fmt: skip
        weights = _weights(power, total, s, support) / scale
        with without_autocast(x):
            return (u * weights.unsqueeze(-2)) @ v

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        power, total, x, *decomposition = ctx.saved_tensors
        guarded = [once("A gradient of RankMe", tensor, tensor) for tensor in (power, total, x)]
        return *_moved(gradient, *guarded, *decomposition), *(None,) * 5


_slope = differentiable(_Slope)


class _Moved(Parts):
    """The derivatives of ``_Slope`` by power, total and x, applied to a gradient and differentiable only in it."""

    @staticmethod
    def forward(gradient: Tensor, power: Tensor, total: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor,
                support: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        with without_autocast(x):
            along = torch.where(support, (u.mT @ gradient @ v.mT).diagonal(dim1=-2, dim2=-1) / scale, 0.0)
            slope = -torch.where(support, s, 1.0).log() - 1
            return (along * slope).sum(-1), along.sum(-1), _curvature(gradient, power, total, u, s, v, support, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, by_power: Tensor, by_total: Tensor, by_x: Tensor) -> tuple[Any, ...]:
        _, power, total, x, u, s, v, support, scale = ctx.saved_tensors
        with torch.no_grad(), without_autocast(x):
            weights = _weights(by_power, by_total, s, support) / scale
            slope = (u * weights.unsqueeze(-2)) @ v + _curvature(by_x, power, total, u, s, v, support, scale)
        return once("A gradient of RankMe", slope, power, total, x, by_power, by_total, by_x), *(None,) * 8


_moved = differentiable(_Moved)


def _curvature(
    gradient: Tensor, power: Tensor, total: Tensor, u: Tensor, s: Tensor, v: Tensor, support: Tensor, scale: Tensor
) -> Tensor:
    """The derivative of U g(s) Vᵀ / c along a gradient (..., m, n); pairs with a zero contribute nothing."""
    inner = u.mT @ gradient @ v.mT
    g = _weights(power, total, s, support)
    a, b = s.unsqueeze(-1), s.unsqueeze(-2)
    counted = support.unsqueeze(-1) & support.unsqueeze(-2)
    both = torch.where(counted, a + b, 1.0)
    minus = -power[..., None, None] * power_difference(a, b, 0.0)
    plus = (g.unsqueeze(-1) + g.unsqueeze(-2)) / both
    symmetric, skew = (inner + inner.mT) / 2, (inner - inner.mT) / 2
    core = torch.where(counted, minus * symmetric + plus * skew, 0.0)
    ratio = torch.where(support, g / torch.where(support, s, 1.0), 0.0).unsqueeze(-2)
    beside = ((gradient @ v.mT - u @ inner) * ratio) @ v
    above = (u * ratio) @ (u.mT @ gradient - inner @ v)
    return (u @ core @ v + beside + above) / scale.unsqueeze(-1).square()


def _weights(power: Tensor, total: Tensor, s: Tensor, support: Tensor) -> Tensor:
    log = torch.where(support, s, 1.0).log()
    return torch.where(support, power.unsqueeze(-1) * (-log - 1) + total.unsqueeze(-1), 0.0)


def _values(x: Tensor, squared: bool) -> Tensor:
    return _roots(linalg.eigenvalues(linalg.smaller_product(x))) if squared else torch.linalg.svdvals(x)


def _decomposition(x: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """U (..., m, k), σ (..., k) and Vᵀ (..., k, n), k the smaller side."""
    if not squared:
        return torch.linalg.svd(x, full_matrices=False)
    eigenvalues, vectors = torch.linalg.eigh(linalg.smaller_product(x))
    values = _roots(eigenvalues)
    inverse = torch.where(values > 0, 1 / torch.where(values > 0, values, 1.0), 0.0).unsqueeze(-2)
    if x.shape[-1] <= x.shape[-2]:
        return x @ vectors * inverse, values, vectors.mT.contiguous()
    return vectors, values, (x.mT @ vectors * inverse).mT.contiguous()


def _roots(eigenvalues: Tensor) -> Tensor:
    """Singular values from their squares; what rounding leaves of a zero becomes zero."""
    nonzero = eigenvalues > zero_level(eigenvalues)
    return torch.where(nonzero, torch.where(nonzero, eigenvalues, 1.0).sqrt(), 0.0)
