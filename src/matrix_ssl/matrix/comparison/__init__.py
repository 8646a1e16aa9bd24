"""Comparing representations: of two encoders, layers, checkpoints or modalities for the same n samples.

Arguments are features x (..., n, d) and y (..., n, e), one row a sample, or Gram matrices (..., n, n); leading
dimensions are broadcast. ``matrices`` takes lists of features and compares every one with every other one. All values
are invariant to a shift, a rotation and a common scale of either; canonical correlations to every invertible linear
map. Numerics, checks and errors are those of ``matrix_ssl.matrix``.
"""

from matrix_ssl.matrix.comparison.alignment import cka, linear_cka
from matrix_ssl.matrix.comparison.canonical import canonical_correlations, cca, pwcca, svcca
from matrix_ssl.matrix.comparison.entropies import difference_of_entropies
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
