"""The quantities of ``matrix_ssl.matrix`` directly from features (..., n, d), one row per sample, on the smaller side.

Entropies, divergences, ``effective_rank`` and ``log_det`` are those of C + ridge·I, where C = (x - mean)ᵀ
(x - mean) / n is the covariance or, with ``about="origin"``, the second moment xᵀx / n. Joint entropies and the
measures derived from them, ``vendi_score``, ``gram_entropy`` and ``gram_kl`` are those of linear kernels, the inner
products of rows scaled to length one; a row of zeros stays zero.

The smaller side is that of the samples, with n x n matrices, or of the features, with d x d. With m = min(n, d), the
eigenvalues of C are those of an m x m matrix and d - m zeros, and a logarithm is carried to the side of the samples by
ψ(x) = log(1 + x / μ) / x: log(BᵀB + μI) = log(μ) I + Bᵀ ψ(BBᵀ) B. The elementwise product of kernels is the kernel of
the products of features: its sides are n and the product of the widths.

Numerics, checks and errors are those of ``matrix_ssl.matrix``; features are checked only for shape and finiteness.
Divergences are computed in the dtype of the features: in float32 they are off by up to 1e-7 times the condition number
times tr P. Without a ridge, the gradient of the matrix entropy and of the von Neumann entropy is correct at rank
deficiency, too, since σ² log σ² has derivative zero at σ = 0; its second derivative is infinite there and omitted. At
exact collapse, where all rows are equal, an entropy of a matrix scaled to trace one is 0 and has no gradient without a
ridge.
"""

from matrix_ssl.matrix.of_features.covariances import (
    effective_rank,
    log_det,
    low_rank_entropy,
    matrix_entropy,
    min_entropy,
    renyi_entropy,
    truncated_entropy,
    tsallis_entropy,
    von_neumann_entropy,
)
from matrix_ssl.matrix.of_features.divergences import (
    gram_kl,
    gram_kl_matrix,
    holevo_information,
    jensen_renyi_divergence,
    matrix_cross_entropy,
    matrix_kl,
    schatten_divergence,
)
from matrix_ssl.matrix.of_features.kernels import (
    conditional_entropy,
    dual_total_correlation,
    entropy_difference_ratio,
    gram_entropy,
    interaction_information,
    joint_entropy,
    matrix_mutual_information_ratio,
    mutual_information,
    normalised_mutual_information,
    total_correlation,
    vendi_score,
)

__all__ = [
    "conditional_entropy",
    "dual_total_correlation",
    "effective_rank",
    "entropy_difference_ratio",
    "gram_entropy",
    "gram_kl",
    "gram_kl_matrix",
    "holevo_information",
    "interaction_information",
    "jensen_renyi_divergence",
    "joint_entropy",
    "log_det",
    "low_rank_entropy",
    "matrix_cross_entropy",
    "matrix_entropy",
    "matrix_kl",
    "matrix_mutual_information_ratio",
    "min_entropy",
    "mutual_information",
    "normalised_mutual_information",
    "renyi_entropy",
    "schatten_divergence",
    "total_correlation",
    "truncated_entropy",
    "tsallis_entropy",
    "vendi_score",
    "von_neumann_entropy",
]
