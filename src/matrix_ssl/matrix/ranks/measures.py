"""How many directions features use: the ranks of the literature, each under its own name.

Features (..., n, d) have one row per sample. Whether the mean is subtracted depends on the definition: ranks of the
covariance (participation ratio, PCA rank, α-ReQ, and ``of_features.effective_rank``) subtract the mean row; ranks of
the feature matrix (RankMe, stable rank, numerical rank) and the self-cluster score do not, so a large mean lowers these
ranks and raises the score. To subtract it, pass ``x - x.mean(-2, keepdim=True)``. ``rank_report`` gives all at once.

Every function computes in float64 and returns the dtype of the features (float32 for half precision): float64 is
accurate to 1e-10, float32 to the rounding of the result. The smaller of the n x n and d x d matrices is decomposed, and
gradients are correct where eigenvalues coincide and at rank deficiency, except for the corners named below. Rescaling
the features changes nothing except ``lidar``, whose ridge is absolute. All measures except the counts can be
differentiated twice: RankMe and LiDAR even where singular values coincide, the stable rank where the largest is simple,
α-ReQ where the fitted eigenvalues differ from all others; elsewhere a second derivative is an error. At a deficient
rank, where a second derivative may be infinite, directions beyond the rank are left out of it.
"""

import torch
from torch import Tensor

from matrix_ssl.errors import MatrixError, MatrixShapeError, NotPositiveDefiniteError
from matrix_ssl.matrix.covariances import centred_rows
from matrix_ssl.matrix.numerics import linalg
from matrix_ssl.matrix.numerics.linalg import smaller_product
from matrix_ssl.matrix.numerics.precision import full_precision, without_autocast
from matrix_ssl.matrix.numerics.scaling import deviations, rescaled, unit_length
from matrix_ssl.matrix.numerics.validation import (
    check_not_negative,
    check_positive,
    check_representable,
    check_tensor,
    checked_matrix,
    is_number,
    looks_at_values,
)
from matrix_ssl.matrix.ranks import formulas
from matrix_ssl.matrix.ranks.effective import effective_rank
from matrix_ssl.matrix.spectra import spectral_entropies
from matrix_ssl.matrix.spectra.eigenvalues import eigenvalues_of
from matrix_ssl.matrix.spectra.spectral_entropies import renyi_of
from matrix_ssl.matrix.spectra.zero_eigenvalues import zero_level

FIRST, LAST = 4, 100  # ranks of the eigenvalues that ``alpha_req`` fits
SHARE = 0.95  # of the variance, for ``pca_rank``
RIDGE = 1e-4  # δ of ``lidar``
_LOST = (
    "ridge={ridge} is lost in the rounding of the covariance of the views, {of}; scale the features down or pass a "
    "larger ridge."
)


def rank_me(features: Tensor, *, validate: bool | None = None) -> Tensor:
    """RankMe exp(-Σ pᵢ log pᵢ) of features (..., n, d), p their singular values over the sum: 1 to min(n, d).

    Not centred. It is ``effective_rank`` of the feature matrix. The paper adds 1e-7 to every pᵢ to avoid log 0; here
    0 log 0 is 0, which lowers the result for 2048 singular values by a relative 3.3e-3 at most.

    Raises:
        MatrixError: ``features`` is not a matrix, empty, or not finite.

    Reference:
        Garrido, Balestriero, Najman and LeCun, "RankMe: Assessing the downstream performance of pretrained
        self-supervised representations by their rank", ICML 2023, https://arxiv.org/abs/2210.02885.
    """
    return effective_rank(checked_matrix(features, "features", validate), validate=False)


def participation_ratio(features: Tensor, *, validate: bool | None = None) -> Tensor:
    """Participation ratio (tr C)² / tr C² of the covariance C of features (..., n, d): 1 to min(n - 1, d).

    This is the exponential of the Rényi entropy of order 2 of C, and never above the effective rank of C. It needs no
    decomposition. Equal rows give 1.

    Raises:
        MatrixError: ``features`` is not a matrix, empty, or not finite.

    Reference:
        Gao, Trautmann, Yu, Santhanam, Ryu, Shenoy and Ganguli, "A theory of multineuronal dimensionality, dynamics and
        measurement", bioRxiv 214262, 2017.
    """
    gram = _product_of_deviations(checked_matrix(features, "features", validate), validate)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    value = formulas.ratio(trace.square(), gram.square().sum((-2, -1)))
    return value.to(full_precision(features).dtype)


