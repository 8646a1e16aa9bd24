"""Centred kernel alignment (CKA), from features and from kernels, biased and unbiased."""

from typing import Literal

import torch
from torch import Tensor

from matrix_ssl.matrix.comparison.rows import scaled_rows
from matrix_ssl.matrix.kernels.gram import centred
from matrix_ssl.matrix.numerics import kernel_checks, validation
from matrix_ssl.matrix.numerics.linalg import product
from matrix_ssl.matrix.numerics.precision import without_autocast

Estimator = Literal["biased", "unbiased"]


def linear_cka(x: Tensor, y: Tensor, *, estimator: Estimator = "biased", validate: bool | None = None) -> Tensor:
    """Linear CKA ‖XᵀY‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) of centred features: (...), from 0 to 1.

    It is 1 if one is a rotated, shifted and scaled copy of the other. With few samples for the number of columns, the
    biased estimator is far above zero for unrelated features, about √(d e / ((n + d)(n + e))) if these are isotropic;
    the unbiased one is near zero, since its numerator is zero on average, and between -1 and 1. CKA is the ratio of
    HSIC(x, y) to the square root of HSIC(x, x) HSIC(y, y), for linear kernels. It is computed on the side of the
    samples or of the features, whichever is cheaper. Constant features give 0, without gradient.

    float32 is accurate to 1e-5; half precision is computed in float32.

    Args:
        x: (..., n, d).
        y: (..., n, e), of the same samples.
        estimator: estimator of the three HSIC: ``"biased"`` (Gretton et al., 2005), or ``"unbiased"`` (Song et al.,
            2012), which gives the debiased CKA and needs four samples.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: an argument is not a matrix, empty, or not finite; the numbers of rows differ, or are too few.
        ValueError: the estimator is unknown.

    References:
        Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019,
        https://arxiv.org/abs/1905.00414: section 3.
        Nguyen, Raghu and Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021,
        https://arxiv.org/abs/2010.15327: the unbiased estimator.
    """
    a, b = scaled_rows(x, "x", validate), scaled_rows(y, "y", validate)
    kernel_checks.check_same_samples(x, y, "x and y")
    check_estimator(estimator, x, "x")
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    n, d, e = a.shape[-2], a.shape[-1], b.shape[-1]
    with without_autocast(a):
        if d * e + d * d + e * e > n * (d + e):
            return _alignment(product(a.mT), product(b.mT), estimator)
        return _of_moments(a, b, estimator)


def cka(gram_x: Tensor, gram_y: Tensor, *, estimator: Estimator = "biased", validate: bool | None = None) -> Tensor:
    """CKA HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of two kernels of the same n samples: (...).

    The kernels are centred; neither a shift in a kernel's feature space nor a factor changes the value. Constant
    kernels give 0. For linear kernels it equals ``linear_cka``, whose errors it shares.

    Args:
        gram_x, gram_y: (..., n, n), symmetric; from ``matrix_ssl.matrix.kernels`` or any others.
        estimator: ``"biased"`` or ``"unbiased"``.
        validate: see ``matrix_ssl.matrix``.

    References:
        Cortes, Mohri and Rostamizadeh, "Algorithms for Learning Kernels Based on Centered Alignment", JMLR 13, 2012.
        Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414.
    """
    k = validation.checked_symmetric(gram_x, "gram_x", validate)
    l = validation.checked_symmetric(gram_y, "gram_y", validate)  # noqa: E741
    validation.check_same_width(gram_x, gram_y, "gram_x and gram_y")
    check_estimator(estimator, gram_x, "gram_x")
    return _alignment(k, l, estimator)


def check_estimator(estimator: Estimator, x: Tensor, name: str) -> None:
    """Raises for an unknown estimator, or too few samples for the unbiased one."""
    if estimator == "unbiased":
        kernel_checks.check_sample_count(x.shape[-2], 4, x, name, "the unbiased estimator")
    elif estimator != "biased":
        raise ValueError(f"estimator must be 'biased' or 'unbiased', got {estimator!r}.")


def _alignment(k: Tensor, l: Tensor, estimator: Estimator) -> Tensor:  # noqa: E741
    k, l = _scaled(k), _scaled(l)  # noqa: E741
    if estimator == "biased":
        return cosine((k * l).sum((-2, -1)), k.square().sum((-2, -1)), l.square().sum((-2, -1)))
    return cosine(_unbiased(k, l), _unbiased(k, k), _unbiased(l, l))


def _scaled(gram: Tensor) -> Tensor:
    """The centred kernel over its largest element; zero where that is only rounding."""
    k = centred(gram)
    largest = k.detach().abs().amax((-2, -1), keepdim=True)
    constant = largest <= 16 * torch.finfo(k.dtype).eps * gram.detach().abs().amax((-2, -1), keepdim=True)
    return torch.where(constant, 0.0, k / torch.where(constant, 1.0, largest))


def _unbiased(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """n (n - 3) times the unbiased HSIC."""
    own = torch.eye(k.shape[-1], dtype=torch.bool, device=k.device)
    k, l = torch.where(own, 0.0, k), torch.where(own, 0.0, l)  # noqa: E741
    a, b = k.sum(-1), l.sum(-1)
    return unbiased((k * l).sum((-2, -1)), (a * b).sum(-1), a.sum(-1) * b.sum(-1), k.shape[-1])


def unbiased(products: Tensor, shared: Tensor, totals: Tensor, n: int) -> Tensor:
    """n (n - 3) times the unbiased HSIC of n samples, from sums over kernels without their diagonals.

    ``products`` are Σ KᵢⱼLᵢⱼ, ``shared`` Σ kᵢ lᵢ of the sums k and l of rows, ``totals`` Σ kᵢ · Σ lᵢ.
    """
    return products + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * shared


def _of_moments(a: Tensor, b: Tensor, estimator: Estimator) -> Tensor:
    """The alignment of the kernels AAᵀ and BBᵀ of centred rows, without an n x n matrix."""
    if estimator == "biased":
        return cosine(_squared(a, b), _squared(a, a), _squared(b, b))
    p, q = a.square().sum(-1), b.square().sum(-1)  # the diagonals, and minus the sums of a row's other elements
    values = [
        unbiased(_squared(x, y) - (s * t).sum(-1), (s * t).sum(-1), s.sum(-1) * t.sum(-1), a.shape[-2])
        for x, y, s, t in ((a, b, p, q), (a, a, p, p), (b, b, q, q))
    ]
    return cosine(*values)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """‖AᵀB‖²_F."""
    return (product(a) if a is b else a.mT @ b).square().sum((-2, -1))


def cosine(product: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """product / √(first · second), 0 where one is not above zero."""
    defined = (first > 0) & (second > 0)
    root = torch.where(defined, first, 1.0).sqrt() * torch.where(defined, second, 1.0).sqrt()
    return torch.where(defined, product / root, 0.0)
