"""Losses that compute their gradient together with their value, as PyTorch operators.

An operator is opaque to ``torch.compile``: it does not break the graph, and choices that depend on the data, such as
the degree of a polynomial, are made at every call.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, List  # noqa: UP035

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics.autograd import Parts, differentiable_once
from matrix_ssl.matrix.numerics.precision import full_precision, without_autocast
from matrix_ssl.matrix.numerics.validation import is_mapped


def fused(*, tensors: int, values: int) -> Callable[[Callable[..., Any]], Callable[..., tuple[Tensor, ...]]]:
    """Decorates a function of ``tensors`` tensors and further arguments so that it is differentiable once.

    It returns ``values`` scalars, the loss and others without gradient, and for each tensor a gradient of its shape in
    float32 or better, or ``nothing`` where the last argument, ``needed``, which the caller omits, is false.

    A gradient is cast to the dtype of its tensor only after the product with the incoming one: entries of 1/(nd) are
    below float16's normal range, and a loss scale cannot restore digits that are gone by then.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
        @functools.wraps(function)
        def in_own_precision(*arguments: Any) -> Any:
            with without_autocast(arguments[0]):
                return tuple(output.contiguous() for output in function(*arguments))

        in_own_precision.__signature__ = _signature(function)  # type: ignore[attr-defined]
        operator = torch.library.custom_op(
            f"matrix_ssl::{function.__name__.strip('_')}", in_own_precision, mutates_args=()
        )

        @operator.register_fake
        def _(*arguments: Any) -> tuple[Tensor, ...]:
            inputs, needed = arguments[:tensors], arguments[-1]
            scalar = full_precision(inputs[0]).new_empty(())
            gradients = (
                full_precision(x).new_empty(x.shape) if n else nothing(x) for x, n in zip(inputs, needed, strict=True)
            )
            return *(torch.empty_like(scalar) for _ in range(values)), *gradients

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.save_for_backward(*output[values:])
            ctx.dtypes = [x.dtype for x in inputs[:tensors]]
            ctx.settings = len(inputs) - tensors
            ctx.mark_non_differentiable(*output[1:])

        @differentiable_once
        def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
            saved = zip(ctx.saved_tensors[:tensors], ctx.dtypes, strict=True)
            gradients = ((g * scale.to(g.dtype)).to(dtype) if g.ndim else None for g, dtype in saved)
            return *gradients, *[None] * ctx.settings

        operator.register_autograd(backward, setup_context=setup_context)

        def setup_under_func(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            setup_context(ctx, inputs, output)
            ctx.save_for_backward(*output[values:], *inputs[:tensors])  # a second derivative by the inputs is an error

        under_func: Any = type(
            "UnderFunc",  # the same for torch.func, whose transforms do not support these operators
            (torch.autograd.Function,),
            {
                "forward": staticmethod(in_own_precision),
                "setup_context": staticmethod(setup_under_func),
                "backward": staticmethod(backward),
                "jvp": staticmethod(Parts.jvp),
                "generate_vmap_rule": True,  # jacfwd maps over tangents, which jvp refuses
            },
        )

        def call(*arguments: Any) -> tuple[Tensor, ...]:
            inputs = arguments[:tensors]
            needed = [torch.is_grad_enabled() and x.requires_grad for x in inputs]
            if torch.compiler.is_compiling():
                return operator(*arguments, needed)[:values]
            if any(map(torch._C._functorch.is_functorch_wrapped_tensor, inputs)):
                if any(map(is_mapped, inputs)):
                    raise NotImplementedError(
                        "This loss does not work under torch.func.vmap: call it for one batch at a time."
                    )
                return under_func.apply(*arguments, needed)[:values]
            if any(torch.autograd.forward_ad.unpack_dual(x).tangent is not None for x in inputs):
                Parts.jvp(None)  # an operator would drop the tangents
            return operator(*arguments, needed)[:values]

        return call

    return decorate


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature with types that operators support before PyTorch 2.5: no text, and not ``list[bool]``."""
    signature = inspect.signature(function, eval_str=True)
    flags = List[bool]  # noqa: UP006
    parameters = [
        p.replace(annotation=flags) if p.annotation == list[bool] else p for p in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)


def nothing(like: Tensor) -> Tensor:
    """Placeholder for a gradient that is not needed: a scalar, which the gradient of a matrix never is."""
    return like.new_zeros(())
