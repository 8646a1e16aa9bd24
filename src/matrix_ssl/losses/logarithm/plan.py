"""The choice of the cheapest algorithm for the logarithm, with its degree or number of nodes from an error bound."""

import functools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from matrix_ssl.losses.logarithm import Form, quadrature, series
from matrix_ssl.losses.rows import symmetric_product
from matrix_ssl.matrix.spectra.divided_differences import log1p_ratio_difference, log1p_ratio_value, log_difference

_EIGH_COST = 9.5  # in matrix products of the same size, measured on a CPU in float32 at 512 to 2048
_LONGEST_SERIES = 40  # beyond this degree a polynomial loses digits of float32


class Plan(NamedTuple):
    """How a logarithm is computed."""

    algorithm: Literal["eigh", "quadrature", "polynomial"]
    size: int  # degree of the polynomial or number of nodes; 0 for eigh
    largest: float  # upper bound on the eigenvalues that it covers


def tolerance(dtype: torch.dtype) -> float:
    """Accepted bound on the relative error of the logarithm's derivative, 1.5e-5 in float32.

    It affects only the difference of teacher and student (``losses.order``): the gradient's error is rounding, about
    1e-6.
    """
    return max(128 * torch.finfo(dtype).eps, 1e-13)


def choose(square: Tensor, ridge: float, algorithm: str = "auto") -> Plan:
    """The plan for log(A + ridge·I), A symmetric positive semi-definite with a trace of at most one, from A².

    On the CPU ‖A²‖_F bounds the square of the largest eigenvalue, tightly where one eigenvalue dominates. On other
    devices reading it would make the device wait: there the bound is that on the trace, 1, and ``"auto"`` never chooses
    the eigendecomposition, which is slow on a GPU.
    """
    adaptive = square.device.type == "cpu"
    largest = _round_up(max(float(torch.linalg.matrix_norm(square)) ** 0.5, 1e-3 * ridge)) if adaptive else 1.0
    return plan(ridge, largest, tolerance(square.dtype), algorithm, may_decompose=adaptive)


@functools.lru_cache(maxsize=256)
def plan(ridge: float, largest: float, accepted: float, algorithm: str, *, may_decompose: bool) -> Plan:
    """The cheapest plan for eigenvalues in [0, largest], or the plan of the named algorithm."""
    if not math.isfinite(largest):
        return Plan("polynomial", 1, 1.0)  # NaN in, NaN out; an eigen-decomposition would raise an error instead
    eigh = Plan("eigh", 0, largest)
    if algorithm == "eigh":
        return eigh
    polynomial = Plan("polynomial", series.chebyshev_degree(ridge, largest, accepted), largest)
    if algorithm == "polynomial":
        return polynomial
    short = polynomial.size <= _LONGEST_SERIES
    if algorithm == "auto" and may_decompose:
        return polynomial if short and series.product_count(polynomial.size) < _EIGH_COST else eigh
    if algorithm == "auto" and short:
        return polynomial
    # the error of a quadrature has one sign and adds up in the value, while that of a polynomial averages out
    return Plan("quadrature", quadrature.node_count(ridge, largest, accepted / 10), largest)


def _round_up(x: float) -> float:
    """x rounded up to the next sixteenth of an octave, so that many steps share one plan."""
    return 2 ** (math.ceil(16 * math.log2(x)) / 16) if math.isfinite(x) else x


def exact_logarithm(
    a: Tensor, square: Tensor, direction: Tensor, ridge: float, algorithm: str, form: Form
) -> tuple[Tensor, Tensor]:
    """f(A) and its derivative in a direction by the algorithm of the plan, from A and A², which is overwritten."""
    chosen = choose(square, ridge, algorithm)
    if chosen.algorithm == "eigh":
        return _by_eigenvalues(a, direction, ridge, form)
    if chosen.algorithm == "quadrature":
        return quadrature.function(a, direction, quadrature.nodes(ridge, chosen.largest, chosen.size), form)
    return series.function(a, square, direction, series.chebyshev_log(ridge, chosen.largest, chosen.size), form)


def _by_eigenvalues(a: Tensor, direction: Tensor, ridge: float, form: Form) -> tuple[Tensor, Tensor]:
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
