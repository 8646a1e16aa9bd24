"""The top tokens: the part of Q that the target and the most probable others make up.

Q_S = Σ_{i in S} q_i y_i y_iᵀ is Q without some positive semi-definite terms, and the logarithm is operator monotone
(Löwner, 1934), hence -yᵀ log(Q_S + ridge·I) y is above the dense value. The target is always in S: then Q_S is not
below q_y yyᵀ and the value not above -log(q_y + ridge), which is what the target alone gives. The probabilities are
those of the whole softmax, and the gradient is exact as long as S stays the same.

Everything happens in the span of the m rows: with their Gram matrix G = CCᵀ the rows of C are coordinates of the tokens
in an orthonormal basis of it.
"""

import math

import torch
from torch import Tensor

from matrix_ssl.llm._head import Head
from matrix_ssl.llm._term import Term, form_of, minus_log


def top(q: Tensor, targets: Tensor, head: Head, ridge: float, count: int) -> Term:
    """The target and the ``count - 1`` most probable others at n positions, q (n, vocabulary) and targets (n,)."""
    tokens = _target_and_most_probable(q, targets, count)
    probabilities, rows = q.gather(1, tokens), head.unit_rows(tokens)
    coordinates = _factor(rows @ rows.mT) if count < rows.shape[-1] else rows
    matrix = coordinates.mT @ (probabilities.unsqueeze(-1) * coordinates)
    value, derivative = minus_log(matrix, coordinates[:, 0], ridge)
    pull = -probabilities.to(matrix.dtype) * form_of(derivative, coordinates)
    return Term(value.to(q.dtype), pull.to(q.dtype), tokens)


def _target_and_most_probable(q: Tensor, targets: Tensor, count: int) -> Tensor:
    """(n, count), the target first. Writes into q and restores it, which saves a copy of a chunk."""
    index = targets.unsqueeze(1)
    own = q.gather(1, index)
    q.scatter_(1, index, math.inf)
    tokens = q.topk(count, dim=1).indices
    q.scatter_(1, index, own)
    return tokens


def _factor(gram: Tensor) -> Tensor:
    """C with CCᵀ = G, in float64; G may be singular, as for tokens with the same row."""
    eigenvalues, vectors = torch.linalg.eigh(gram.double())
    return vectors * eigenvalues.clamp_min(0).sqrt().unsqueeze(-2)
