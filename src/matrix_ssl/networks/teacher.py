"""The teacher: an exponential moving average of a student network, and the schedule of its momentum."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """A copy of the student without gradient, whose BatchNorm buffers only ``update_teacher`` changes.

    Its forward pass runs in training mode, on batch statistics; a momentum of zero in its BatchNorm layers leaves the
    running statistics to the moving average.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0
    return teacher


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, for two modules of the same structure.

    Running statistics follow the same average, so the teacher can be evaluated with its own; other buffers, such as
    counters and masks, are copied. If fully_shard (FSDP2) has sharded the parameters across processes, each process
    updates its own shard.

    Raises:
        ValueError: the momentum is not in [0, 1]; the tensors of the two have different shapes; or the parameters of
            one of them are sharded across processes at the moment, and those of the other are not.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be a number from 0 to 1, got {momentum!r}.")
    averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
    copied: tuple[list[Tensor], list[Tensor]] = ([], [])
    norms = [module for module in teacher.modules() if isinstance(module, _BatchNorm)]
    statistics = [one for norm in norms for one in (norm.running_mean, norm.running_var)]
    followed = {id(tensor) for tensor in (*teacher.parameters(), *statistics)}
    targets = [*teacher.parameters(), *teacher.buffers()]
    sources = [*student.parameters(), *student.buffers()]
    for tensor, source in zip(targets, sources, strict=True):
        target, source = _local(tensor), _local(source)
        if target.shape != source.shape:
            raise ValueError(
                f"Teacher and student differ: a tensor has the shape {tuple(target.shape)} in one and "
                f"{tuple(source.shape)} in the other. Where processes share them, call fully_shard on both with "
                "reshard_after_forward=True."
            )
        for tensors, one in zip(averaged if id(tensor) in followed else copied, (target, source), strict=True):
            tensors.append(one)
    torch._foreach_lerp_(*averaged, weight=1 - momentum)
    if copied[0]:
        torch._foreach_copy_(*copied)


@contextmanager
def weights_cast_once(teacher: nn.Module, view: Tensor) -> Iterator[None]:
    """A context in which autocast caches the teacher's cast weights, so that all views of a step share them.

    Until it ends, autocast caches the casts of leaves that require a gradient, so the weights are made to require one.
    Under ``torch.no_grad`` this has no other effect: outputs are identical bit for bit, without a graph. Without
    autocast nothing changes.
    """
    if view.is_meta or torch.compiler.is_compiling() or not torch.is_autocast_enabled(view.device.type):
        yield
        return
    parameters = [parameter for parameter in teacher.parameters() if not parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _local(tensor: Tensor) -> Tensor:
    """The tensor, or this process's part of a DTensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def cosine_momentum(progress: float, start: float) -> float:
    """Momentum on a half cosine from ``start`` at progress 0 to 1 at progress 1 (Grill et al., 2020, section 3.2)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
