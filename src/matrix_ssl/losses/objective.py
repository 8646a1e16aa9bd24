"""The constants of the losses, with their defaults and range checks."""

from dataclasses import dataclass
from typing import Literal, get_args

from matrix_ssl.errors import did_you_mean
from matrix_ssl.matrix.numerics.validation import check_constant, check_not_negative, check_positive

Logarithm = Literal["exact", "taylor"]
Algorithm = Literal["auto", "eigh", "quadrature", "polynomial"]
_LOGARITHMS, _ALGORITHMS = (
    get_args(Logarithm),
    get_args(Algorithm),
)  # not in a function: PyTorch 2.4 cannot compile get_args


@dataclass(frozen=True)
class Objective:
    """Constants of the Matrix-SSL loss, see ``matrix_ssl_loss``; a value out of range or unknown is a ValueError."""

    ridge: float = 0.1  # μ > 0, added to every covariance
    uniformity_weight: float = 0.1  # λ ≥ 0
    alignment_weight: float = 1.0  # γ ≥ 0
    logarithm: Logarithm = "exact"
    order: int = 4  # number of terms of "taylor", at least 1
    algorithm: Algorithm = "auto"  # of "exact"
    trace_weight: float = 0.0  # ≥ 0, of tr(C + μI) in the uniformity and tr(S + μI) in the alignment; 1 in the paper

    def __post_init__(self) -> None:
        check_constant(
            ridge=self.ridge,
            uniformity_weight=self.uniformity_weight,
            alignment_weight=self.alignment_weight,
            trace_weight=self.trace_weight,
        )
        check_positive(ridge=self.ridge)
        check_not_negative(
            uniformity_weight=self.uniformity_weight,
            alignment_weight=self.alignment_weight,
            trace_weight=self.trace_weight,
        )
        check_choice("algorithm", self.algorithm, _ALGORITHMS)
        _check_logarithm(self.logarithm, self.order)


@dataclass(frozen=True)
class MECObjective:
    """Constants of maximum entropy coding, see ``mec_loss``; a value out of range or unknown is a ValueError."""

    distortion: float = 64.0  # ε > 0, the published value after warm-up
    logarithm: Logarithm = "taylor"  # as published
    order: int = 4  # number of terms of "taylor", at least 1

    def __post_init__(self) -> None:
        check_constant(distortion=self.distortion)
        check_positive(distortion=self.distortion)
        _check_logarithm(self.logarithm, self.order)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        listed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(f"{name} must be {listed}, got {value!r}.{did_you_mean(value, choices)}")


def _check_logarithm(logarithm: str, order: int) -> None:
    check_choice("logarithm", logarithm, _LOGARITHMS)
    if not hasattr(order, "__index__"):
        raise ValueError(f"order must be an integer, got {order!r}.")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}.")


DEFAULTS = Objective()
MEC_DEFAULTS = MECObjective()
