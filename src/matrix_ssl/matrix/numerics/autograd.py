"""``torch.autograd.Function``s that work with both ``torch.func`` and ``torch.compile``, and refuse what they lack.

``torch.func`` requires a ``setup_context`` alongside ``forward``, which the compiler of PyTorch 2.4 does not accept: a
compiled program gets a twin of the function in the older style, built from the same parts.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ONCE = "This function can be differentiated once: its gradient has no graph (create_graph=True)."


class Parts:
    """What ``differentiable`` makes a function from: ``forward(*inputs)``, ``setup_context``, ``backward``, ``jvp``."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refuses forward-mode differentiation, unless it is overridden."""
        raise RuntimeError(
            "This function has no forward-mode derivative: use torch.autograd, torch.func.grad or torch.func.jacrev."
        )


def differentiable(parts: Any) -> Callable[..., Any]:
    """A differentiable function of its parts; ``vmap`` runs the same operations on batches."""

    def older_forward(ctx: Any, *inputs: Any) -> Any:
        output = parts.forward(*inputs)
        parts.setup_context(ctx, inputs, output)
        return output

    names = ("forward", "setup_context", "backward", "jvp")
    body: dict[str, Any] = {name: staticmethod(getattr(parts, name)) for name in names} | {"generate_vmap_rule": True}
    eager: Any = type(parts.__name__, (torch.autograd.Function,), body)
    body = {"forward": staticmethod(older_forward), "backward": staticmethod(parts.backward)}
    compiled: Any = type(f"Compiled{parts.__name__}", (torch.autograd.Function,), body)

    def run(*inputs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return eager.apply(*inputs)
        # torch.is_tensor, since the compiler of PyTorch 2.4 cannot tell by isinstance what a function is not
        if torch.is_grad_enabled() and any(torch.is_tensor(x) and x.requires_grad for x in inputs):
            return compiled.apply(*inputs)
        return parts.forward(*inputs)

    run.__doc__, run.__module__ = parts.__doc__, parts.__module__
    return run


class NotTwice(Parts):
    """Passes a gradient on unchanged; its own derivative is an error that says so."""

    @staticmethod
    def forward(gradient: Tensor, name: str, *dependencies: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise RuntimeError(f"{ctx.name} can be differentiated once: its second derivative is not provided.")


not_twice = differentiable(NotTwice)


def once(name: str, gradient: Tensor, *dependencies: Tensor) -> Tensor:
    """``gradient``, computed from the dependencies without a graph, so that its derivative is an error."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return gradient
    result: Tensor = not_twice(gradient.detach(), name, *dependencies)
    return result


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


def is_transformed(x: Tensor) -> bool:
    """Whether ``x`` is seen through ``torch.func`` (vmap, grad, ...), where its values cannot be read."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)
