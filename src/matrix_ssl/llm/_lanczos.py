"""Lanczos: few directions, grown from the target's by products with the head.

V (d, k) is an orthonormal basis of y, Qy, ..., Q^(k-1) y, and the value is -aᵀ log(VᵀQV + ridge·I) a with a = Vᵀy:
Gauss quadrature with k nodes of the mean over eigenvalues that the dense form is (Golub and Meurant, "Matrices, Moments
and Quadrature", 2010, chapters 6 and 7). Its error is f⁽²ᵏ⁾(ξ)/(2k)! times the integral of a square; the even
derivatives of f = -log(λ + ridge) are (2k-1)!/(λ + ridge)²ᵏ, above zero, hence the value is below the dense one, and
not below that of fewer steps. One step is the closed form, and steps that exhaust the space give the dense value.

The gradient holds V fixed. For any orthonormal V that has y in its range, the value is a lower bound of the dense form
at every q (operator convexity of -log; Davis, 1957), and the gradient is exact for that bound. As a gradient of the
dense form it has k steps of conjugate gradients in the place of (Q + s·I)⁻¹ y, so it is exact when k steps exhaust the
space, and its error falls with k as theirs does.
"""

import torch
from torch import Tensor

from matrix_ssl.llm._head import Head
from matrix_ssl.llm._term import Term, minus_log


def lanczos(q: Tensor, targets: Tensor, head: Head, ridge: float, steps: int) -> Term:
    """``steps`` steps at n positions, q (n, vocabulary) and targets (n,); 2·steps - 1 products with the head."""
    basis = [head.unit_rows(targets)]
    coordinates = [head.products(basis[0])]
    while len(basis) < steps:
        basis.append(_next_direction(head.combine(q * coordinates[-1]), basis))
        coordinates.append(head.products(basis[-1]))
    s = torch.stack(coordinates, 1)  # (n, steps, vocabulary)
    del coordinates
    a = q.new_zeros(len(q), steps)
    a[:, 0] = head.has_direction(targets)
    # VᵀQV as a sum of squares instead of the recurrence's coefficients: a bound for whatever V rounding left
    value, derivative = minus_log((s * q.unsqueeze(1)) @ s.mT, a, ridge)
    return Term(value, (derivative @ s).mul_(s).sum(1).mul_(q).neg_())


def _next_direction(image: Tensor, basis: list[Tensor]) -> Tensor:
    """The part of ``image`` (n, d) that is orthogonal to the basis, of length one; zero where rounding is all of it."""
    rest = image
    for _ in range(2):  # once leaves rounding relative to the image, which may be far longer than the rest
        for direction in basis:
            rest = rest - direction * torch.linalg.vecdot(direction, rest).unsqueeze(1)
    length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
    least = 16 * torch.finfo(rest.dtype).eps * torch.linalg.vector_norm(image, dim=1, keepdim=True)
    exhausted = length <= least
    return torch.where(exhausted, 0.0, rest / torch.where(exhausted, 1.0, length))
