"""The constants of the loss. Their defaults have their home here."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from matrix_ssl.config import settings
from matrix_ssl.errors import ConfigError

Form = Literal["closed", "lanczos", "top", "dense"]


@settings
class Objective:
    """Cross-entropy plus ``weight`` times matrix cross-entropy, the latter in one of its forms."""

    weight: NonNegativeFloat = 1.0  # 0: the cross-entropy alone
    ridge: PositiveFloat = 0.01  # added to the eigenvalues of the matrix
    form: Form = "closed"
    steps: PositiveInt = 3  # Lanczos steps of "lanczos"
    top: PositiveInt = 16  # tokens of "top", the target among them
    chunk: PositiveInt = 256  # positions that are computed at a time


DEFAULTS = Objective()


def check_objective(objective: Objective, *, vocabulary: int, d: int) -> None:
    """Raises ConfigError where the form does not fit a head with ``vocabulary`` rows of width ``d``."""
    if objective.form == "lanczos" and objective.steps > d:
        raise ConfigError(f"steps={objective.steps}: expected 1 to {d} Lanczos steps, the width of the head.")
    if objective.form == "top" and objective.top > vocabulary:
        raise ConfigError(f"top={objective.top}: expected 1 to {vocabulary} tokens, the size of the vocabulary.")
