"""The logarithm of a covariance plus a ridge, and its derivative, by the cheapest algorithm that is accurate enough.

Every algorithm has a ``function`` that takes a symmetric positive semi-definite A and a symmetric direction and returns
f(A) and L_f(A, direction), the Fréchet derivative of f at A. Two functions f carry the logarithm:

    "log"    φ(x) = log(1 + x / ridge)          on the d x d side, A = BᵀB
    "ratio"  ψ(x) = log(1 + x / ridge) / x      on the n x n side, A = BBᵀ: log(BᵀB + ridge·I) = log ridge + Bᵀ ψ(A) B

``plan`` chooses among ``eigen``, ``quadrature`` and ``series``; ``trace`` has tr log of a matrix that is not symmetric.
"""

from typing import Literal

Form = Literal["log", "ratio"]
