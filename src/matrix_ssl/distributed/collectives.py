"""Collective operations with gradients; every function is also correct in a single process.

DistributedDataParallel averages the gradients of parameters over the processes, and that average must be exactly the
gradient of a single process with the whole batch. There are two ways to compute a loss of the whole batch:

- Every process computes the same loss from ``gather``ed rows. The backward pass of ``gather`` gives each
  process ``world_size`` times its own rows of the gradient and needs no communication.
- Every process computes a part of the loss, from ``gather_for_parts`` or ``all_reduce_sum``, whose backward passes are
  plain adjoints, sums over the processes; ``sum_of_parts`` adds the parts, and its backward pass multiplies by
  ``world_size``.

``torch.distributed``'s raw ``all_reduce`` on a tensor with a graph would be silently wrong: the value is right, but the
gradient is missing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from matrix_ssl.distributed.processes import rank, world_size


def maximum(values: Tensor) -> Tensor:
    """Element-wise maximum over the processes, without gradient."""
    return values if world_size() == 1 else _all_reduce(values, dist.ReduceOp.MAX)


def gather(rows: Tensor, *, sizes: Sequence[int] | None = None) -> Tensor:
    """Concatenates every process's rows (n, ...) in the order of their ranks, for a loss that every process computes.

    ``sizes`` are the processes' numbers of rows, by default all equal. Sizes that do not fit are a ValueError. Without
    ``sizes``, unequal numbers are an error only on the CPU: on a GPU the check would make it wait, and NCCL hangs.
    """
    return rows if world_size() == 1 else _Gather.apply(rows, row_counts(rows, sizes), False)


def gather_for_parts(rows: Tensor, *, sizes: Sequence[int] | None = None) -> Tensor:
    """``gather`` for a loss of which every process computes a part; see the gradient convention of this module.

    Its backward pass is a collective operation, so every process must use the result, or a piece of it.
    """
    return rows if world_size() == 1 else _Gather.apply(rows, row_counts(rows, sizes), True)


def row_counts(rows: Tensor, sizes: Sequence[int] | None = None) -> list[int]:
    """``sizes``, checked; without them, the number of these rows for every process. Errors as in ``gather``."""
    if sizes is not None:
        if len(sizes) != world_size() or sizes[rank()] != len(rows):
            raise ValueError(f"sizes={list(sizes)}, but process {rank()} of {world_size()} has {len(rows)} rows.")
        return list(sizes)
    if rows.device.type != "cpu" or world_size() == 1:
        return [len(rows)] * world_size()
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    numbers = [int(count) for count in counts]
    if min(numbers) < max(numbers):
        raise ValueError(f"The processes have {numbers} rows. Use equal numbers or pass sizes={numbers}.")
    return numbers


def sum_of_parts(x: Tensor) -> Tensor:
    """Sum of the parts of a loss that the processes have computed; see the gradient convention of this module."""
    return x if world_size() == 1 else _Sum.apply(x, True)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over the processes, differentiable; see the gradient convention of this module."""
    return x if world_size() == 1 else _Sum.apply(x, False)


def _all_reduce(x: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    result = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, operation)
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], for_parts: bool) -> Tensor:
        ctx.sizes, ctx.for_parts = sizes, for_parts
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # gloo gathers equal sizes only
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.for_parts:
            return gradient.split(ctx.sizes)[rank()] * world_size(), None, None
        return _all_reduce(gradient).split(ctx.sizes)[rank()], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, of_parts: bool) -> Tensor:
        ctx.of_parts = of_parts
        return _all_reduce(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * world_size() if ctx.of_parts else _all_reduce(gradient), None
