"""Divided differences and their derivatives at every ratio of the two numbers, against mpmath with 60 digits."""

import mpmath
import pytest
import torch

from matrix_ssl.matrix.spectra.divided_differences import log_difference, power_difference

RATIOS = [0.9, 0.5, 0.07, 0.06, 1e-3, 1e-8, 1e-16, 1e-18, 1e-25]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("exponent", [None, 0.5])
def test_value_and_derivatives(ratio: float, exponent: float | None) -> None:
    def exact(a: mpmath.mpf, b: mpmath.mpf) -> mpmath.mpf:
        if exponent is None:
            return (mpmath.log(a) - mpmath.log(b)) / (a - b)
        return (a**exponent - b**exponent) / exponent / (a - b)

    a, b = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (ratio, 1.0))
    value = log_difference(a, b) if exponent is None else power_difference(a, b, exponent)
    found = [value, *torch.autograd.grad(value, (a, b))]
    with mpmath.workdps(60):
        at = mpmath.mpf(ratio), mpmath.mpf(1)
        expected = [exact(*at), *(mpmath.diff(exact, at, order, relative=True) for order in ((1, 0), (0, 1)))]
        errors = [abs(mpmath.mpf(one.item()) / other - 1) for one, other in zip(found, expected, strict=True)]
    assert errors[0] < 1e-15
    assert max(errors) < (1e-12 if exponent is None else 1e-3)  # the derivative of expm1 is computed from its value
