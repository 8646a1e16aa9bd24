"""Collective operations with gradients. Every function is also right in a single process.

Gradient convention. DistributedDataParallel averages the gradients of parameters over the processes, and after that
average they must be exactly those of one process with the whole batch. Two ways of computing a loss of the whole batch
keep it so:

- Every process computes the same loss from ``gather``ed rows. The backward of ``gather`` hands each process
  ``world_size`` times its own rows of the gradient and needs no communication.
- Every process computes a part of the loss, from ``gather_for_parts`` or ``all_reduce_sum``, whose backwards are plain
  adjoints, sums over the processes; ``sum_of_parts`` adds the parts, and its backward multiplies by ``world_size``.

``torch.distributed``'s raw ``all_reduce`` on a graph tensor would be silently wrong: right value, missing gradient.
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
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def gather(rows: Tensor, *, sizes: Sequence[int] | None = None) -> Tensor:
    """Concatenates every process's rows in the order of their ranks, for a loss that every process computes.

    Args:
        rows: (n, ...).
        sizes: how many rows each process has; left out, all have as many.

    Returns:
        (sum of sizes, ...), the same tensor on every process.

    Raises:
        ValueError: ``sizes`` does not fit the processes or these rows. Left out, unequal numbers are noticed on the
            CPU; on a GPU looking would make it wait, and NCCL would hang.
    """
    return rows if world_size() == 1 else _Gather.apply(rows, row_counts(rows, sizes), False)


def gather_for_parts(rows: Tensor, *, sizes: Sequence[int] | None = None) -> Tensor:
    """``gather`` for a loss of which every process computes a part; see the gradient convention above.

    Its backward is a collective operation, so every process must use the result, or a piece of it.
    """
    return rows if world_size() == 1 else _Gather.apply(rows, row_counts(rows, sizes), True)


def row_counts(rows: Tensor, sizes: Sequence[int] | None = None) -> list[int]:
    """``sizes`` after a check, or, left out, what they are if all are equal; raises as ``gather`` does."""
    if sizes is not None:
        if len(sizes) != world_size() or sizes[rank()] != len(rows):
            raise ValueError(f"sizes={list(sizes)}, but process {rank()} of {world_size()} has {len(rows)} rows")
        return list(sizes)
    if rows.device.type != "cpu" or world_size() == 1:
        return [len(rows)] * world_size()
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    found = [int(count) for count in counts]
    if min(found) < max(found):
        raise ValueError(f"the processes have {found} rows: give each as many, or say so with sizes={found}")
    return found


def sum_of_parts(x: Tensor) -> Tensor:
    """Adds the parts of a loss that the processes have computed; see the gradient convention above."""
    return x if world_size() == 1 else _SumOfParts.apply(x)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over the processes, differentiable; see the gradient convention above."""
    return x if world_size() == 1 else _AllReduceSum.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], parts: bool) -> Tensor:
        ctx.sizes, ctx.parts = sizes, parts
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # gloo takes one size only
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.parts:
            return gradient.split(ctx.sizes)[rank()] * world_size(), None, None
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.split(ctx.sizes)[rank()], None, None


class _SumOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * world_size()


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