def stable_rank(features: Tensor, *, validate: bool | None = None) -> Tensor:
    """Stable rank ‖X‖_F² / ‖X‖₂² of features X (..., n, d), Σ σ² / max σ²: 1 to the rank; zero features give 1.

    Not centred. For centred features it is the NESum of He and Ozay, Σ λ / max λ of the covariance. Where the largest
    singular value is repeated there is a corner, and the gradient is one of many.

    Raises:
        MatrixError: ``features`` is not a matrix, empty, or not finite.

    References:
        Rudelson and Vershynin, "Sampling from large matrices: an approach through geometric functional analysis",
        Journal of the ACM 54(4), 2007 (there "numerical rank").
        He and Ozay, "Exploring the gap between collapsed & whitened features in self-supervised learning", ICML 2022.
    """
    rows = rescaled(_double(features, validate))
    squares = eigenvalues_of(smaller_product(rows), used=1)
    return formulas.ratio(rows.square().sum((-2, -1)), squares[..., -1]).to(full_precision(features).dtype)


def numerical_rank(features: Tensor, *, threshold: float | None = None, validate: bool | None = None) -> Tensor:
    """Numerical rank: how many singular values of features (..., n, d) are above threshold times the largest, int64.

    Not centred. The default threshold is 2 ε √min(n, d) with the ε of the dtype, above what rounding of the elements
    turns a zero into. NumPy's default, ε max(n, d), is 0.1 for a million float32 rows. Zero features give 0; no
    gradient.

    Raises:
        MatrixError: ``features`` is not a matrix, empty, or not finite.
        ValueError: the threshold is below zero or not finite.
    """
    check_not_negative(threshold=0.0 if threshold is None else threshold)
    rows = rescaled(_double(features, validate).detach())
    level = default_threshold(features) if threshold is None else threshold
    return formulas.count_above(torch.linalg.svdvals(rows), level)


def pca_rank(features: Tensor, *, share: float = SHARE, validate: bool | None = None) -> Tensor:
    """The fewest principal components that explain a share of the variance of features (..., n, d), int64.

    The smallest k for which the k largest eigenvalues of the covariance sum to at least share · tr C: from 1 to
    min(n - 1, d), and 0 for equal rows; no gradient.

    Args:
        features: (..., n, d), one row per sample.
        share: in (0, 1].

    Raises:
        MatrixError: ``features`` is not a matrix, empty, or not finite.
        ValueError: the share is not in (0, 1].

    Reference: Jolliffe, "Principal Component Analysis", Springer, 2nd edition 2002, section 6.1.1.
    """
    if not is_number(share) or not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}.")
    rows = checked_matrix(features, "features", validate).detach()
    return formulas.count_of_share(_covariance_eigenvalues(rows, validate), share)


def alpha_req(features: Tensor, *, first: int = FIRST, last: int = LAST, validate: bool | None = None) -> Tensor:
    """α-ReQ: the exponent α of λ_r ∝ r^-α, λ_r the r-th largest eigenvalue of the covariance of features (..., n, d).

    It is 0 for a flat spectrum and large if few directions dominate; its authors report the best features near 1.
    Fitted to log λ_r by least squares with weights 1/r, as in the authors' released code. The paper does not fix the
    range of ranks, and published scripts begin at 4, 6 or 12 and end at 50 or 100, so compare only values from the same
    range. Zero eigenvalues are left out, and so are those below (4 ε)² times the mean of all eigenvalues about the
    origin, with the ε of the dtype: these are what rounding of the features turns zeros into. Where eigenvalues
    coincide there is a corner: their order decides, and the gradient is one of many.

    Args:
        features: (..., n, d), one row per sample.
        first, last: the ranks r of the fit, counted from 1; those beyond min(n, d) are left out.

    Returns:
        (...), 0 and above; NaN where fewer than two eigenvalues can be fitted and values are not checked.

    Raises:
        MatrixError: ``features`` is not a matrix, empty, or not finite, or has fewer than two eigenvalues to fit.
        ValueError: the ranks are not 1 ≤ first < last.

    Reference:
        Agrawal, Mondal, Ghosh and Richards, "α-ReQ: Assessing representation quality in self-supervised learning by
        measuring eigenspectrum decay", NeurIPS 2022.
    """
    if not (hasattr(first, "__index__") and hasattr(last, "__index__") and 1 <= first < last):
        raise ValueError(f"The ranks must be integers, 1 ≤ first < last, got first={first!r} and last={last!r}.")
    eigenvalues = _covariance_eigenvalues(checked_matrix(features, "features", validate), validate)
    zero = torch.maximum(zero_level(eigenvalues), _level_of_rounding(eigenvalues, features))
    alpha, fitted = formulas.power_law(eigenvalues, zero, first=first, last=last)
    if looks_at_values(features, validate) and (fitted < 2).any():
        raise MatrixError(
            f"Argument 'features' (shape {tuple(features.shape)}) has {int(fitted.min())} eigenvalues above zero of "
            f"the ranks {first} to {last}, and a slope needs two: pass more samples or a lower first=."
        )
    return alpha.to(full_precision(features).dtype)


