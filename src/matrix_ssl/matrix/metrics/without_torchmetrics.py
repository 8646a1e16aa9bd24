"""The base of ``matrix_ssl.matrix.metrics`` without torchmetrics: the part of its interface that they use."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor


class Metric:
    """A measure of a stream of batches: ``update`` with each, ``compute`` at the end, ``reset`` to start over."""

    def __init__(self) -> None:
        self._defaults: dict[str, Tensor] = {}
        self._reductions: dict[str, Callable[[Tensor], Tensor]] = {}

    def add_state(self, name: str, default: Tensor, dist_reduce_fx: Callable[[Tensor], Tensor]) -> None:
        """Adds a tensor in which batches accumulate; the function merges a stack of several such tensors."""
        self._defaults[name], self._reductions[name] = default, dist_reduce_fx
        setattr(self, name, default.clone())

    def update(self, features: Tensor) -> None:
        """Adds a batch."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """The measure of all batches since the last ``reset``."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets all batches."""
        for name, default in self._defaults.items():
            setattr(self, name, default.to(getattr(self, name).device, copy=True))

    def merge_state(self, incoming_state: "Metric") -> None:
        """Adds the batches of another metric of the same class, which is left unchanged."""
        if type(incoming_state) is not type(self):
            raise ValueError(
                f"A {type(self).__name__} can be merged with its own kind, got {type(incoming_state).__name__}."
            )
        for name, merge in self._reductions.items():
            own = getattr(self, name)
            setattr(self, name, merge(torch.stack([own, getattr(incoming_state, name).to(own.device)])))

    def to(self, device: torch.device | str) -> Self:
        """Moves the states to a device."""
        for name in self._defaults:
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __call__(self, *batch: Tensor) -> Tensor:
        """Adds a batch and returns the measure of this batch alone."""
        before: dict[str, Any] = {name: getattr(self, name) for name in self._defaults}
        self.reset()
        try:
            self.update(*batch)
            value = self.compute()
        except BaseException:
            for name, state in before.items():
                setattr(self, name, state)
            raise
        for name, merge in self._reductions.items():
            setattr(self, name, merge(torch.stack([before[name], getattr(self, name)])))
        return value
