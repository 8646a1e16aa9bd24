"""The logarithm of a covariance plus a ridge, and its derivative, by the cheapest algorithm that is accurate enough.

Every algorithm takes a symmetric positive semi-definite A and a symmetric direction, and returns f(A) and the Fréchet
derivative L_f(A, direction). Two functions f carry the logarithm:

    "log"    φ(x) = log(1 + x / ridge)          on the d x d side, A = BᵀB
    "ratio"  ψ(x) = log(1 + x / ridge) / x      on the n x n side, A = BBᵀ: log(BᵀB + ridge·I) = log ridge + Bᵀ ψ(A) B

``plan`` chooses among eigenvalues, ``quadrature`` and ``series``; ``trace`` computes tr log of a matrix without
symmetry.
"""

from typing import Literal

Form = Literal["log", "ratio"]