def lidar(features: Tensor, *, ridge: float = RIDGE, validate: bool | None = None) -> Tensor:
    """LiDAR: effective rank of the discriminant of images against their views, 1 to min(n - 1, d).

    The discriminant is Σ_w^-½ Σ_b Σ_w^-½, where Σ_b is the covariance of each image's mean over its views and Σ_w that
    of the views about these means, plus δI; LiDAR is the exponential of the entropy of its eigenvalues over their sum.
    It counts the directions in which images differ by more than their views do. Two views suffice; the paper uses 10 to
    50. Images without any difference give 1.

    Args:
        features: (..., n, v, d), of v ≥ 2 views of each of n ≥ 2 images.
        ridge: δ > 0, absolute: scale features to a common size before comparing encoders.

    Raises:
        MatrixError: ``features`` has too few dimensions, images or views, or is not finite; the ridge is lost in the
            rounding of Σ_w, where values are checked; elsewhere the result is NaN.
        ValueError: the ridge is not above zero.

    Reference:
        Thilak, Huang, Saremi, Dinh, Goh, Nakkiran, Susskind and Littwin, "LiDAR: Sensing linear probing performance in
        joint embedding SSL architectures", ICLR 2024, https://arxiv.org/abs/2312.04000, equations 1 to 4; without the
        1e-7 that it adds to every share.
    """
    check_positive(ridge=ridge)
    x = checked_views(features, "features", validate)
    n, v, d = x.shape[-3:]
    means = x.mean(-2)
    within = (x - means.unsqueeze(-2)).flatten(-3, -2) / (n * v) ** 0.5
    between = centred_rows(means, "features", False)
    with without_autocast(x):
        spread = within.mT @ within + ridge * torch.eye(d, dtype=x.dtype, device=x.device)
        factor, info = torch.linalg.cholesky_ex(spread)
        if looks_at_values(features, validate) and (info > 0).any():
            raise NotPositiveDefiniteError(_LOST.format(ridge=ridge, of=f"of shape {tuple(features.shape)}"))
        discriminant = torch.linalg.solve_triangular(factor, between.mT, upper=False)
        entropy, _ = renyi_of(smaller_product(discriminant), 1.0)
    return torch.where(info == 0, entropy.exp(), torch.nan).to(full_precision(features).dtype)


def checked_views(features: Tensor, name: str, validate: bool | None) -> Tensor:
    """Finite features (..., n, v, d) of v ≥ 2 views of each of n ≥ 2 images, in float64; else MatrixError."""
    check_tensor(features, name)
    if features.ndim < 3 or min(features.shape[-3:-1], default=0) < 2:
        raise MatrixShapeError(
            f"Argument {name!r} has the shape {tuple(features.shape)}: expected (..., n, v, d) with at least two "
            f"images and two views of each."
        )
    return checked_matrix(features, name, validate).double()


