"""The orthogonal Procrustes distance of two representations."""

from typing import Any

import torch
from torch import Tensor

from matrix_ssl.matrix.comparison.rows import scaled_rows
from matrix_ssl.matrix.numerics import kernel_checks
from matrix_ssl.matrix.numerics.autograd import Parts, differentiable, once
from matrix_ssl.matrix.numerics.precision import full_precision, without_autocast


def procrustes_distance(x: Tensor, y: Tensor, *, validate: bool | None = None) -> Tensor:
    """min over rotations Q of ‖A - BQ‖²_F = 2 - 2 ‖AᵀB‖_*, A and B centred and of Frobenius norm one: (...), 0 to 2.

    It is 0 if one is a rotated, shifted and scaled copy of the other, and 2 if no direction of one is correlated with
    any of the other. Its square root is a metric, and so is arccos(1 - distance / 2). The narrower one is padded with
    zero columns, which changes nothing. Computed on the smaller side, n or the number of columns, and in float64 even
    for float32. It can be differentiated once; a zero singular value of AᵀB, where the norm has a kink, contributes no
    gradient. Features that are constant count as zero, at distance 2 from all others.

    Args:
        x: (..., n, d).
        y: (..., n, e), of the same samples.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: an argument is not a matrix, empty, or not finite, or the numbers of rows differ.

    References:
        Ding, Denain and Steinhardt, "Grounding Representation Similarity Through Statistical Testing", NeurIPS 2021,
        https://arxiv.org/abs/2108.01661: section 2.
        Williams, Kunz, Kornblith and Linderman, "Generalized Shape Metrics on Neural Representations", NeurIPS 2021,
        https://arxiv.org/abs/2110.14739: the metric of the angle.
    """
    a, b = (_unit(z, name, validate) for z, name in ((x, "x"), (y, "y")))
    kernel_checks.check_same_samples(x, y, "x and y")
    value = 2 - 2 * nuclear_norm_of_product(a, b)[0]
    return value.clamp_min(0).to(torch.promote_types(*(full_precision(z).dtype for z in (x, y))))


def _unit(x: Tensor, name: str, validate: bool | None) -> Tensor:
    rows = scaled_rows(x, name, validate, dtype=torch.float64)
    square = rows.square().sum((-2, -1), keepdim=True)
    return rows / torch.where(square > 0, square, 1.0).sqrt()


class NuclearNorm(Parts):
    """‖AᵀB‖_* of rows A (..., n, d) and B (..., n, e), and U Vᵀ of its singular vectors on either side."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with without_autocast(a):
            lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
            a, b = a.expand(*lead, *a.shape[-2:]), b.expand(*lead, *b.shape[-2:])
            short_a, short_b = (torch.linalg.qr(z.mT) if z.shape[-1] > z.shape[-2] else None for z in (a, b))
            inner_a = a if short_a is None else short_a.R.mT  # A = R'ᵀ Qᵀ: the same products on n columns
            inner_b = b if short_b is None else short_b.R.mT
            u, s, v = torch.linalg.svd(inner_a.mT @ inner_b, full_matrices=False)
            level = 2 * s.shape[-1] ** 0.5 * torch.finfo(s.dtype).eps * s.amax(-1, keepdim=True)
            left, right = u * (s > level).to(u.dtype).unsqueeze(-2), v.mT
            left = left if short_a is None else short_a.Q @ left
            right = right if short_b is None else short_b.Q @ right
            return s.sum(-1), left, right

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        a, b, left, right = ctx.saved_tensors
        with torch.no_grad(), without_autocast(a):
            scale = gradient[..., None, None]
            for_a = (scale * ((b @ right) @ left.mT)).sum_to_size(a.shape)
            for_b = (scale * ((a @ left) @ right.mT)).sum_to_size(b.shape)
        name = "The Procrustes distance"
        return once(name, for_a, a, b, gradient), once(name, for_b, a, b, gradient)


nuclear_norm_of_product = differentiable(NuclearNorm)
