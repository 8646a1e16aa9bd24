"""Divided differences (f(a) - f(b)) / (a - b) of the logarithm, of powers and of ψ, without cancellation where a ≈ b.

They are what functions of a symmetric matrix are differentiated with (Daleckii and Krein, 1965).
"""

import torch
from torch import Tensor

_FAR = 7 / 8  # |a - b| / (a + b) beyond which the logarithms of two numbers are subtracted


def log_difference(a: Tensor, b: Tensor) -> Tensor:
    """(log a - log b) / (a - b) of numbers above zero, accurate to a few ε at every ratio.

    It is 2/(a+b) · atanh(y)/y with y = (a-b)/(a+b), without cancellation where a ≈ b. Where one is below a fifteenth of
    the other, 1 - |y| would lose digits, and then all of them; there the quotient is computed as it stands.
    """
    y = (a - b) / (a + b)
    apart = y.abs() > _FAR
    y = torch.where(apart, 0.0, y)  # atanh has no finite derivative at 1
    ratio = torch.where(y == 0, 1.0, torch.atanh(y) / torch.where(y == 0, 1.0, y))
    return torch.where(apart, (a.log() - b.log()) / torch.where(apart, a - b, 1.0), 2 / (a + b) * ratio)


def log1p_ratio_value(x: Tensor, scale: float) -> Tensor:
    """ψ(x) = log(1 + x / scale) / x, for each eigenvalue."""
    x = x.clamp_min(0)  # rounding can leave a zero eigenvalue below zero
    return torch.where(x == 0, 1 / scale, torch.log1p(x / scale) / torch.where(x == 0, 1.0, x))


def log1p_ratio_difference(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """(ψ(a) - ψ(b)) / (a - b).

    With L(x) = xψ(x) = log(1 + x/scale), ψ[a, b] = (L[a, b] - ψ(a)) / b. Taking b as the larger one, the subtraction
    loses at most a factor 2·scale/b; below b = scale/20 the power series of ψ is summed instead, whose twelve terms
    leave 20⁻¹² ≈ 2e-16.
    """
    small, large = torch.minimum(a, b).clamp_min(0), torch.maximum(a, b).clamp_min(0)
    direct = log_difference(small + scale, large + scale) - log1p_ratio_value(small, scale)
    direct = direct / torch.where(large == 0, 1.0, large)
    u, v = small / scale, large / scale
    power, inner, series = torch.ones_like(u), torch.zeros_like(u), torch.zeros_like(u)
    for k in range(1, 13):
        inner = power + v * inner  # Σ_{j<k} uʲ v^(k-1-j)
        power = power * u
        series = series + (-1) ** k / (k + 1) * inner
    return torch.where(v < 0.05, series / scale**2, direct)


def power_difference(a: Tensor, b: Tensor, exponent: float) -> Tensor:
    """(a^e - b^e) / (e (a - b)) of numbers not below zero, without cancellation; (log a - log b) / (a - b) at e = 0.

    With m the larger one and t = log of the ratio, at most 0, it is m^(e-1) · expm1(e t) / (e expm1(t)). Where both are
    zero it is the limit for equal ones, and 0 where that is infinite.
    """
    large, small = torch.maximum(a, b), torch.minimum(a, b)
    inside = small > 0
    safe = torch.where(large > 0, large, 1.0)
    y = torch.where(inside, (small - large) / (small + large), 0.0)
    far = y < -_FAR
    t = torch.where(far, torch.where(inside, small / safe, 1.0).log(), 2 * torch.atanh(torch.where(far, 0.0, y)))
    apart = t < 0
    log = torch.where(apart, t, -1.0)
    ratio = (log if exponent == 0 else torch.expm1(exponent * log) / exponent) / torch.expm1(log)
    value = safe.pow(exponent - 1) * torch.where(apart, ratio, 1.0)
    if exponent <= 0:
        return torch.where(inside, value, 0.0)
    at_one_zero = torch.where(large > 0, safe.pow(exponent - 1) / exponent, float(exponent == 1))
    return torch.where(inside, value, at_one_zero)
