"""The four forms of the matrix cross-entropy, and the one formula behind all of them.

A form describes every token i by coordinates s_i in a low-dimensional space, and the target by a vector a in it:

    M = Σ_i q_i s_i s_iᵀ        value = -aᵀ log(M + ridge·I) a        ∂value/∂q_i = -s_iᵀ L s_i

where L is the Fréchet derivative of log at M + ridge·I in the direction aaᵀ, symmetric and positive semi-definite. More
probability on any token therefore never raises the value, and softmax makes the tokens compete.

    form       s_i                        a          dimensions
    closed     <y_i, y>                   1          1
    lanczos    Vᵀ y_i, V from q and y     Vᵀ y       steps
    top        y_i, of few tokens i       y          min(top, d)
    dense      y_i                        y          d

All take q (n, vocabulary), targets (n,), the head and the ridge.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from matrix_ssl.llm.head import Head
from matrix_ssl.llm.objective import Objective
from matrix_ssl.matrix.numerics.validation import looks_at_values
from matrix_ssl.matrix.spectra.divided_differences import log_difference


class Term(NamedTuple):
    """The matrix cross-entropy of n positions and its gradient with respect to their probabilities q."""

    value: Tensor  # (n,)
    pull: Tensor  # (n, m), q_i · ∂value/∂q_i
    tokens: Tensor | None = None  # (n, m), the tokens i; None if m is the whole vocabulary, in order


def matrix_term(
    q: Tensor, targets: Tensor, head: Head, objective: Objective, *, squares: Tensor | None = None
) -> Term:  # fmt: skip
    """The matrix cross-entropy at n positions, q (n, vocabulary) and targets (n,), in the form of the objective.

    ``squares`` (n, vocabulary) are those of the closed form, if already known; they are overwritten.
    """
    if objective.form == "closed":
        squares = Squares.of(targets, head).take(slice(None)) if squares is None else squares
        return closed(q, squares, head.has_direction(targets), objective.ridge)
    if objective.form == "lanczos":
        return lanczos(q, targets, head, objective.ridge, objective.steps)
    if objective.form == "top":
        return top(q, targets, head, objective.ridge, objective.top)
    return dense(q, targets, head, objective.ridge)


class Squares(NamedTuple):
    """<y_i, y>² for every token i and the y of each of n targets, from one product with the head.

    On the CPU each distinct target token has one row, however often it occurs.
    """

    rows: Tensor  # (m, vocabulary)
    place: Tensor | None  # (n,), the row of each target; None: they are in order

    @classmethod
    def of(cls, targets: Tensor, head: Head) -> "Squares":
        """The squares for targets (n,)."""
        if not looks_at_values(targets, None):
            return cls(head.cosines(targets).square_(), None)
        tokens, place = targets.unique(return_inverse=True)
        return cls(head.cosines(tokens).square_(), place)

    def take(self, part: slice) -> Tensor:
        """The squares of some targets, (k, vocabulary), which the caller may overwrite if it takes each part once."""
        return self.rows[part] if self.place is None else self.rows[self.place[part]]


def closed(q: Tensor, squares: Tensor, direction: Tensor, ridge: float) -> Term:
    """One direction, the target's own; from squares (n, vocabulary), which it overwrites, and the length of y (n,).

    -log(Σ_i q_i <y_i, y>² + ridge)  ≤  -yᵀ log(Q + ridge·I) y

    by Jensen's inequality: the right-hand side is the mean of the convex function -log(λ + ridge) over the eigenvalues
    λ of Q, with weights <u_λ, y>², and the left-hand side is that function at their mean yᵀQy.
    """
    weighted = squares.mul_(q)
    shifted = weighted.sum(1) + ridge
    return Term(-shifted.log() * direction, weighted.div_(-shifted.unsqueeze(1)))


def lanczos(q: Tensor, targets: Tensor, head: Head, ridge: float, steps: int) -> Term:
    """``steps`` directions, grown from the target's by 2·steps - 1 products with the head.

    V (d, k) is an orthonormal basis of y, Qy, ..., Q^(k-1) y, and the value is -aᵀ log(VᵀQV + ridge·I) a with a = Vᵀy.
    This is k-node Gauss quadrature of the dense form, which is a mean over eigenvalues (Golub and Meurant, "Matrices,
    Moments and Quadrature", 2010, chapters 6 and 7). Its error is f⁽²ᵏ⁾(ξ)/(2k)! times the integral of a square. The
    even derivatives of f = -log(λ + ridge) are (2k-1)!/(λ + ridge)²ᵏ > 0, so the value is below the dense one, and not
    below that of fewer steps. One step gives the closed form; steps that exhaust the space give the dense value.

    The gradient treats V as fixed. For any orthonormal V with y in its range, the value is a lower bound of the dense
    form at every q (operator convexity of -log; Davis, 1957), and the gradient is exact for that bound. As a gradient
    of the dense form, it replaces (Q + s·I)⁻¹ y by k steps of conjugate gradients, and its error falls with k as theirs
    does.
    """
    basis = [head.unit_rows(targets)]
    coordinates = [head.products(basis[0])]
    while len(basis) < steps:
        basis.append(_next_direction(head.combine(q * coordinates[-1]), basis))
        coordinates.append(head.products(basis[-1]))
    s = torch.stack(coordinates, 1)  # (n, steps, vocabulary)
    del coordinates
    a = q.new_zeros(len(q), steps)
    a[:, 0] = head.has_direction(targets)
    # VᵀQV as a sum of squares, not from the recurrence's coefficients: a bound for whatever V rounding has left
    value, derivative = _minus_log((s * q.unsqueeze(1)) @ s.mT, a, ridge)
    return Term(value, (derivative @ s).mul_(s).sum(1).mul_(q).neg_())


def top(q: Tensor, targets: Tensor, head: Head, ridge: float, count: int) -> Term:
    """The part of Q contributed by the target and the ``count - 1`` most probable other tokens.

    Q_S = Σ_{i in S} q_i y_i y_iᵀ is Q without some positive semi-definite terms, and the logarithm is operator monotone
    (Löwner, 1934), so -yᵀ log(Q_S + ridge·I) y is above the dense value. The target is always in S, so the value is not
    above -log(q_y + ridge), which the target alone gives. The probabilities are those of the full softmax, and the
    gradient is exact as long as S stays the same.

    With the Gram matrix G = CCᵀ of the rows of S, the rows of C are their coordinates in an orthonormal basis.
    """
    tokens = _target_and_most_probable(q, targets, count)
    probabilities, rows = q.gather(1, tokens), head.unit_rows(tokens)
    coordinates = _factor(rows @ rows.mT) if count < rows.shape[-1] else rows
    matrix = coordinates.mT @ (probabilities.unsqueeze(-1) * coordinates)
    value, derivative = _minus_log(matrix, coordinates[:, 0], ridge)
    pull = -probabilities.to(matrix.dtype) * _quadratic_form(derivative, coordinates)
    return Term(value.to(q.dtype), pull.to(q.dtype), tokens)


def dense(q: Tensor, targets: Tensor, head: Head, ridge: float) -> Term:
    """The full Q, with a d x d eigenproblem for each position: slow, and the reference for the other forms."""
    rows = head.weight.to(head.dtype) * head.inverse_lengths.unsqueeze(1)
    value, pull = q.new_empty(len(q)), torch.empty_like(q)
    for t, (probabilities, target) in enumerate(zip(q, rows[targets], strict=True)):
        value[t], derivative = _minus_log(rows.mT @ (probabilities.unsqueeze(1) * rows), target, ridge)
        pull[t] = -probabilities * _quadratic_form(derivative, rows)
    return Term(value, pull)


def _minus_log(matrix: Tensor, a: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """-aᵀ log(M + ridge·I) a (...) and L (..., r, r), see above, for M (..., r, r) and a (..., r).

    The decomposition is in float64: in float32, the logarithm has an error of 1e-7 times the condition number, here
    1/ridge.
    """
    eigenvalues, vectors = torch.linalg.eigh(matrix.double())
    shifted = eigenvalues.clamp_min(0) + ridge  # rounding can leave a zero eigenvalue below zero
    along = (vectors.mT @ a.double().unsqueeze(-1)).squeeze(-1)
    value = -(along.square() * shifted.log()).sum(-1)
    differences = log_difference(shifted.unsqueeze(-1), shifted.unsqueeze(-2))
    derivative = vectors @ (differences * along.unsqueeze(-1) * along.unsqueeze(-2)) @ vectors.mT
    return value.to(matrix.dtype), derivative.to(matrix.dtype)


def _quadratic_form(derivative: Tensor, coordinates: Tensor) -> Tensor:
    """s_iᵀ L s_i (..., m) for coordinates in rows (..., m, r)."""
    return ((coordinates @ derivative) * coordinates).sum(-1)


def _next_direction(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """The component of ``vector`` (n, d) orthogonal to the basis, at unit length; zero where only rounding is left."""
    rest = vector
    for _ in range(2):  # one pass leaves errors relative to the vector, which may be far longer than the rest
        for direction in basis:
            rest = rest - direction * torch.linalg.vecdot(direction, rest).unsqueeze(1)
    length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
    least = 16 * torch.finfo(rest.dtype).eps * torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    exhausted = length <= least
    return torch.where(exhausted, 0.0, rest / torch.where(exhausted, 1.0, length))


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
