"""Eigenvalues of a symmetric matrix, twice differentiable where those that count individually are simple.

The derivative of ``eigh`` divides by differences of eigenvalues, as does the second derivative of ``eigvalsh``; both
give NaN where two coincide. Here the second derivative leaves out the pairs of which only the sum counts.
"""

from typing import Any

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.matrix.numerics.autograd import Parts, differentiable, is_transformed, once
from matrix_ssl.matrix.numerics.precision import without_autocast


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
