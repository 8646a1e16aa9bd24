"""One pass over the positions: cross-entropy, matrix term, entropy and accuracy of each, and gradients w.r.t. logits.

A chunk of positions needs a few (chunk, vocabulary) matrices. On the CPU, positions with the same target are put next
to each other, so that the closed form needs the products of that target's row with the head only once. Everything
except products with the head is also computed there for a few positions at a time, which stay in the cache: a whole
chunk would not fit.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from matrix_ssl.errors import NotFiniteError
from matrix_ssl.llm.head import Head
from matrix_ssl.llm.loss.forms import Squares, Term, matrix_term
from matrix_ssl.llm.loss.positions import Positions
from matrix_ssl.llm.objective import Objective
from matrix_ssl.matrix.numerics.validation import looks_at_values

# in nats, except the last, which is 1 where the most probable token is the target
MEASURES = ("ce", "mce", "entropy", "correct")

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # comes with PyTorch on Linux

_IN_CACHE = 1 << 17  # numbers in a block of rows, per core: half a megabyte in float32

Collect = Callable[[Positions, Tensor], None]  # gets the gradient w.r.t. a chunk's raw products; may overwrite it


def one_pass(
    positions: Positions, head: Head, objective: Objective, logits: Callable[[Positions], Tensor],
    collect: Collect | None, *, factors: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The ``MEASURES`` (4, n) of the positions; ``factors`` (n,) multiply the gradients alone.

    ``logits`` returns those of a chunk, (m, vocabulary), in memory that may be overwritten. ``collect`` receives the
    gradient of the loss with respect to hidden @ rowsᵀ + bias, which are the logits if these have no scale or cap.
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
            slope = z  # which is overwritten
            _by_rows(z, part, own, head, objective, with_gradient=collect is not None)
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
    """Whether the closed form of logits (n, vocabulary) is computed by Triton kernels, which run on CUDA devices."""
    return z.is_cuda and z.dtype == torch.float32 and objective.form == "closed" and _HAS_TRITON


def _by_kernels(
    z: Tensor, part: Positions, own: Tensor, head: Head, objective: Objective, *, with_gradient: bool
) -> Tensor:
    """The gradient with respect to the logits, in their place, or the logits as they are; writes all measures."""
    from matrix_ssl.llm.loss.triton_kernels import closed_form

    measures = closed_form(
        z, head.cosines(part.targets), part.targets, head.has_direction(part.targets),
        weight=objective.weight, ridge=objective.ridge, with_gradient=with_gradient,
    )  # fmt: skip
    own.copy_(measures.mT)
    return z


def _by_rows(
    z: Tensor, part: Positions, own: Tensor, head: Head, objective: Objective, *, with_gradient: bool
) -> None:  # fmt: skip
    """Overwrites logits (n, vocabulary), with their gradient if it is requested, and writes all measures."""
    targets = part.targets
    squares = Squares.of(targets, head) if objective.form == "closed" else None
    rows = _rows_in_cache(z) if objective.form in ("closed", "top") else len(z)  # the others multiply by the head
    for start in range(0, len(z), rows):
        few = slice(start, start + rows)
        q, asked = _softmax(z[few], targets[few], own[:, few]), targets[few]
        if looks_at_values(z, None) and not own[0, few].isfinite().all():
            rest = slice(start + rows, None)
            _softmax(z[rest], targets[rest], own[:, rest])
            raise _not_finite(own[0], part)
        term = matrix_term(q, asked, head, objective, squares=None if squares is None else squares.take(few))
        own[1, few] = term.value
        if with_gradient:
            _slope(q, term, asked, objective.weight)


def _rows_in_cache(z: Tensor) -> int:
    """How many rows of a chunk (n, vocabulary) are computed at a time: on the CPU, as many as stay in its caches."""
    if not looks_at_values(z, None):
        return len(z)
    return max(1, _IN_CACHE * torch.get_num_threads() // z.shape[1])


def _softmax(z: Tensor, targets: Tensor, own: Tensor) -> Tensor:
    """The probabilities of logits, which they overwrite; writes all measures except mce."""
    own[3] = z.argmax(1) == targets
    log_q = torch.log_softmax(z, 1)
    own[0] = -log_q.gather(1, targets.unsqueeze(1)).squeeze(1)
    q = torch.exp(log_q, out=z)
    own[2] = -log_q.clamp_(min=torch.finfo(z.dtype).min).mul_(q).sum(1)  # a logit of -inf contributes nothing
    return q


def _slope(q: Tensor, term: Term, targets: Tensor, weight: float) -> Tensor:
    """The gradient with respect to the logits z, overwriting q: ∂q_i/∂z_j = q_i (δ_ij - q_j)."""
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
