"""The Vendi score: the effective number of different samples according to a kernel."""

import torch
from torch import Tensor

from matrix_ssl.matrix.information.entropy import renyi_entropy_of
from matrix_ssl.matrix.numerics import kernel_checks, validation


def vendi_score(
    gram: Tensor, *, order: float = 1.0, weights: Tensor | None = None, validate: bool | None = None
) -> Tensor:
    """Vendi score exp S(D K D), the effective number of distinct samples, D² = diag(weights), S a Rényi entropy: (...).

    Ranges from 1, where all samples are alike, to the number of positive weights, where all similarities are zero.
    Higher orders give less weight to rare samples: order 0 is the rank, order ∞ the inverse of the largest eigenvalue.
    The score does not increase with the order. Splitting a sample into copies that share its weight leaves it
    unchanged.

    The score of n samples drawn from many more is below that of all of them, since it is at most n: compare scores only
    at equal n.

    Args:
        gram: (..., n, n), symmetric positive semi-definite with a diagonal of one, as ``unit_diagonal`` returns.
        order: the order q, zero or above.
        weights: (..., n), probabilities of the samples: zero or above, divided by their sum; equal by default.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: the kernel is not symmetric, not positive semi-definite or its diagonal is not one; or the weights
            do not fit.
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
    """Square roots of the normalised weights (..., n), for samples (..., n, k); zero weights have no gradient."""
    w = kernel_checks.checked_weights(weights, samples, name, validate)
    share = w / w.sum(-1, keepdim=True)
    return torch.where(share > 0, torch.where(share > 0, share, 1.0).sqrt(), 0.0)
