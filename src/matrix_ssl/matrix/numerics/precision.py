"""Helpers to compute in float32 or better, with autocast off."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def full_precision(x: Tensor) -> Tensor:
    """float64 as it is, every other real dtype in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which products keep the dtype of their factors."""
    if x.is_meta:  # tensors without values have no autocast
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def in_full_precision(loss: Loss) -> Loss:
    """Decorates a loss: its tensors are converted to float32 (float64 stays as it is) and autocast is off."""

    @functools.wraps(loss)
    def wrapped(*outputs: Any, **settings: Any) -> Tensor:
        tensors = [x for x in (*outputs, *settings.values()) if isinstance(x, Tensor)]
        with without_autocast(tensors[0]) if tensors else nullcontext():  # without one, the loss's checks raise
            return loss(*map(_convert, outputs), **{name: _convert(value) for name, value in settings.items()})

    return cast(Loss, wrapped)


def _convert(value: Any) -> Any:
    return full_precision(value) if isinstance(value, Tensor) and not value.is_complex() else value
