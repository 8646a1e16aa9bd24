"""The one place that talks to other processes. Every function is also right in a single process.

Gradient convention. DistributedDataParallel averages the gradients of parameters over the processes, and after that
average they must be exactly those of one process with the whole batch. Two ways of computing a loss of the whole batch
keep it so:

- Every process computes the same loss from ``gather``ed rows. The backward of ``gather`` hands each process
  ``world_size`` times its own rows of the gradient and needs no communication.
- Every process computes a part of the loss, from ``gather_for_parts`` or ``all_reduce_sum``, whose backwards are plain
  adjoints, sums over the processes; ``sum_of_parts`` adds the parts, and its backward multiplies by ``world_size``.

``torch.distributed``'s raw ``all_reduce`` on a graph tensor would be silently wrong: right value, missing gradient.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from matrix_ssl.errors import ConfigError, MatrixSSLError, ProcessError, TrainingError

# how gloo's errors, which have no class of their own, say that the other end is gone
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "Connection refused")


def start(device_type: str) -> None:
    """Joins the process group that ``torchrun`` describes; does nothing without it.

    Raises:
        ConfigError: the machine has fewer GPUs than processes were started on it.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return
    if device_type == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank()} has no GPU: this machine has {torch.cuda.device_count()}; "
                f"start torchrun with --nproc-per-node {torch.cuda.device_count()}."
            )
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")


def launcher(processes: int) -> list[str]:
    """What follows ``python -m`` to start a module in several processes of this machine: ``torchrun`` as a module."""
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the person."""
    return rank() == 0


def barrier() -> None:
    """Waits for every process."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """The main process's ``value`` (small, picklable), on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def together() -> Iterator[None]:
    """Runs a block on every process; what goes wrong in one is raised in all, so that none waits for it in vain."""
    mine: MatrixSSLError | None = None
    try:
        yield
    except MatrixSSLError as error:
        mine = error
    found: list[Any] = [None] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, None if mine is None else (str(mine), mine.exit_code))
    if mine is not None:
        raise mine
    for text, exit_code in filter(None, found):
        theirs = MatrixSSLError(text)
        theirs.exit_code = exit_code
        raise theirs


@contextmanager
def alone() -> Iterator[None]:
    """Marks a block whose errors the other processes do not share: they name the process."""
    try:
        yield
    except MatrixSSLError as error:
        if is_main():
            raise
        raise ProcessError(f"process {rank()}: {error}") from error


@contextmanager
def connected() -> Iterator[None]:
    """Turns the end of another process into a sentence.

    Raises:
        TrainingError: a collective operation failed because another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not any(sign in str(error) for sign in _LOST):
            raise
        raise TrainingError(
            "another process of this run has ended; where it gave a reason, it stands in its own message. "
            "The same command resumes."
        ) from error


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


def wrap(module: nn.Module) -> nn.Module:
    """The module under DistributedDataParallel, or itself in a single process."""
    if world_size() == 1:
        return module
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
    # buffers are equal already: BatchNorm is synchronised and the teacher follows the same average everywhere; set
    # here because the constructor's argument has different names in different releases
    wrapped.broadcast_buffers = False
    return wrapped


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
