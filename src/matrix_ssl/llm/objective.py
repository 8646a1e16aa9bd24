"""The constants of the loss, and what can be wrong with them. Their defaults have their home here."""

import math
from typing import Literal, NamedTuple, get_args

from matrix_ssl.errors import ConfigError, did_you_mean

Form = Literal["closed", "lanczos", "top", "dense"]


class Objective(NamedTuple):
    """Cross-entropy plus ``weight`` times matrix cross-entropy, the latter in one of its forms."""

    weight: float = 1.0
    ridge: float = 0.01
    form: Form = "closed"
    steps: int = 3  # of "lanczos"
    top: int = 16  # tokens of "top", the target among them
    chunk: int = 256  # positions that are computed at a time


DEFAULTS = Objective()


def check_objective(objective: Objective, *, vocabulary: int, d: int) -> None:
    """Raises ConfigError for a value that is out of range; ``steps`` and ``top`` matter to their form only."""
    weight, ridge, form, steps, top, chunk = objective
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigError(f"weight={weight}: the weight of the matrix term must be a finite number, zero or above.")
    if not (math.isfinite(ridge) and ridge > 0):
        raise ConfigError(f"ridge={ridge}: the ridge must be a finite number above zero; {DEFAULTS.ridge} is usual.")
    if form not in get_args(Form):
        raise ConfigError(f"form={form!r} is not a form of the loss.{did_you_mean(str(form), get_args(Form))}")
    if form == "lanczos" and not 1 <= steps <= d:
        raise ConfigError(f"steps={steps}: Lanczos takes 1 to {d} steps, the width of the head.")
    if form == "top" and not 1 <= top <= vocabulary:
        raise ConfigError(f"top={top}: choose 1 to {vocabulary} tokens, the size of the vocabulary.")
    if chunk < 1:
        raise ConfigError(f"chunk={chunk}: at least one position is computed at a time.")
