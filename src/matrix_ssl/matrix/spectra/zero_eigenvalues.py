"""When an eigenvalue counts as zero.

Rounding turns a zero eigenvalue into a small one of either sign, in measurements by up to 0.3 ε √d of the largest.
Eigenvalues below ``zero_level``, 2 ε √d of the largest, count as zero: they contribute no gradient where it would be
infinite at zero, and nothing at all to entropies of orders below 1; other values use every eigenvalue above zero.
"""

import math

import torch
from torch import Tensor


def zero_level(x: Tensor, ridge: float = 0.0, *, d: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """2 ε √d of the largest of x (..., d), below which a value counts as zero, (..., 1); 0 with a ridge."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    units = 0.0 if ridge > 0 else 2 * math.sqrt(x.shape[-1] if d is None else d)
    return units * torch.finfo(dtype or x.dtype).eps * largest


def without_gradient_at_zero(x: Tensor, ridge: float, dtype: torch.dtype | None = None) -> Tensor:
    """max(x, 0) with the gradient of x above the zero level and none below it."""
    return torch.where(x > zero_level(x, ridge, dtype=dtype), x, x.detach().clamp_min(0))
