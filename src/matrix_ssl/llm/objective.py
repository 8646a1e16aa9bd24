"""The constants of the loss, with their defaults and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from matrix_ssl import config
from matrix_ssl.errors import ConfigError, did_you_mean

Form = Literal["closed", "lanczos", "top", "dense"]


@dataclass(frozen=True)
class Objective:
    """Cross-entropy plus ``weight`` times matrix cross-entropy, the latter in one of its forms.

    Raises:
        ConfigError: a constant is out of range or unknown.
    """

    weight: config.NonNegativeFloat = 1.0  # 0: the cross-entropy alone
    ridge: config.PositiveFloat = 0.01  # added to the eigenvalues of the matrix
    form: Form = "closed"
    steps: config.PositiveInt = 3  # Lanczos steps of "lanczos"
    top: config.PositiveInt = 16  # tokens of "top", including the target
    chunk: config.PositiveInt = 256  # positions computed at a time

    def __post_init__(self) -> None:
        # not by pydantic, which checks the settings of a command: the loss needs nothing but PyTorch
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"weight={self.weight}: expected a finite number of at least 0.")
        if not 0 < self.ridge < math.inf:
            raise ConfigError(f"ridge={self.ridge}: expected a finite number above 0.")
        if self.form not in get_args(Form):
            near, *_ = did_you_mean(str(self.form), get_args(Form)).split(" Known:")  # all are named before it
            raise ConfigError(f"form={self.form}: expected one of {', '.join(get_args(Form))}.{near}")
        for name in ("steps", "top", "chunk"):
            if not isinstance(number := getattr(self, name), int) or number < 1:
                raise ConfigError(f"{name}={number}: expected an integer of at least 1.")


DEFAULTS = Objective()


def check_objective(objective: Objective, *, vocabulary: int, d: int) -> None:
    """Raises ConfigError if the form does not fit a head with ``vocabulary`` rows of width ``d``."""
    if objective.form == "lanczos" and objective.steps > d:
        raise ConfigError(f"steps={objective.steps}: expected 1 to {d} Lanczos steps, the width of the head.")
    if objective.form == "top" and objective.top > vocabulary:
        raise ConfigError(f"top={objective.top}: expected 1 to {vocabulary} tokens, the size of the vocabulary.")
