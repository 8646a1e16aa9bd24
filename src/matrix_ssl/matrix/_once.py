"""Backward passes that have no derivative of their own."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes ``create_graph=True`` an error.

    PyTorch's ``once_differentiable`` raises one only where the incoming gradient has a graph. A derivative by what was
    saved, as in a Hessian or a penalty on the gradient, would silently be zero.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "this function can be differentiated once: its gradient has no graph (create_graph=True)"
            )
        return backward(ctx, *gradients)

    return wrapped
