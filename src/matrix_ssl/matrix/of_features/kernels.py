"""Entropies of linear kernels of features with rows scaled to length one, and the information the kernels share."""

import functools
import itertools
import operator
from collections.abc import Sequence

from torch import Tensor

from matrix_ssl.matrix.information import joint_entropies
from matrix_ssl.matrix.information.diversity import root_weights
from matrix_ssl.matrix.information.entropy import collision_entropy, norm_and_trace
from matrix_ssl.matrix.kernels.pairwise import unit_rows
from matrix_ssl.matrix.numerics import kernel_checks, validation
from matrix_ssl.matrix.numerics.linalg import product, smaller_product
from matrix_ssl.matrix.numerics.scaling import unit_length
from matrix_ssl.matrix.spectra import spectral_entropies


def gram_entropy(x: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.renyi_entropy`` of the linear kernel of x (..., n, d), rows of length one: (...), in nats.

    This is the entropy of Song et al. and of VNE: that of the second moment of unit-length rows, not centred. Computed
    on the smaller side, n or d.
    """
    return _entropies((x,), alpha, validate)(0)


def joint_entropy(*features: Tensor, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.joint_entropy`` of the linear kernels of features (..., n, dᵢ): (...), in nats.

    Rows are scaled to length one. Computed on the smaller side: n or the product of the dᵢ.
    """
    everything = tuple(range(len(features)))
    return _entropies(features, alpha, validate)(*everything)


def conditional_entropy(
    x: Tensor, given: Tensor | Sequence[Tensor], *, alpha: float = 1.0, validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.conditional_entropy`` of the linear kernels of x and others; see ``joint_entropy``."""
    conditions, names = joint_entropies.conditions_of(given)
    entropy = _entropies((x, *conditions), alpha, validate, ["x", *names])
    known = tuple(range(1, len(conditions) + 1))
    return entropy(0, *known) - entropy(*known)


def mutual_information(x: Tensor, y: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.mutual_information`` of the linear kernels of x and y; see ``joint_entropy``."""
    return joint_entropies.mutual_information_of(_entropies((x, y), alpha, validate))


def normalised_mutual_information(
    x: Tensor, y: Tensor, *, by: joint_entropies.Normaliser, alpha: float = 1.0, validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.normalised_mutual_information`` of the linear kernels of x and y; see ``joint_entropy``."""
    return joint_entropies.normalised_mutual_information_of(_entropies((x, y), alpha, validate), by)


def matrix_mutual_information_ratio(
    x: Tensor, y: Tensor, *, alpha: float = 1.0, validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.matrix_mutual_information_ratio`` (MIR) of the linear kernels of x and y: (...).

    x and y are the two branches of a method, or features (n, d) and the classifier's rows for their classes (n, d).
    """
    return joint_entropies.normalised_mutual_information_of(_entropies((x, y), alpha, validate), "min")


def entropy_difference_ratio(x: Tensor, y: Tensor, *, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.entropy_difference_ratio`` (HDR) of the linear kernels of x and y: (...).

    They may have different numbers of rows and columns.
    """
    first, second = (_entropies((z,), alpha, validate, [name])(0) for z, name in ((x, "x"), (y, "y")))
    return joint_entropies.entropy_difference_ratio_of(first, second)


def total_correlation(*features: Tensor, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.total_correlation`` of the linear kernels of features; see ``joint_entropy``."""
    return joint_entropies.total_correlation_of(_entropies(features, alpha, validate, least=2), len(features))


def dual_total_correlation(*features: Tensor, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.dual_total_correlation`` of the linear kernels of features; see ``joint_entropy``."""
    return joint_entropies.dual_total_correlation_of(_entropies(features, alpha, validate, least=2), len(features))


def interaction_information(*features: Tensor, alpha: float = 1.0, validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.interaction_information`` of the linear kernels of features; see ``joint_entropy``."""
    return joint_entropies.interaction_information_of(_entropies(features, alpha, validate, least=2), len(features))


def vendi_score(
    x: Tensor, *, order: float = 1.0, weights: Tensor | None = None, validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.vendi_score`` of the linear kernel of x (..., n, d), rows of length one: (...).

    Computed on the smaller side, n or d. ``weights`` (..., n) are those of the samples. A row of zeros raises an error.
    """
    validation.check_entropy_order(order, "order")
    unit = unit_rows(x, "x", validate)
    if weights is not None:
        unit = unit * root_weights(weights, unit, "x", validate).unsqueeze(-1)
    return _gram_entropy(smaller_product(unit), order).exp()


def two_unit_rows(x: Tensor, y: Tensor, validate: bool | None) -> tuple[Tensor, Tensor]:
    """Rows of length one of x (..., n, d) and y (..., n, e)."""
    a, b = validation.checked_matrix(x, "x", validate), validation.checked_matrix(y, "y", validate)
    kernel_checks.check_same_samples(x, y, "x and y")
    return unit_length(a), unit_length(b)


def _entropies(
    features: Sequence[Tensor], alpha: float, validate: bool | None, names: Sequence[str] = (), *, least: int = 1
) -> joint_entropies.Entropies:
    """The joint entropies of the linear kernels by their numbers, each computed once; checks all arguments."""
    validation.check_entropy_order(alpha)
    if len(features) < least:
        raise ValueError(f"At least {least} sets of features are needed, got {len(features)}.")
    names = names or (["x", "y"] if len(features) == 2 else [f"x{number}" for number in range(1, len(features) + 1)])
    rows = [unit_length(validation.checked_matrix(x, name, validate)) for x, name in zip(features, names, strict=True)]
    for (first, name), (second, other) in itertools.combinations(zip(features, names, strict=True), 2):
        kernel_checks.check_same_samples(first, second, f"{name} and {other}")

    return joint_entropies.Entropies(functools.partial(_joint, rows, {}, alpha))


def _joint(rows: Sequence[Tensor], grams: dict[int, Tensor], alpha: float, numbers: tuple[int, ...]) -> Tensor:
    """The entropy of the elementwise product of linear kernels, on the smaller side; ``grams`` caches n x n kernels."""
    factors = [rows[number] for number in numbers]
    if functools.reduce(operator.mul, [x.shape[-1] for x in factors]) < factors[0].shape[-2]:
        columns = functools.reduce(lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2), factors)
        return _gram_entropy(smaller_product(columns), alpha)
    for number in numbers:
        if number not in grams:
            grams[number] = product(rows[number].mT)
    return _gram_entropy(functools.reduce(operator.mul, (grams[number] for number in numbers)), alpha)


def _gram_entropy(gram: Tensor, alpha: float) -> Tensor:
    if alpha == 2:
        return collision_entropy(*norm_and_trace(gram, 0.0, gram.shape[-1]))
    return spectral_entropies.renyi_of((gram + gram.mT) / 2, alpha)[0]
