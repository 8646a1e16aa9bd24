"""The Matrix-SSL, maximum-entropy-coding and matrix entropy losses as pure functions of a whole batch.

Every loss takes raw outputs (n, d): student ``z1, z2`` (after the predictor) and, except for the matrix entropy,
teacher ``p1, p2``, and l2-normalises their rows itself. It never communicates: with several processes, gather the batch
first, or sum covariances (``matrix_ssl.distributed``). Half precision is computed in float32 with autocast off. The
teacher outputs may carry a gradient; detach them to stop it. Shapes that differ or are not (n, d) with n ≥ 2, and
constants out of range, raise a ValueError.

With J = I - 11ᵀ/n, C(a, b) = aᵀ J b / n and ridge μ, the two terms of one order (p, z) are

    uniformity(p, z) = -weight · tr log(C(p, z) + μI)              = matrix cross-entropy of weight·I, up to its trace
    alignment(p, z)  = -tr[(C(p, p) + μI) log(C(z, z) + μI)]       = matrix cross-entropy, up to its trace

and a loss is the mean over the orders (p2, z1) and (p1, z2), with the alignment weighted. The matrix entropy has no
teacher; ``matrix_entropy_loss`` gives its formula.

References:
    Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024, section 4,
    https://arxiv.org/abs/2305.17326.
    Liu, Wang, Li and Wang, "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022, equations 4 and 6,
    https://arxiv.org/abs/2210.11464.
"""

from matrix_ssl.losses.matrix_entropy import (
    MatrixEntropyTerms,
    covariance_entropy,
    matrix_entropy_loss,
    matrix_entropy_terms,
    view_entropy,
)
from matrix_ssl.losses.matrix_ssl import (
    NegativeDeterminantWarning,
    matrix_ssl_loss,
    matrix_ssl_paper_loss,
    matrix_ssl_terms,
)
from matrix_ssl.losses.matrix_ssl_variants import Alignment, Uniformity, matrix_ssl_variant_terms
from matrix_ssl.losses.mec import mec_loss, mec_moment_loss
from matrix_ssl.losses.objective import DEFAULTS, MEC_DEFAULTS, Algorithm, Logarithm, MECObjective, Objective
from matrix_ssl.losses.order import MatrixSSLTerms, matrix_ssl_covariance_terms, matrix_ssl_order_terms
from matrix_ssl.losses.rows import check_rows, cross_product_norm, unit_rows
from matrix_ssl.matrix.numerics.precision import in_full_precision, without_autocast
from matrix_ssl.matrix.numerics.validation import check_not_negative, check_positive

__all__ = [
    "DEFAULTS",
    "MEC_DEFAULTS",
    "Algorithm",
    "Alignment",
    "Logarithm",
    "MECObjective",
    "MatrixEntropyTerms",
    "MatrixSSLTerms",
    "NegativeDeterminantWarning",
    "Objective",
    "Uniformity",
    "check_not_negative",
    "check_positive",
    "check_rows",
    "covariance_entropy",
    "cross_product_norm",
    "in_full_precision",
    "matrix_entropy_loss",
    "matrix_entropy_terms",
    "matrix_ssl_covariance_terms",
    "matrix_ssl_loss",
    "matrix_ssl_order_terms",
    "matrix_ssl_paper_loss",
    "matrix_ssl_terms",
    "matrix_ssl_variant_terms",
    "mec_loss",
    "mec_moment_loss",
    "unit_rows",
    "view_entropy",
    "without_autocast",
]
