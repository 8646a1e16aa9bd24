"""Merges what the processes have each seen of a stream of features."""

from typing import Protocol, Self, TypeVar

import torch.distributed as dist
from torch import Tensor

from matrix_ssl.distributed.processes import world_size


class State(Protocol):
    """A mergeable state, such as ``matrix_ssl.matrix.Moments`` and ``RankStatistics``."""

    def empty(self) -> Self:
        """A state of the same shape without samples."""

    def packed(self) -> Tensor:
        """The state as one tensor."""

    def merge_packed(self, packed: Tensor) -> None:
        """Adds the samples of a packed state."""


Mergeable = TypeVar("Mergeable", bound=State)


def merge_over_processes(state: Mergeable) -> Mergeable:
    """A new state with the samples of all processes, identical bit for bit on each; a collective operation.

    The states are sent to all one after another, so memory does not grow with the number of processes. They must have
    the same shape; a process without samples has an empty one.
    """
    result = state.empty()
    own = state.packed()
    for process in range(world_size()):
        packed = own.clone()
        if world_size() > 1:
            dist.broadcast(packed, src=process)
        result.merge_packed(packed)
    return result
