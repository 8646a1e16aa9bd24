"""The loss, computed one chunk of positions at a time, as PyTorch functions that are differentiable once.

From hidden states, the full logits are never materialised: one pass in the forward gives the value and the gradients,
which are kept for the backward. They are the gradients of the sum over positions, before any division, in float32 or
better: half precision would lose small values before the factor of the mean and a loss scale arrive in the backward.
The backward scales the gradients in place and gives them away, because copying the head's gradient would cost a quarter
of a product. A second backward of a retained graph therefore recomputes them. For per-position values, the factors are
known only in the backward, which then computes the gradients. So it does for logits, whose gradient is as large as they
are.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from matrix_ssl.llm.head import Head
from matrix_ssl.llm.loss.passes import MEASURES, one_pass
from matrix_ssl.llm.loss.positions import Positions
from matrix_ssl.llm.loss.products import add_outer, times_columns
from matrix_ssl.llm.objective import Objective
from matrix_ssl.matrix.numerics.autograd import differentiable_once
from matrix_ssl.matrix.numerics.precision import full_precision, without_autocast

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # w.r.t. hidden states, rows and bias; None if unneeded


class Request(NamedTuple):
    """What to compute from the tensors."""

    positions: Positions
    objective: Objective
    factors: Tensor | None = None  # (n,), one per position; None: 1
    scale: float = 1.0  # of the logits
    softcap: float | None = None
    needed: tuple[bool, bool, bool] = (False, False, False)  # gradients w.r.t. hidden states, rows and bias


def values_from_hidden(
    hidden: Tensor, rows: Tensor, bias: Tensor | None, request: Request, *, each: bool
) -> tuple[Tensor, Tensor]:
    """The loss and its ``MEASURES``, (4,), from hidden states (batch · length, d), rows (vocabulary, d) and bias.

    They are sums over the positions, or, with ``each``, per-position values: (n,) and (4, n). The loss is
    differentiable with respect to all three inputs.
    """
    inputs = hidden, rows, bias
    by_hidden, by_rows, by_bias = (x is not None and torch.is_grad_enabled() and x.requires_grad for x in inputs)
    if torch.is_autocast_enabled(hidden.device.type) and rows.dtype == torch.float32:
        dtype = torch.get_autocast_dtype(hidden.device.type)  # as the model's own head would multiply
    else:
        dtype = rows.dtype
    request = request._replace(needed=(by_hidden, by_rows, by_bias))
    if each:
        loss, measures = _Each.apply(*inputs, request, dtype)
    else:
        loss, measures, *_ = _Sum.apply(*inputs, request, dtype)
    return loss, measures


def values_from_logits(logits: Tensor, rows: Tensor, request: Request, *, each: bool) -> tuple[Tensor, Tensor]:
    """``values_from_hidden`` from logits (batch · length, vocabulary), differentiable with respect to them."""
    loss, measures = _FromLogits.apply(logits, rows.detach(), request, each)
    return loss, measures


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        hidden: Tensor, rows: Tensor, bias: Tensor | None, request: Request, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        values, gradients = _values_and_gradients(hidden, rows, bias, request, dtype)
        loss, measures = _reduce(values, request, each=False)
        return loss, measures, *(values.new_empty(0) if x is None else x for x in gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.request, ctx.dtype = inputs[3:]
        ctx.gradients = output[2:]
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, rows, bias = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # given away by an earlier backward of a retained graph
            gradients = _values_and_gradients(hidden, rows, bias, ctx.request, ctx.dtype)[1]
        scaled = (
            full_precision(gradient).mul_(scale).to(x.dtype) if needed else None
            for gradient, x, needed in zip(gradients, (hidden, rows, bias), ctx.request.needed, strict=True)
        )
        return *scaled, None, None


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(
        hidden: Tensor, rows: Tensor, bias: Tensor | None, request: Request, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        nothing = request._replace(needed=(False, False, False))
        values, _ = _values_and_gradients(hidden, rows, bias, nothing, dtype)
        return _reduce(values, request, each=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.request, ctx.dtype = inputs[3:]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, factors: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, rows, bias), request = ctx.saved_tensors, ctx.request
        factors = factors if request.factors is None else factors * request.factors
        gradients = _values_and_gradients(hidden, rows, bias, request._replace(factors=factors), ctx.dtype)[1]
        pairs = zip(gradients, (hidden, rows, bias), strict=True)
        return *(None if g is None else g.to(x.dtype) for g, x in pairs), None, None


class _FromLogits(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, rows: Tensor, request: Request, each: bool) -> tuple[Tensor, ...]:
        with without_autocast(logits):
            head = Head.of(rows, _dtype(logits, rows))
            values = one_pass(
                request.positions, head, request.objective, lambda part: part.take(logits, head.dtype), None
            )
        return _reduce(values, request, each=each)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.request = inputs[2]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits, rows = ctx.saved_tensors
        by_logits = torch.zeros_like(logits)
        factors = scale if ctx.request.factors is None else scale * ctx.request.factors
        factors = factors.expand(len(ctx.request.positions.rows))

        def collect(part: Positions, slope: Tensor) -> None:
            by_logits[part.rows] = slope.to(logits.dtype)

        with without_autocast(logits):
            head = Head.of(rows, _dtype(logits, rows))
            one_pass(
                ctx.request.positions, head, ctx.request.objective, lambda part: part.take(logits, head.dtype),
                collect, factors=factors,
            )  # fmt: skip
        return by_logits, None, None, None


def _values_and_gradients(
    hidden: Tensor, rows: Tensor, bias: Tensor | None, request: Request, dtype: torch.dtype
) -> tuple[Tensor, Gradients]:
    """The measures (4, n) of the positions, and the gradients of the sum of their losses times factors."""
    with without_autocast(hidden):
        head = Head.of(
            rows.to(dtype), _dtype(hidden, rows), bias=bias, scale=request.scale, softcap=request.softcap
        )  # fmt: skip
        needed = request.needed
        by_hidden = torch.zeros_like(full_precision(hidden)) if needed[0] else None
        by_rows: Tensor | None = None  # set by the first chunk
        by_bias = head.inverse_lengths.new_zeros(len(rows)) if needed[2] else None

        def inputs(part: Positions) -> Tensor:
            return part.take(hidden, dtype if hidden.dtype == torch.float32 else hidden.dtype)

        def collect(part: Positions, slope: Tensor) -> None:
            nonlocal by_rows
            if by_hidden is not None:
                by_hidden[part.rows] = times_columns(slope, head.weight).to(by_hidden.dtype)
            if needed[1]:
                by_rows = add_outer(by_rows, slope, inputs(part), head.weight.dtype)
            if by_bias is not None:
                by_bias.add_(slope.sum(0))

        values = one_pass(
            request.positions, head, request.objective, lambda part: head.logits(inputs(part)),
            collect if any(needed) else None, factors=request.factors,
        )  # fmt: skip
        if needed[1] and by_rows is None:
            by_rows = head.inverse_lengths.new_zeros(rows.shape)
    return values, (by_hidden, by_rows, by_bias)


def _reduce(values: Tensor, request: Request, *, each: bool) -> tuple[Tensor, Tensor]:
    """Loss and measures per position, or their sums; the factors apply to loss, ce and mce."""
    ce, mce, *rest = values.unbind()
    if request.factors is not None:
        ce, mce = ce * request.factors, mce * request.factors
    if each:
        return ce + request.objective.weight * mce, torch.stack([ce, mce, *rest])
    measures = torch.stack([x.sum() for x in (ce, mce, *rest)])
    assert len(measures) == len(MEASURES)
    return measures[0] + request.objective.weight * measures[1], measures


def _dtype(x: Tensor, rows: Tensor) -> torch.dtype:
    """float64 if either tensor has it, float32 otherwise."""
    return torch.float64 if torch.float64 in (x.dtype, rows.dtype) else torch.float32
