"""Entropies and log-determinant of the covariance of features, or of their second moment."""

import math

import torch
from torch import Tensor

from matrix_ssl.errors import NotPositiveDefiniteError
from matrix_ssl.matrix.covariances import About, centre, rows_about
from matrix_ssl.matrix.information import entropy
from matrix_ssl.matrix.numerics import validation
from matrix_ssl.matrix.numerics.linalg import smaller_product
from matrix_ssl.matrix.numerics.scaling import rescaled
from matrix_ssl.matrix.spectra import logarithm, spectral_entropies
from matrix_ssl.matrix.spectra.eigenvalues import eigenvalues_of
from matrix_ssl.matrix.spectra.zero_eigenvalues import without_gradient_at_zero


def matrix_entropy(x: Tensor, *, ridge: float = 0.0, about: About = "mean", validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.matrix_entropy`` of the covariance of x (..., n, d) plus ridge·I: (...)."""
    gram, zeros = _small(x, ridge, about, validate, scales=True)
    value = spectral_entropies.matrix_entropy_of(gram, ridge)[0]
    return value if ridge == 0 else value + zeros * ridge * (1 - math.log(ridge))


def von_neumann_entropy(
    x: Tensor, *, ridge: float = 0.0, about: About = "mean", validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.von_neumann_entropy`` of the covariance of x (..., n, d) plus ridge·I: (...), in nats."""
    return renyi_entropy(x, alpha=1.0, ridge=ridge, about=about, validate=validate)


def renyi_entropy(
    x: Tensor, *, alpha: float, ridge: float = 0.0, about: About = "mean", validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.renyi_entropy`` of the covariance of x (..., n, d) plus ridge·I: (...), in nats."""
    validation.check_entropy_order(alpha)
    gram, zeros = _small(x, ridge, about, validate)
    if alpha == 2:
        return entropy.collision_entropy(*entropy.norm_and_trace(gram, ridge, gram.shape[-1] + zeros))
    return spectral_entropies.renyi_of(gram, alpha, ridge, zeros=zeros)[0]


def tsallis_entropy(
    x: Tensor, *, alpha: float, ridge: float = 0.0, about: About = "mean", validate: bool | None = None
) -> Tensor:
    """``matrix_ssl.matrix.tsallis_entropy`` of the covariance of x (..., n, d) plus ridge·I: (...)."""
    entropy.check_tsallis_order(alpha)
    return spectral_entropies.tsallis_from_renyi(
        renyi_entropy(x, alpha=alpha, ridge=ridge, about=about, validate=validate), alpha
    )


def min_entropy(x: Tensor, *, ridge: float = 0.0, about: About = "mean", validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.min_entropy`` of the covariance of x (..., n, d) plus ridge·I: (...), in nats."""
    return renyi_entropy(x, alpha=math.inf, ridge=ridge, about=about, validate=validate)


def truncated_entropy(x: Tensor, *, k: int, about: About = "mean", validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.truncated_entropy`` of the covariance of x (..., n, d); k from 1 to d: (...), in nats."""
    return spectral_entropies.entropy_of_shares(_largest(x, k, about, validate))


def low_rank_entropy(x: Tensor, *, k: int, alpha: float, about: About = "mean", validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.low_rank_entropy`` of the covariance of x (..., n, d); k from 1 to d: (...), in nats."""
    validation.check_positive(alpha=alpha)
    return entropy.low_rank_of(_largest(x, k, about, validate), x.shape[-1], alpha)


def effective_rank(x: Tensor, *, ridge: float = 0.0, about: About = "mean", validate: bool | None = None) -> Tensor:
    """Effective rank of the covariance of x (..., n, d) plus ridge·I, exp of its von Neumann entropy: (...)."""
    return von_neumann_entropy(x, ridge=ridge, about=about, validate=validate).exp()


def log_det(x: Tensor, *, ridge: float = 0.0, about: About = "mean", validate: bool | None = None) -> Tensor:
    """``matrix_ssl.matrix.log_det`` of the covariance of x (..., n, d) plus ridge·I: (...), in nats.

    Raises:
        MatrixError: without a ridge, also if n ≤ d, where the covariance is singular (the second moment if n < d).
    """
    validation.check_ridge(ridge)
    rows = rows_about(x, "x", about, validate)
    n, d = x.shape[-2:]
    rank = n - 1 if about == "mean" else n
    if rank < d and ridge == 0:
        raise NotPositiveDefiniteError(
            f"Argument 'x' (shape {tuple(x.shape)}): the covariance of {n} rows has rank {rank} at most, below {d}, "
            f"so its determinant is zero. Pass more rows or ridge=."
        )
    if ridge == 0:
        gram = smaller_product(rows)
        validation.check_representable(gram, x, "x", validate)
        return logarithm.log_det_of(gram, 0.0, "covariance of x", validation.looks_at_values(x, validate))
    if rank >= d:
        return logarithm.log_det_of_rows(rows, 1.0, ridge, x, "x", validate)
    # d log(ridge) would cost float32 digits inside the factorisation, so it is added at the end
    return logarithm.log_det_of_rows(rows, 1 / ridge, 1.0, x, "x", validate) + d * math.log(ridge)


def _small(x: Tensor, ridge: float, about: About, validate: bool | None, *, scales: bool = False) -> tuple[Tensor, int]:
    """A matrix with the eigenvalues of x's covariance, on the smaller side, and how many zero eigenvalues it lacks.

    Without a ridge it is known only up to a factor, unless its scale matters to the result (``scales``).
    """
    validation.check_ridge(ridge)
    if ridge or scales:
        gram = smaller_product(rows_about(x, "x", about, validate))
    else:
        gram = smaller_product(rescaled(centre(x, "x", about, validate)))
    validation.check_representable(gram, x, "x", validate)
    return gram, x.shape[-1] - gram.shape[-1]


def _largest(x: Tensor, k: int, about: About, validate: bool | None) -> Tensor:
    """The k largest eigenvalues of the covariance over the sum of all; zeros where it has fewer."""
    gram, zeros = _small(x, 0.0, about, validate)
    entropy.check_number_of_eigenvalues(k, x.shape[-1])
    eigenvalues = torch.nn.functional.pad(
        eigenvalues_of(gram, used=min(k, gram.shape[-1])), (zeros, 0)
    )  # which are in ascending order
    return entropy.largest_of(without_gradient_at_zero(eigenvalues, 0.0), k)
