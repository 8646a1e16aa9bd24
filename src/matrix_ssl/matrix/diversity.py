"""The Vendi score: how many different samples a kernel counts."""

import torch
from torch import Tensor

from matrix_ssl.matrix import kernel_checks, validation
from matrix_ssl.matrix.entropy import renyi_entropy_of


def vendi_score(
    gram: Tensor, *, order: float = 1.0, weights: Tensor | None = None, validate: bool | None = None
) -> Tensor:
    """Vendi score exp S(D K D), the effective number of different samples, D² = diag(weights), S of Rényi order: (...).

    From 1, where all samples are alike, to the number of weights above zero, where all similarities are zero. Higher
    orders count rare samples less: order 0 is the rank, order ∞ the inverse of the largest eigenvalue. It does not
    increase with the order. Copies of a sample that share its weight leave it as it is.

    Of n samples drawn from many more it is below that of all, since n is its largest value: compare scores of equal n.

    Args:
        gram: (..., n, n), symmetric positive semi-definite with a diagonal of one; ``unit_diagonal`` gives it one.
        order: the order q, zero or above.
        weights: (..., n), zero or above, divided by their sum; equal ones by default. Probabilities of the samples.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: the kernel is not symmetric, not positive semi-definite or has another diagonal than one; or the
            weights do not fit.
        ValueError: the order is below zero.

    Reference: Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR 2023,
        https://arxiv.org/abs/2210.02410; of order q Pasarkar and Dieng, "Cousins of the Vendi Score", AISTATS 2024,
        https://arxiv.org/abs/2310.12952.
    """
    validation.check_entropy_order(order, "order")
    full = validation.checked_symmetric(gram, "gram", validate)
    kernel_checks.check_unit_diagonal(full, gram, "gram", validate)
    if weights is not None:
        root = root_weights(weights, full, "gram", validate)
        full = root.unsqueeze(-1) * full * root.unsqueeze(-2)
    return renyi_entropy_of(full, gram, "gram", alpha=order, validate=validate).exp()


def root_weights(weights: Tensor, samples: Tensor, name: str, validate: bool | None) -> Tensor:
    """Roots of the weights (..., n) over their sum, for samples (..., n, k); zero weights have no gradient."""
    w = kernel_checks.checked_weights(weights, samples, name, validate)
    share = w / w.sum(-1, keepdim=True)
    return torch.where(share > 0, torch.where(share > 0, share, 1.0).sqrt(), 0.0)
