"""``torch.autograd.Function``s that work with both ``torch.func`` and ``torch.compile``, and refuse what they lack.

``torch.func`` requires a ``setup_context`` alongside ``forward``, which the compiler of PyTorch 2.4 does not accept: a
compiled program gets a twin of the function in the older style, built from the same parts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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


def is_transformed(x: Tensor) -> bool:
    """Whether ``x`` is seen through ``torch.func`` (vmap, grad, ...), where its values cannot be read."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)
