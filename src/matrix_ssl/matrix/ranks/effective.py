"""Measures of the number of directions that a matrix spans: effective rank, coding rate, spectrum."""

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics.linalg import smaller_product
from matrix_ssl.matrix.numerics.scaling import deviations, rescaled
from matrix_ssl.matrix.numerics.validation import (
    check_positive,
    check_representable,
    checked_matrix,
    checked_not_negative,
)
from matrix_ssl.matrix.spectra import spectral_entropies
from matrix_ssl.matrix.spectra.eigenvalues import eigenvalues_of
from matrix_ssl.matrix.spectra.logarithm import log_det_of_rows
from matrix_ssl.matrix.spectra.singular_value_entropy import entropy_of_singular_values


def effective_rank(x: Tensor, *, validate: bool | None = None) -> Tensor:
    """Effective rank exp(-Σ pᵢ log pᵢ) of x (..., m, n), p its singular values over their sum: from 1 to the rank.

    Of a feature matrix this is RankMe; of a covariance, the effective rank that the Matrix-SSL paper reports. Nothing
    is centred. Invariant to scale; the zero matrix gives 1. Singular values that are zero contribute no gradient.

    In float64 the singular values are computed directly. For float32 and half precision they come from the eigenvalues
    of the smaller Gram matrix in float64; singular values below about 1e-7 of the largest, lost to float32 rounding,
    become zero.

    Raises:
        MatrixError: ``x`` is not a matrix, empty, or not finite.

    References:
        Roy and Vetterli, EUSIPCO 2007, definition 1.
        Garrido, Balestriero, Najman and LeCun, "RankMe", ICML 2023, https://arxiv.org/abs/2210.02885.
    """
    full = checked_matrix(x, "x", validate)
    # in float64, the square root of an eigenvalue's rounding error stays below float32 rounding
    entropy = entropy_of_singular_values(rescaled(full.double()), squared=full.dtype != torch.float64)
    return entropy.exp().to(full.dtype)


def coding_rate(features: Tensor, *, distortion: float = 0.5, validate: bool | None = None) -> Tensor:
    """Total coding rate ½ log det(I + d / (n ε²) ZᵀZ): nats to encode the rows Z up to the distortion ε: (...).

    It is zero if all features are zero, and grows with every singular value. Rows are neither centred nor scaled;
    usually they have length one. Computed by Cholesky factorisation of the smaller of the n x n and d x d matrices;
    where values cannot be read, in float64 even for float32, unless ``validate`` is False.

    Args:
        features: (..., n, d), one row per sample.
        distortion: ε > 0.

    Raises:
        MatrixError: ``features`` is not a matrix, empty, or not finite.
        ValueError: the distortion is not above zero.

    References:
        Ma, Derksen, Hong and Wright, "Segmentation of multivariate mixed data via lossy data coding and compression",
        IEEE TPAMI 29(9), 2007; here without a mean.
        Yu, Chan, You, Song and Ma, "Learning diverse and discriminative representations via the principle of maximal
        coding rate reduction", NeurIPS 2020, https://arxiv.org/abs/2006.08558: R(Z, ε).
    """
    check_positive(distortion=distortion)
    rows = checked_matrix(features, "features", validate)
    n, d = rows.shape[-2:]
    return log_det_of_rows(rows, d / (n * distortion**2), 1.0, features, "features", validate) / 2


def spectrum(features: Tensor, *, validate: bool | None = None) -> Tensor:
    """Eigenvalues of the covariance of features (..., n, d) over their sum, in descending order: (..., min(n, d)).

    The exponential of its ``shannon_entropy`` is the effective rank of the covariance. Invariant to scale and shift;
    the smaller of the n x n and d x d matrices is decomposed. Equal rows give all zeros, or a single 1 where rounding
    leaves the rows off their mean: the entropy is 0 either way.

    Raises:
        MatrixError: ``features`` is not a matrix, empty, or not finite.
    """
    gram = smaller_product(rescaled(deviations(checked_matrix(features, "features", validate))))
    check_representable(gram, features, "features", validate, "sums")
    eigenvalues = eigenvalues_of(gram, used=gram.shape[-1]).flip(-1).clamp_min(0)
    return eigenvalues / eigenvalues.sum(-1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)


def shannon_entropy(weights: Tensor, *, validate: bool | None = None) -> Tensor:
    """Shannon entropy -Σ pᵢ log pᵢ, in nats, of p = weights / their sum, for non-negative weights (..., k): (...).

    Between 0 and the log of the number of positive weights; 0 if all are zero. ``spectrum`` returns such weights.

    Raises:
        MatrixError: ``weights`` is not a tensor of real numbers, empty, not finite, or negative by more than rounding.
    """
    return spectral_entropies.shannon_entropy(checked_not_negative(weights, "weights", validate))
