"""Comparing representations of the same n samples by two encoders, layers, checkpoints or modalities.

Arguments are features x (..., n, d) and y (..., n, e), one row per sample, or Gram matrices (..., n, n); leading
dimensions are broadcast. ``matrices`` takes lists of features and compares every one with every other. Linear CKA,
SVCCA and the Procrustes distance are invariant to a shift, a rotation and a common scale of either argument, canonical
correlations to every invertible linear map; RSA ignores what its dissimilarity ignores, and PWCCA linear maps of y.
Numerics, checks and errors are those of ``matrix_ssl.matrix``.
"""

from matrix_ssl.matrix.comparison.alignment import cka, linear_cka
from matrix_ssl.matrix.comparison.canonical import canonical_correlations, cca, pwcca, svcca
from matrix_ssl.matrix.comparison.dime import difference_of_entropies
from matrix_ssl.matrix.comparison.matrices import CKAStatistics, linear_cka_matrix, rsa_matrix
from matrix_ssl.matrix.comparison.procrustes import procrustes_distance
from matrix_ssl.matrix.comparison.similarity_analysis import rsa

__all__ = [
    "CKAStatistics",
    "canonical_correlations",
    "cca",
    "cka",
    "difference_of_entropies",
    "linear_cka",
    "linear_cka_matrix",
    "procrustes_distance",
    "pwcca",
    "rsa",
    "rsa_matrix",
    "svcca",
]