def lidar_of(between: Tensor, within: Tensor, ridge: float) -> Tensor:
    """``lidar`` from Σ_b and Σ_w (d, d), the latter without its ridge."""
    identity = torch.eye(len(within), dtype=within.dtype, device=within.device)
    factor, info = torch.linalg.cholesky_ex(within + ridge * identity)
    if info.item() > 0:
        raise NotPositiveDefiniteError(_LOST.format(ridge=ridge, of=f"of width {len(within)}"))
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    discriminant = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    return spectral_entropies.shannon_entropy(linalg.eigenvalues(discriminant)).exp()


def self_cluster(features: Tensor, *, validate: bool | None = None) -> Tensor:
    """Self-cluster score of features (..., n, d): how far rows scaled to length one are from uniform on the sphere.

    It is (d m - 1) / (d - 1), with m the mean squared cosine over pairs of different rows: 0 in expectation for uniform
    directions, 1 if all rows are parallel, and at least -1 / (n - 1) without rows of zeros, whose cosine with every
    other row is 0. Unlike for a rank, low means spread out. Not centred. As a mean over pairs, it is not biased by the
    number of samples.

    Raises:
        MatrixError: ``features`` is not a matrix, has fewer than two rows or columns, or is not finite.

    Reference:
        Tsitsulin, Munkhoeva and Perozzi, "Unsupervised embedding quality evaluation", TAG-ML workshop at ICML 2023,
        https://arxiv.org/abs/2305.16562, definition 3.5, of the squared norm as in its published code.
    """
    check_tensor(features, "features")
    if features.ndim >= 2 and 1 in features.shape[-2:]:
        raise MatrixShapeError(
            f"Argument 'features' (shape {tuple(features.shape)}) needs at least two rows and two columns."
        )
    unit = unit_length(_double(features, validate))
    with without_autocast(unit):
        squares = smaller_product(unit).square().sum((-2, -1)) - unit.square().sum(-1).square().sum(-1)
    return mean_cosine_score(squares, *features.shape[-2:]).to(full_precision(features).dtype)


def mean_cosine_score(squares: Tensor, n: int, d: int) -> Tensor:
    """``self_cluster`` from the sum of squared cosines over ordered pairs of different rows."""
    return (d * squares / (n * (n - 1)) - 1) / (d - 1)


def default_threshold(features: Tensor) -> float:
    """The threshold of ``numerical_rank`` for features (..., n, d) of their dtype: 2 ε √min(n, d)."""
    return 2 * rounding_of(features) * min(features.shape[-2:]) ** 0.5


def rounding_level(mean: Tensor, eps: float) -> Tensor:
    """(4 ε)² times the mean (...) of the min(n, d) eigenvalues about the origin: (..., 1).

    Rounding every element by ε of its size turns zero eigenvalues into values below ε² of the mean; a float32 product,
    as a layer computes, turns them into values of up to 9 ε² of it.
    """
    return ((4 * eps) ** 2 * mean).unsqueeze(-1)


def rounding_of(features: Tensor) -> float:
    """ε of the dtype of the features; that of float64 for integers, which are exact."""
    return torch.finfo(features.dtype if features.dtype.is_floating_point else torch.float64).eps


def _level_of_rounding(eigenvalues: Tensor, features: Tensor) -> Tensor:
    """``rounding_level`` in the unit of eigenvalues of the covariance, which are known up to a factor."""
    rows = rescaled(full_precision(features.detach()))
    whole, spread = (
        torch.linalg.vector_norm(x, dim=(-2, -1), dtype=torch.float64) for x in (rows, deviations(rows))
    )  # the factor is that of ``spread``
    ratio = torch.where(spread > 0, whole / torch.where(spread > 0, spread, 1.0), 1.0)
    return rounding_level(eigenvalues.detach().mean(-1) * ratio.square(), rounding_of(features))


def _product_of_deviations(features: Tensor, validate: bool | None) -> Tensor:
    gram = linalg.product_of_deviations(features)
    check_representable(gram, features, "features", validate, "sums")
    return gram


def _covariance_eigenvalues(features: Tensor, validate: bool | None) -> Tensor:
    """Eigenvalues (..., min(n, d)), ascending, in float64, of the covariance of features (..., n, d) up to a factor."""
    gram = _product_of_deviations(features, validate)
    return eigenvalues_of(gram, used=gram.shape[-1]).clamp_min(0)


def _double(features: Tensor, validate: bool | None) -> Tensor:
    return checked_matrix(features, "features", validate).double()
