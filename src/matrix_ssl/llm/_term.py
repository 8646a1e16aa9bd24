"""What every form of the matrix cross-entropy computes, and the one formula behind all of them.

A form describes every token i by coordinates s_i in a space of few dimensions and the target by a vector a there:

    M = Σ_i q_i s_i s_iᵀ        value = -aᵀ log(M + ridge·I) a        ∂value/∂q_i = -s_iᵀ L s_i

with L the Fréchet derivative of log at M + ridge·I in the direction aaᵀ, symmetric and positive semi-definite. So no
token's gradient has the wrong sign: more probability on any token never raises the value, and softmax makes them
compete.

    form       s_i                        a          dimensions
    closed     <y_i, y>                   1          1
    lanczos    Vᵀ y_i, V from q and y     Vᵀ y       steps
    top        y_i, of few tokens i       y          min(top, d)
    dense      y_i                        y          d
"""

from typing import NamedTuple

import torch
from torch import Tensor

from matrix_ssl.matrix._spectral import log_difference


class Term(NamedTuple):
    """The matrix cross-entropy of n positions and its gradient by their probabilities q."""

    value: Tensor  # (n,)
    pull: Tensor  # (n, m), q_i · ∂value/∂q_i
    tokens: Tensor | None = None  # (n, m), which i; None where m is the whole vocabulary in its order


def minus_log(matrix: Tensor, a: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """-aᵀ log(M + ridge·I) a (...) and L (..., r, r), see above, of M (..., r, r) and a (..., r).

    The decomposition is in float64: in float32 a logarithm errs by 1e-7 times the condition number, 1/ridge here.
    """
    eigenvalues, vectors = torch.linalg.eigh(matrix.double())
    shifted = eigenvalues.clamp_min(0) + ridge  # rounding can leave a zero eigenvalue below zero
    along = (vectors.mT @ a.double().unsqueeze(-1)).squeeze(-1)
    value = -(along.square() * shifted.log()).sum(-1)
    differences = log_difference(shifted.unsqueeze(-1), shifted.unsqueeze(-2))
    derivative = vectors @ (differences * along.unsqueeze(-1) * along.unsqueeze(-2)) @ vectors.mT
    return value.to(matrix.dtype), derivative.to(matrix.dtype)


def form_of(derivative: Tensor, coordinates: Tensor) -> Tensor:
    """s_iᵀ L s_i (..., m) for coordinates in rows (..., m, r)."""
    return ((coordinates @ derivative) * coordinates).sum(-1)
