"""What every algorithm for the logarithm computes, and the form on either side.

An algorithm's ``function`` takes a symmetric positive semi-definite A and a symmetric direction and returns f(A) and
L_f(A, direction), the Fréchet derivative of f at A. Two functions f carry the logarithm:

    "log"    φ(x) = log(1 + x / ridge)          on the d x d side, A = BᵀB
    "ratio"  ψ(x) = log(1 + x / ridge) / x      on the n x n side, A = BBᵀ: log(BᵀB + ridge·I) = log ridge + Bᵀ ψ(A) B
"""

from typing import Literal

Form = Literal["log", "ratio"]
