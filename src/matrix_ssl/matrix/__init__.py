"""Matrix information theory on symmetric positive semi-definite tensors of shape (..., d, d).

log is the natural matrix logarithm, so every entropy is in nats; λ denotes eigenvalues. The module
``matrix_ssl.matrix.of_features`` computes the same quantities directly from features (..., n, d), one row per sample.

Functions accept any leading batch dimensions and compute in float64 or float32 (half precision in float32) with
autocast off. float64 is accurate to 1e-10; float32 to 1e-5, relative to the sum of the magnitudes of the terms, up to a
condition number of 1e3. Gradients are finite and correct where eigenvalues coincide and, with ``ridge``, at every rank.
Entropies, determinants and kernels can be differentiated twice; a second derivative that is not provided raises an
error. Run the backward pass outside autocast, as PyTorch recommends. Under ``torch.func.vmap`` values are not checked.

Without a ridge, 0 log 0 is taken as 0, and a zero eigenvalue (one below 2 ε √d times the largest) contributes no
gradient where the true one is infinite. ``ridge``, μ ≥ 0, adds μI and is the remedy; it is never added implicitly.

An invalid argument raises a ``MatrixError`` (``matrix_ssl.errors``), a ValueError that says by how much it is wrong:
anything but a dense tensor of real numbers, a matrix that is empty, not finite, not square or not symmetric, values
whose squares leave the range of the dtype, shapes that do not fit, and whatever else a function lists. Shapes are
always checked; values are checked on the CPU outside ``torch.compile``. ``validate=True`` checks them everywhere, at
the cost of waiting for the device, and ``validate=False`` nowhere. Rounding errors are tolerated: a matrix may differ
from its transpose by 100 ε √d (half precision: ε √d) times its largest element, and its eigenvalues may be negative by
the same fraction of its largest one, with the ε of the dtype that was passed.

References:
    Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024, section 2,
    https://arxiv.org/abs/2305.17326.
    Giraldo, Rao and Principe, "Measures of Entropy From Data Using Infinitely Divisible Kernels", IEEE Transactions on
    Information Theory 61(1), 2015.
    Roy and Vetterli, "The effective rank", EUSIPCO 2007.
"""

from matrix_ssl.matrix import of_features
from matrix_ssl.matrix.comparison import (
    CKAStatistics,
    canonical_correlations,
    cca,
    cka,
    difference_of_entropies,
    linear_cka,
    linear_cka_matrix,
    procrustes_distance,
    pwcca,
    rsa,
    rsa_matrix,
    svcca,
)
from matrix_ssl.matrix.covariances import (
    covariance,
    cross_covariance,
    second_moment,
)
from matrix_ssl.matrix.information import (
    conditional_entropy,
    dual_total_correlation,
    entropy_difference_ratio,
    holevo_information,
    interaction_information,
    jensen_renyi_divergence,
    joint_entropy,
    low_rank_entropy,
    matrix_cross_entropy,
    matrix_entropy,
    matrix_kl,
    matrix_mutual_information_ratio,
    min_entropy,
    mutual_information,
    normalised_mutual_information,
    renyi_entropy,
    schatten_divergence,
    total_correlation,
    truncated_entropy,
    tsallis_entropy,
    vendi_score,
    von_neumann_entropy,
)
from matrix_ssl.matrix.kernels import (
    angular_kernel,
    centred_gram,
    cosine_kernel,
    exponential_kernel,
    gaussian_kernel,
    kernel_width,
    laplace_kernel,
    linear_kernel,
    normalised_gram,
    polynomial_kernel,
    random_feature_error,
    random_fourier_features,
    unit_diagonal,
)
from matrix_ssl.matrix.moments import (
    Moments,
)
from matrix_ssl.matrix.ranks import (
    Estimate,
    RankReport,
    RankStatistics,
    alpha_req,
    coding_rate,
    effective_rank,
    estimate,
    lidar,
    numerical_rank,
    participation_ratio,
    pca_rank,
    rank_me,
    rank_report,
    self_cluster,
    shannon_entropy,
    spectrum,
    stable_rank,
)
from matrix_ssl.matrix.spectra.logarithm import (
    log1p_ratio,
    log_det,
    matrix_log,
)

__all__ = [
    "CKAStatistics",
    "Estimate",
    "Moments",
    "RankReport",
    "RankStatistics",
    "alpha_req",
    "angular_kernel",
    "canonical_correlations",
    "cca",
    "centred_gram",
    "cka",
    "coding_rate",
    "conditional_entropy",
    "cosine_kernel",
    "covariance",
    "cross_covariance",
    "difference_of_entropies",
    "dual_total_correlation",
    "effective_rank",
    "entropy_difference_ratio",
    "estimate",
    "exponential_kernel",
    "gaussian_kernel",
    "holevo_information",
    "interaction_information",
    "jensen_renyi_divergence",
    "joint_entropy",
    "kernel_width",
    "laplace_kernel",
    "lidar",
    "linear_cka",
    "linear_cka_matrix",
    "linear_kernel",
    "log1p_ratio",
    "log_det",
    "low_rank_entropy",
    "matrix_cross_entropy",
    "matrix_entropy",
    "matrix_kl",
    "matrix_log",
    "matrix_mutual_information_ratio",
    "min_entropy",
    "mutual_information",
    "normalised_gram",
    "normalised_mutual_information",
    "numerical_rank",
    "of_features",
    "participation_ratio",
    "pca_rank",
    "polynomial_kernel",
    "procrustes_distance",
    "pwcca",
    "random_feature_error",
    "random_fourier_features",
    "rank_me",
    "rank_report",
    "renyi_entropy",
    "rsa",
    "rsa_matrix",
    "schatten_divergence",
    "second_moment",
    "self_cluster",
    "shannon_entropy",
    "spectrum",
    "stable_rank",
    "svcca",
    "total_correlation",
    "truncated_entropy",
    "tsallis_entropy",
    "unit_diagonal",
    "vendi_score",
    "von_neumann_entropy",
]
