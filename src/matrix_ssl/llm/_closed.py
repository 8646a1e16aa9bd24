"""The closed form: one direction, the target's own.

    -log(Σ_i q_i <y_i, y>² + ridge)  ≤  -yᵀ log(Q + ridge·I) y

by Jensen: the right side is the mean of the convex function -log(λ + ridge) over the eigenvalues λ of Q, with weights
<u_λ, y>², and the left side the function of their mean yᵀQy. One product more with the head.
"""

from torch import Tensor

from matrix_ssl.llm._head import Head
from matrix_ssl.llm._term import Term


def closed(q: Tensor, targets: Tensor, head: Head, ridge: float) -> Term:
    """The closed form at n positions, q (n, vocabulary) and targets (n,)."""
    weighted = head.products(head.unit_rows(targets)).square_().mul_(q)
    shifted = weighted.sum(1) + ridge
    return Term(-shifted.log() * head.has_direction(targets), weighted.div_(-shifted.unsqueeze(1)))
