"""Errors of the losses' arguments."""

import math

from torch import Tensor

from matrix_ssl.errors import did_you_mean


def check_rows(**outputs: Tensor) -> None:
    """Raises ValueError unless all have one shape (n, d) with n ≥ 2 and d ≥ 1."""
    shapes = [tuple(x.shape) for x in outputs.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] < 2 or shapes[0][1] < 1:
        raise ValueError(f"expected {', '.join(outputs)} of one shape (n, d) with n ≥ 2, got {shapes}")


def check_number(name: str, value: float, *, above: float | None = None) -> None:
    """Raises ValueError unless the value is finite and not negative, or above the bound."""
    if above is not None and not value > above:
        raise ValueError(f"{name} must be above zero, got {value}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number, zero or more, got {value}")


def check_order(order: int) -> None:
    """Raises ValueError for a series without terms."""
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError for an unknown name."""
    if value not in known:
        listed = " or ".join(repr(k) for k in known) if len(known) == 2 else f"one of {', '.join(map(repr, known))}"
        raise ValueError(f"{name} must be {listed}, got {value!r}.{did_you_mean(value, known)}")
