"""The dense form: Q itself, position by position. The reference for the others, and about as dear as it looks."""

import torch
from torch import Tensor

from matrix_ssl.llm._head import Head
from matrix_ssl.llm._term import Term, form_of, minus_log


def dense(q: Tensor, targets: Tensor, head: Head, ridge: float) -> Term:
    """-yᵀ log(Q + ridge·I) y at n positions, q (n, vocabulary) and targets (n,); a d x d eigenproblem for each."""
    rows = head.weight * head.inverse_lengths.unsqueeze(1)
    value, pull = q.new_empty(len(q)), torch.empty_like(q)
    for t, (probabilities, target) in enumerate(zip(q, rows[targets], strict=True)):
        value[t], derivative = minus_log(rows.mT @ (probabilities.unsqueeze(1) * rows), target, ridge)
        pull[t] = -probabilities * form_of(derivative, rows)
    return Term(value, pull)
