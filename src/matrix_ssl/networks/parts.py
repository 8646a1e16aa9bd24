"""A large batch in little memory: a network computes it in parts or blocks, and again for the gradient.

The outputs of a batch are first computed part by part, without a graph. Once a loss that sees all of them has returned
the gradient with respect to the outputs, every part is computed again with its graph, and the parameter gradients are
summed. Value and gradient are those of the whole batch up to rounding, for any loss, at the cost of one extra forward
pass; only the activations of one part at a time are in memory.

This holds for networks whose rows do not depend on each other: those without BatchNorm, or with BatchNorm that uses
fixed running statistics. The statistics of a whole batch cannot be computed in parts with less memory: at every such
layer their gradient needs sums over all parts, so the graphs of all parts would be in memory. For such networks,
blocks are recomputed on the whole batch instead, which keeps the input of a block but not what is inside it.

Reference: Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
RepL4NLP 2021, section 3.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Forward = Callable[[Tensor], Tensor]


def compute_in_parts(network: nn.Module, parts: int) -> None:
    """Makes a network's forward pass, (n, ...) to (n, k), work in ``parts`` parts (at least one) in training mode.

    It then has no gradient with respect to its input, and raises an error if one is requested.
    """
    network.forward = functools.partial(_in_parts, network, network.forward, parts)


def _in_parts(network: nn.Module, forward: Forward, parts: int, x: Tensor) -> Tensor:
    chunks = x.chunk(parts)
    if not network.training or len(chunks) == 1:
        return forward(x)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not torch.is_grad_enabled() or not parameters:
        return torch.cat([forward(chunk) for chunk in chunks])
    if x.requires_grad:
        raise ValueError("A network that computes in parts gives no gradient by its input: detach it.")
    result: Tensor = _Parts.apply(forward, chunks, *parameters)
    return result


def recompute_blocks(network: nn.Module) -> int:
    """Makes the blocks of a network keep only their inputs and recompute what the gradient needs; returns their number.

    Blocks are the members of a sequence or list of modules of the same class, such as those of a vision transformer or
    of a ResNet stage; of nested blocks, the outer ones. The gradient is identical bit for bit, at the cost of one extra
    forward pass, and the running statistics of BatchNorm are updated only once.
    """
    blocks = list(network.children()) if isinstance(network, (nn.Sequential, nn.ModuleList)) else []
    if len(blocks) > 1 and len({type(block) for block in blocks}) == 1 and list(blocks[0].children()):
        for block in blocks:
            block.forward = functools.partial(_again, block, block.forward)
        return len(blocks)
    return sum(map(recompute_blocks, network.children()))


def _again(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **settings)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **settings)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts of a block's forward pass and of its recomputation."""
    return nullcontext(), _without_running_statistics(block)


@contextmanager
def _without_running_statistics(block: nn.Module) -> Iterator[None]:
    """Keeps BatchNorm in training mode from changing its running statistics; autograd saves the same tensors."""
    layers = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    settings = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, settings, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


def mixes_rows(network: nn.Module) -> bool:
    """Whether a row of the outputs depends on other rows of the batch, because a BatchNorm is in training mode."""
    return any(isinstance(module, _BatchNorm) and module.training for module in network.modules())


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Forward, chunks: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        ctx.function, ctx.chunks, ctx.parameters = function, chunks, parameters
        ctx.autocast, ctx.random, outputs = _autocast(chunks[0]), [], []
        for chunk in chunks:
            ctx.random.append(_random_state(chunk))
            outputs.append(function(chunk))
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        total: list[Tensor | None] = [None] * len(ctx.parameters)
        after = _random_state(gradient)
        sizes = [len(chunk) for chunk in ctx.chunks]
        for chunk, state, part in zip(ctx.chunks, ctx.random, gradient.split(sizes), strict=True):
            _restore(chunk, state)
            with torch.enable_grad(), ctx.autocast():
                output = ctx.function(chunk)
            found = torch.autograd.grad(output, ctx.parameters, part, allow_unused=True)
            for i, one in enumerate(found):
                if one is not None:
                    before = total[i]
                    # a copy at first: two gradients may share memory, as those of a sum do
                    total[i] = one.clone() if before is None else before.add_(one)
        _restore(gradient, after)
        return None, None, *total


def _autocast(x: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """A function that makes the autocast context that is active now."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return nullcontext
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype)


def _random_state(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The state of the random generators that layers such as dropout draw from."""
    on_device = torch.cuda.get_rng_state(x.device) if x.device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _restore(x: Tensor, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], x.device)
