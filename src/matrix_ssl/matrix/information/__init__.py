"""Matrix information theory: entropies and divergences of matrices, and what several kernels share.

Matrices are symmetric positive semi-definite, (..., d, d), such as covariances and Gram matrices. Numerics, checks and
errors are those of ``matrix_ssl.matrix``.
"""

from matrix_ssl.matrix.information.density_matrices import (
    holevo_information,
    jensen_renyi_divergence,
    schatten_divergence,
)
from matrix_ssl.matrix.information.divergence import matrix_cross_entropy, matrix_kl
from matrix_ssl.matrix.information.diversity import vendi_score
from matrix_ssl.matrix.information.entropy import (
    low_rank_entropy,
    matrix_entropy,
    min_entropy,
    renyi_entropy,
    truncated_entropy,
    tsallis_entropy,
    von_neumann_entropy,
)
from matrix_ssl.matrix.information.joint_entropies import (
    conditional_entropy,
    dual_total_correlation,
    entropy_difference_ratio,
    interaction_information,
    joint_entropy,
    matrix_mutual_information_ratio,
    mutual_information,
    normalised_mutual_information,
    total_correlation,
)

__all__ = [
    "conditional_entropy",
    "dual_total_correlation",
    "entropy_difference_ratio",
    "holevo_information",
    "interaction_information",
    "jensen_renyi_divergence",
    "joint_entropy",
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
