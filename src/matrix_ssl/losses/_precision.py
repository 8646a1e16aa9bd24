"""Losses made of PyTorch operations compute in float32 or better, whatever surrounds them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

from matrix_ssl.matrix._checks import full_precision, without_autocast

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def in_full_precision(loss: Loss) -> Loss:
    """Makes a loss convert the tensors it is given to float32, float64 stays as it is, and switches autocast off."""

    @functools.wraps(loss)
    def wrapped(*outputs: Any, **settings: Any) -> Tensor:
        first = next(x for x in (*outputs, *settings.values()) if isinstance(x, Tensor))
        with without_autocast(first):
            return loss(*map(_convert, outputs), **{name: _convert(value) for name, value in settings.items()})

    return cast(Loss, wrapped)


def _convert(value: Any) -> Any:
    return full_precision(value) if isinstance(value, Tensor) else value
