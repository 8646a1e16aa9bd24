"""The loss chunk by chunk of positions, as functions of PyTorch that are differentiable once.

With hidden states the logits are never whole: one pass in the forward gives value and gradients, which are kept for the
backward. They are those of the sum over positions, before any division, in float32 or better: half precision would lose
what is small before the factor of the mean and a loss scale arrive in the backward. The backward scales them in place
and gives them away: a copy of the head's would cost a quarter of a product. So a second backward of a retained graph
computes them anew. From logits the gradient is as large as they are, so the backward computes it from the logits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from matrix_ssl.errors import NotFiniteError
from matrix_ssl.llm.head import Head
from matrix_ssl.llm.loss.forms import Term, matrix_term
from matrix_ssl.llm.loss.positions import Positions
from matrix_ssl.llm.objective import Objective
from matrix_ssl.matrix.precision import differentiable_once, full_precision, without_autocast
from matrix_ssl.matrix.validation import looks_at_values

Sums = tuple[Tensor, Tensor, Tensor]  # loss, ce and mce over the counted positions; only the loss has a gradient


def sums_from_hidden(hidden: Tensor, head_weight: Tensor, positions: Positions, objective: Objective) -> Sums:
    """The sums from hidden states (batch · length, d), differentiable by them and by the head (vocabulary, d)."""
    needed = [torch.is_grad_enabled() and x.requires_grad for x in (hidden, head_weight)]
    loss, ce, mce = _FromHidden.apply(hidden, head_weight, positions, objective, needed)
    return loss, ce, mce


def sums_from_logits(logits: Tensor, head_weight: Tensor, positions: Positions, objective: Objective) -> Sums:
    """The sums from logits (batch · length, vocabulary), differentiable by them."""
    loss, ce, mce = _FromLogits.apply(logits, head_weight.detach(), positions, objective)
    return loss, ce, mce


class _FromHidden(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head_weight: Tensor, positions: Positions, objective: Objective, needed: list[bool]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden, head_weight)
        ctx.arguments = positions, objective, needed
        sums, ctx.gradients = _values_and_gradients(hidden, head_weight, positions, objective, needed)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # given away by an earlier backward of a graph that was retained
            _, gradients = _values_and_gradients(*inputs, *ctx.arguments)
        scaled = (
            full_precision(gradient).mul_(scale).to(x.dtype) if gradient is not None else None
            for gradient, x in zip(gradients, inputs, strict=True)
        )
        return *scaled, None, None, None


def _values_and_gradients(
    hidden: Tensor, head_weight: Tensor, positions: Positions, objective: Objective, needed: list[bool]
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """The sums, and the gradients of the loss by hidden states and head, None where not needed."""
    with without_autocast(hidden):
        head = Head.of(head_weight, _dtype(hidden, head_weight))
        by_hidden = torch.zeros_like(full_precision(hidden)) if needed[0] else None
        by_head: Tensor | None = None  # set by the first chunk: zeros would be written only to be read

        def logits(part: Positions) -> Tensor:
            return part.take(hidden, head.weight.dtype) @ head.weight.mT

        def collect(part: Positions, slope: Tensor) -> None:
            nonlocal by_head
            if by_hidden is not None:
                by_hidden[part.rows] = (slope @ head.weight).to(by_hidden.dtype)
            if needed[1]:
                inputs = part.take(hidden, head.weight.dtype)
                by_head = slope.mT @ inputs if by_head is None else by_head.addmm_(slope.mT, inputs)

        sums = _sum(positions, head, objective, logits, collect if any(needed) else None)
        if needed[1] and by_head is None:
            by_head = torch.zeros_like(head.weight)
    return sums, (by_hidden, by_head)


class _FromLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, head_weight: Tensor, positions: Positions, objective: Objective
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, head_weight)
        ctx.positions, ctx.objective = positions, objective
        with without_autocast(logits):
            head = Head.of(head_weight, _dtype(logits, head_weight))
            sums = _sum(positions, head, objective, lambda part: part.take(logits, head.weight.dtype), None)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits, head_weight = ctx.saved_tensors
        by_logits = torch.zeros_like(logits)

        def collect(part: Positions, slope: Tensor) -> None:
            by_logits[part.rows] = slope.mul_(scale).to(logits.dtype)

        with without_autocast(logits):
            head = Head.of(head_weight, _dtype(logits, head_weight))
            _sum(ctx.positions, head, ctx.objective, lambda part: part.take(logits, head.weight.dtype), collect)
        return by_logits, None, None, None


def _dtype(x: Tensor, head_weight: Tensor) -> torch.dtype:
    """float64 if one of them has it, float32 otherwise."""
    return torch.float64 if torch.float64 in (x.dtype, head_weight.dtype) else torch.float32


def _sum(
    positions: Positions,
    head: Head,
    objective: Objective,
    logits: Callable[[Positions], Tensor],
    collect: Callable[[Positions, Tensor], None] | None,
) -> Sums:
    """The sums; ``collect`` gets the gradient by the logits (n, vocabulary) of every chunk, and may overwrite it."""
    ce, mce = head.weight.new_zeros(2, len(positions.rows)).unbind()
    for part, own, of_matrix in zip(
        positions.split(objective.chunk), ce.split(objective.chunk), mce.split(objective.chunk), strict=False
    ):
        q = torch.log_softmax(logits(part), 1)
        own.copy_(part.mask(-q.gather(1, part.targets.unsqueeze(1)).squeeze(1)))
        if looks_at_values(q, None) and not own.isfinite().all():
            raise _not_finite(own, part)
        q.exp_()
        term = matrix_term(q, part.targets, head, objective)
        of_matrix.copy_(part.mask(term.value))
        if collect is not None:
            collect(part, part.mask(_slope(q, term, part.targets, objective.weight)))
    totals = ce.sum(), mce.sum()
    return totals[0] + objective.weight * totals[1], *totals


def _slope(q: Tensor, term: Term, targets: Tensor, weight: float) -> Tensor:
    """The gradient by the logits z, overwriting q: ∂q_i/∂z_j = q_i (δ_ij - q_j)."""
    q.mul_(1 - weight * term.pull.sum(1, keepdim=True))
    if term.tokens is None:
        q.add_(term.pull, alpha=weight)
    else:
        q.scatter_add_(1, term.tokens, weight * term.pull)
    return q.scatter_add_(1, targets.unsqueeze(1), q.new_full((len(q), 1), -1.0))


def _not_finite(ce: Tensor, part: Positions) -> NotFiniteError:
    first = int((~ce.isfinite()).nonzero()[0])
    batch, position = divmod(int(part.rows[first]), part.length)
    return NotFiniteError(
        f"The cross-entropy at batch {batch}, position {position} is {ce[first].item()}: the hidden states or logits "
        f"there, or the head, contain NaN or infinite values. Trace the operation that produced them, often too high a "
        f"learning rate or an overflow of half precision."
    )
