"""Rows of representations: centred, scaled so that fourth powers stay in range, zero where constant; their names."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from matrix_ssl.matrix.numerics import kernel_checks, validation
from matrix_ssl.matrix.numerics.scaling import in_range, largest_element


def scaled_rows(x: Tensor, name: str, validate: bool | None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Centred rows, up to one factor per matrix (..., n, d), in full precision or ``dtype``.

    The factor is one, or one over the largest element where fourth powers could leave the range. If no centred element
    exceeds 16 ε times the largest of x, which is all that the mean of equal rows leaves, all of them count as zero.
    """
    full = validation.checked_matrix(x, name, validate)
    full = full if dtype is None else full.to(dtype)
    mean = full.mean(-2, keepdim=True)
    rows = full - mean
    largest, level = largest_element(rows), 16 * torch.finfo(full.dtype).eps
    if in_range(rows, largest) and (largest > level * (largest + largest_element(mean))).all():
        return rows
    validation.check_representable(rows, x, name, validate, "sums")
    constant = largest <= level * largest_element(full)
    return torch.where(constant, 0.0, rows / torch.where(constant, 1.0, largest))


def named_representations(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Representations of the same samples by the names that errors give them; the second are empty without ``ys``."""
    if len(xs) == 0 or (ys is not None and len(ys) == 0):
        raise ValueError("There is no representation: pass a list of at least one.")
    first = {f"xs[{i}]": x for i, x in enumerate(xs)}
    second = {f"ys[{j}]": y for j, y in enumerate(ys or ())}
    for name, x in (first | second).items():
        validation.check_tensor(x, name)
        if x.ndim < 2:
            validation.checked_matrix(x, name, False)
    for (name, x), (other, y) in itertools.combinations((first | second).items(), 2):
        kernel_checks.check_same_samples(x, y, f"{name} and {other}")
    return first, second
