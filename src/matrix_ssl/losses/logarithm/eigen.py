"""The logarithm by eigen-decomposition: exact for any spectrum, by the most expensive factorisation."""

import torch
from torch import Tensor

from matrix_ssl.losses.logarithm import Form
from matrix_ssl.losses.rows import symmetric_product
from matrix_ssl.matrix.calculus import log1p_ratio_difference, log1p_ratio_value, log_difference


def function(a: Tensor, direction: Tensor, ridge: float, form: Form) -> tuple[Tensor, Tensor]:
    """f(A) and its derivative by divided differences (Daleckii and Krein, 1965), finite where eigenvalues repeat."""
    eigenvalues, vectors = torch.linalg.eigh(a)
    eigenvalues = eigenvalues.clamp_min(0)  # rounding can leave a zero eigenvalue below zero
    x, y = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
    if form == "ratio":
        values, differences = log1p_ratio_value(eigenvalues, ridge), log1p_ratio_difference(x, y, ridge)
    else:
        values, differences = torch.log1p(eigenvalues / ridge), log_difference(x + ridge, y + ridge)
    rotated = symmetric_product(vectors.mT @ direction, vectors.mT)
    derivative = symmetric_product(vectors @ differences.mul_(rotated), vectors)
    return symmetric_product(vectors * values, vectors), derivative
