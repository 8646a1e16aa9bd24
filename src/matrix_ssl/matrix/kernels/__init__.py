"""Kernels of samples, their Gram matrices, and random features that estimate them.

Gram matrices are symmetric positive semi-definite, (..., n, n) of samples x (..., n, d), one row per sample. Numerics,
checks and errors are those of ``matrix_ssl.matrix``.
"""

from matrix_ssl.matrix.kernels.gram import centred_gram, normalised_gram, unit_diagonal
from matrix_ssl.matrix.kernels.pairwise import (
    angular_kernel,
    cosine_kernel,
    exponential_kernel,
    gaussian_kernel,
    kernel_width,
    laplace_kernel,
    linear_kernel,
    polynomial_kernel,
)
from matrix_ssl.matrix.kernels.random_features import random_feature_error, random_fourier_features

__all__ = [
    "angular_kernel",
    "centred_gram",
    "cosine_kernel",
    "exponential_kernel",
    "gaussian_kernel",
    "kernel_width",
    "laplace_kernel",
    "linear_kernel",
    "normalised_gram",
    "polynomial_kernel",
    "random_feature_error",
    "random_fourier_features",
    "unit_diagonal",
]
