"""Functions of a symmetric matrix by its eigenvalues, differentiated by divided differences.

The backward pass of ``eigh`` divides by differences of eigenvalues and gives NaN where two coincide, which is where a
uniformity loss leads; the divided difference of the scalar function (Daleckii and Krein, 1965) stays finite there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics.autograd import Parts, differentiable, once
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.spectra.divided_differences import log_difference
from matrix_ssl.matrix.spectra.zero_eigenvalues import zero_level

DividedDifference = Callable[[Tensor, Tensor], Tensor]


class SpectralFunction(Parts):
    """U f(Λ) Uᵀ of a symmetric matrix, and Λ without gradient; the derivative is that of Daleckii and Krein."""

    @staticmethod
    def forward(
        a: Tensor, function: Callable[[Tensor], Tensor], difference: DividedDifference
    ) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(a):
            eigenvalues, vectors = torch.linalg.eigh(a)
            return (vectors * function(eigenvalues).unsqueeze(-2)) @ vectors.mT, eigenvalues, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, _, ctx.difference = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(a, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        a, eigenvalues, vectors = ctx.saved_tensors
        with torch.no_grad(), without_autocast(vectors):
            weights = ctx.difference(eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2))
            rotated = vectors.mT @ (gradient + gradient.mT).mul(0.5) @ vectors
            slope = vectors @ (weights * rotated) @ vectors.mT
        return once("A function of a matrix", slope, a, gradient), None, None


spectral_function = differentiable(SpectralFunction)


class TraceOfLogarithm(Parts):
    """tr(P' log Q') with P' = P + ridge·I and Q' = Q + ridge·I, and the eigenvalues of Q without gradient.

    An eigenvector of Q' whose eigenvalue is zero up to the rounding of ``dtype`` has no gradient and contributes
    nothing, or -inf if P' is above zero along it.
    """

    @staticmethod
    def forward(p: Tensor, q: Tensor, ridge: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
        with without_autocast(q):
            eigenvalues, vectors = torch.linalg.eigh(q)
            shifted = eigenvalues + ridge
            null = shifted <= zero_level(shifted, ridge, dtype=dtype)
            log = torch.where(null, 0.0, torch.where(null, 1.0, shifted).log())
            product = p @ vectors
            weights = (vectors * product).sum(-2) + ridge
            size = torch.linalg.matrix_norm(p).unsqueeze(-1)  # not below the largest eigenvalue of P
            outside = null & (weights > zero_level(size, ridge, d=p.shape[-1], dtype=dtype))
            value = torch.where(outside, -torch.inf, weights * log).sum(-1)
            return value, eigenvalues, shifted, null, log, vectors, product

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        p, q, ctx.ridge, _ = inputs
        ctx.shapes = (p.shape, q.shape)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(p, q, *output[2:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        p, q, shifted, null, log, vectors, product = ctx.saved_tensors
        scale, slopes = gradient[..., None, None], [None, None]
        with torch.no_grad(), without_autocast(vectors):
            if ctx.needs_input_grad[0]:
                slopes[0] = (scale * ((vectors * log.unsqueeze(-2)) @ vectors.mT)).sum_to_size(ctx.shapes[0])
            if ctx.needs_input_grad[1]:
                rotated = vectors.mT @ product
                rotated = rotated + ctx.ridge * torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
                safe = torch.where(null, 1.0, shifted)
                weights = log_difference(safe.unsqueeze(-1), safe.unsqueeze(-2))
                weights = torch.where(null.unsqueeze(-1) | null.unsqueeze(-2), 0.0, weights)
                slopes[1] = (scale * (vectors @ (weights * rotated) @ vectors.mT)).sum_to_size(ctx.shapes[1])
        name = "A matrix cross-entropy or divergence"
        for_p, for_q = (slope if slope is None else once(name, slope, p, q, gradient) for slope in slopes)
        return for_p, for_q, None, None


trace_of_logarithm = differentiable(TraceOfLogarithm)


class LogDeterminant(Parts):
    """log det of a symmetric positive definite matrix by Cholesky, NaN where it is not positive definite.

    The gradient, the inverse, comes from the same factor in a third of the time of the factorisation's own backward.
    """

    @staticmethod
    def forward(a: Tensor) -> tuple[Tensor, Tensor]:
        factor, info = torch.linalg.cholesky_ex(a)
        value = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.where(info == 0, value, torch.nan), factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Tensor:
        return gradient[..., None, None] * inverse_of(*ctx.saved_tensors)


_log_determinant = differentiable(LogDeterminant)


def log_determinant(a: Tensor) -> Tensor:
    """log det of a symmetric positive definite matrix (..., d, d), NaN elsewhere: (...)."""
    return log_determinant_and_factor(a)[0]


def log_determinant_and_factor(a: Tensor) -> tuple[Tensor, Tensor]:
    """``log_determinant``, and the Cholesky factor without gradient."""
    value, factor = _log_determinant(a)
    return value, factor


class Inverse(Parts):
    """The inverse of a symmetric positive definite matrix from its Cholesky factor, differentiable in the matrix."""

    @staticmethod
    def forward(a: Tensor, factor: Tensor) -> Tensor:
        return torch.cholesky_inverse(factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        return -inverse @ gradient @ inverse, None


inverse_of = differentiable(Inverse)
