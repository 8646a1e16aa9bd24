"""One pass over the positions: cross-entropy, matrix term, entropy and accuracy of every one, and gradients by logits.

A chunk of positions needs a few (chunk, vocabulary) matrices. On the CPU, positions with one target stand side by side:
the closed form then needs the products of that target's row with the head once.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from matrix_ssl.errors import NotFiniteError
from matrix_ssl.llm.head import Head
from matrix_ssl.llm.loss.forms import Term, matrix_term
from matrix_ssl.llm.loss.positions import Positions
from matrix_ssl.llm.objective import Objective
from matrix_ssl.matrix.validation import looks_at_values

# in nats, but the last: 1 where the most probable token is the target
MEASURES = ("ce", "mce", "entropy", "correct")

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # comes with PyTorch on Linux

Collect = Callable[[Positions, Tensor], None]  # gets the gradient by the raw products of a chunk; may overwrite it


def one_pass(
    positions: Positions, head: Head, objective: Objective, logits: Callable[[Positions], Tensor],
    collect: Collect | None, *, factors: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The ``MEASURES`` (4, n) of the positions; ``factors`` (n,) multiply the gradients alone.

    ``logits`` gives those of a chunk, (m, vocabulary), in memory that may be overwritten. ``collect`` gets the gradient
    of the loss by hidden @ rowsᵀ + bias, hence by the logits where they have neither scale nor cap.
    """
    values = head.inverse_lengths.new_zeros(len(MEASURES), len(positions.rows))
    order = positions.targets.argsort(stable=True) if looks_at_values(positions.targets, None) else None
    if order is not None:
        positions = positions.reorder(order)
        factors = None if factors is None else factors[order]
    start = 0
    for part in positions.split(objective.chunk):
        place = slice(start, start := start + len(part.rows))
        own, z = values[:, place], logits(part)
        bend = 1 - (z / head.softcap).square_() if collect is not None and head.softcap is not None else None
        if uses_kernels(z, objective):
            slope = _by_kernels(z, part, own, head, objective, with_gradient=collect is not None)
        else:
            q = _softmax(z, part, own)
            term = matrix_term(q, part.targets, head, objective)
            own[1] = term.value
            slope = q if collect is None else _slope(q, term, part.targets, objective.weight)
        part.mask(own.T)
        if collect is not None:
            if bend is not None:
                slope *= bend
            if factors is not None:
                slope *= factors[place].unsqueeze(1)
            collect(part, part.mask(slope if head.scale == 1 else slope.mul_(head.scale)))
    if order is None:
        return values
    return torch.empty_like(values).index_copy_(1, order, values)


def uses_kernels(z: Tensor, objective: Objective) -> bool:
    """Whether the closed form of logits (n, vocabulary) is computed by Triton's kernels, which GPUs of NVIDIA have."""
    return z.is_cuda and z.dtype == torch.float32 and objective.form == "closed" and _HAS_TRITON


def _by_kernels(
    z: Tensor, part: Positions, own: Tensor, head: Head, objective: Objective, *, with_gradient: bool
) -> Tensor:
    """The gradient by logits, which it overwrites, or the logits; writes all measures."""
    from matrix_ssl.llm.loss.triton_kernels import closed_form

    measures = closed_form(
        z, head.cosines(part.targets), part.targets, head.has_direction(part.targets),
        weight=objective.weight, ridge=objective.ridge, with_gradient=with_gradient,
    )  # fmt: skip
    own.copy_(measures.mT)
    return z


def _softmax(z: Tensor, part: Positions, own: Tensor) -> Tensor:
    """The probabilities of logits, which they overwrite; writes all measures but mce."""
    own[3] = z.argmax(1) == part.targets
    log_q = torch.log_softmax(z, 1)
    own[0] = -log_q.gather(1, part.targets.unsqueeze(1)).squeeze(1)
    if looks_at_values(z, None) and not own[0].isfinite().all():
        raise _not_finite(own[0], part)
    q = torch.exp(log_q, out=z)
    own[2] = -log_q.clamp_(min=torch.finfo(z.dtype).min).mul_(q).sum(1)  # a logit of -inf has no part in it
    return q


def _slope(q: Tensor, term: Term, targets: Tensor, weight: float) -> Tensor:
    """The gradient by the logits z, overwriting q: ∂q_i/∂z_j = q_i (δ_ij - q_j)."""
    q.mul_(1 - weight * term.pull.sum(1, keepdim=True))
    if term.tokens is None:
        q.add_(term.pull, alpha=weight)
    else:
        q.scatter_add_(1, term.tokens, weight * term.pull)
    return q.scatter_add_(1, targets.unsqueeze(1), q.new_full((len(q), 1), -1.0))


def _not_finite(ce: Tensor, part: Positions) -> NotFiniteError:
    wrong = (~ce.isfinite()).nonzero().squeeze(1)
    first = wrong[part.rows[wrong].argmin()]
    batch, position = divmod(int(part.rows[first]), part.length)
    return NotFiniteError(
        f"The cross-entropy at batch {batch}, position {position} is {ce[first].item()}: the hidden states or logits "
        f"there, or the head, contain NaN or infinite values. Trace the operation that produced them, often too high a "
        f"learning rate or an overflow of half precision."
    )
