"""Helpers to compute in float32 or better with autocast off, and for functions that can be differentiated only once."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

_ONCE = "This function can be differentiated once: its gradient has no graph (create_graph=True)."

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def full_precision(x: Tensor) -> Tensor:
    """float64 as it is, every other real dtype in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which products keep the dtype of their factors."""
    if x.is_meta:  # tensors without values have no autocast
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def in_full_precision(loss: Loss) -> Loss:
    """Decorates a loss: its tensors are converted to float32 (float64 stays as it is) and autocast is off."""

    @functools.wraps(loss)
    def wrapped(*outputs: Any, **settings: Any) -> Tensor:
        first = next((x for x in (*outputs, *settings.values()) if isinstance(x, Tensor)), None)
        with nullcontext() if first is None else without_autocast(first):  # without one, the loss's checks raise
            return loss(*map(_convert, outputs), **{name: _convert(value) for name, value in settings.items()})

    return cast(Loss, wrapped)


def _convert(value: Any) -> Any:
    return full_precision(value) if isinstance(value, Tensor) and not value.is_complex() else value


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a backward pass that has no derivative of its own: ``create_graph=True`` is an error.

    ``torch.func`` always asks for a graph: there the gradient gets one, and differentiating it is the error. It depends
    on the saved tensors, so what is differentiated must be among them.

    PyTorch's ``once_differentiable`` raises an error only where the incoming gradient has a graph. A derivative with
    respect to saved tensors, as in a Hessian or a gradient penalty, would silently be zero.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *gradients: Any) -> Any:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return backward(ctx, *gradients)
        saved = [x for x in ctx.saved_tensors if isinstance(x, Tensor)]
        func = torch._C._functorch
        if func.maybe_current_level() is None and not any(map(func.is_functorch_wrapped_tensor, saved)):
            raise RuntimeError(_ONCE)
        anchors = [x for x in (*gradients, *saved) if isinstance(x, Tensor) and x.is_floating_point()]
        with torch.no_grad():
            result = backward(ctx, *gradients)
        parts = result if isinstance(result, tuple) else (result,)
        parts = tuple(_Last.apply(x, *anchors) if isinstance(x, Tensor) else x for x in parts)
        return parts if isinstance(result, tuple) else parts[0]

    return wrapped


class _Last(torch.autograd.Function):
    """A gradient that depends on tensors but cannot be differentiated with respect to them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *_: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(_ONCE)
