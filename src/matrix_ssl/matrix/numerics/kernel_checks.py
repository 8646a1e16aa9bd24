"""Checks of samples, weights and kernels, as ``validation`` has for matrices, with the same rule on when to look."""

from collections.abc import Sequence

import torch
from torch import Tensor

from matrix_ssl import errors
from matrix_ssl.matrix.numerics.precision import full_precision
from matrix_ssl.matrix.numerics.validation import check_tensor, label, leading_fit, looks_at_values, place, tolerance


def check_trace(trace: Tensor, a: Tensor, name: str, validate: bool | None) -> None:
    """Raises unless the trace (...) is above zero, so that the matrix can be scaled to trace one."""
    if looks_at_values(a, validate) and (trace <= 0).any():
        at = trace.detach().argmin()
        raise errors.MatrixError(
            f"{label(a, name)} has the trace {trace.flatten()[at].item():.3g}{place(at, trace)}: it cannot be scaled "
            f"to trace one. Pass a covariance or a kernel that is not zero."
        )


def check_diagonal(diagonal: Tensor, a: Tensor, name: str, validate: bool | None) -> None:
    """Raises unless the diagonal (..., n) of a kernel is above zero."""
    if looks_at_values(a, validate) and (diagonal <= 0).any():
        at = diagonal.detach().argmin()
        raise errors.MatrixError(
            f"{label(a, name)} has {diagonal.flatten()[at].item():.3g} on its diagonal at {_index(at, diagonal)}: the "
            f"similarity of a sample with itself must be above zero. Remove the sample."
        )


def check_unit_diagonal(full: Tensor, a: Tensor, name: str, validate: bool | None) -> None:
    """Raises unless the diagonal of a kernel is one up to rounding."""
    if not looks_at_values(a, validate):
        return
    diagonal = full.detach().diagonal(dim1=-2, dim2=-1)
    off = (diagonal - 1).abs()
    if (off > tolerance(a.dtype, a.shape[-1])).any():
        at = off.argmax()
        raise errors.MatrixError(
            f"{label(a, name)} has {diagonal.flatten()[at].item():.6g} on its diagonal at {_index(at, diagonal)}: the "
            f"similarity of a sample with itself must be 1. Pass unit_diagonal({name}), or cosine_kernel of features."
        )


def check_rows(rows: Tensor, x: Tensor, name: str, validate: bool | None) -> None:
    """Raises where a row of samples (..., n, d) has length zero."""
    if not looks_at_values(x, validate) or torch.linalg.vector_norm(rows.detach(), dim=-1).all():
        return
    if (zero := (rows.detach() == 0).all(-1)).any():
        first = tuple(zero.nonzero()[0].tolist())
        raise errors.MatrixError(
            f"{label(x, name)} has {int(zero.sum())} rows of length zero, the first at {first}: they have no "
            f"direction. Remove these samples."
        )


def checked_weights(weights: Tensor, samples: Tensor, name: str, validate: bool | None) -> Tensor:
    """Weights (..., n) in full precision, one for each of the samples (..., n, k)."""
    n = samples.shape[-2]
    check_tensor(weights, "weights")
    if weights.ndim < 1 or weights.shape[-1] != n:
        raise errors.MatrixShapeError(
            f"Argument 'weights' has the shape {tuple(weights.shape)} for {n} samples in {name}: pass one weight a "
            f"sample."
        )
    check_leading(weights.shape[:-1], samples.shape[:-2], "weights", name)
    full = full_precision(weights)
    if looks_at_values(weights, validate):
        wrong = ~torch.isfinite(full) | (full < 0)
        if wrong.any():
            first = tuple(wrong.nonzero()[0].tolist())
            raise errors.MatrixError(
                f"Argument 'weights' has {full[first].item():.3g} at {first}: weights are finite numbers, zero or "
                f"above."
            )
        if (full.sum(-1) == 0).any():
            raise errors.MatrixError("Argument 'weights' is zero for all samples: one must be above zero.")
    return full


def check_leading(own: Sequence[int], other: Sequence[int], name: str, of: str) -> None:
    """Raises unless leading sizes of an argument and of what it belongs to can be broadcast."""
    if not all(m == n or 1 in (m, n) for m, n in zip(own[::-1], other[::-1], strict=False)):
        raise errors.MatrixShapeError(
            f"Argument {name!r} has the leading dimensions {tuple(own)} and {of!r} has {tuple(other)}: they must agree "
            f"or be 1."
        )


def check_sample_count(n: int, least: int, x: Tensor, name: str, purpose: str) -> None:
    """Raises unless there are ``least`` samples."""
    if n < least:
        raise errors.MatrixShapeError(f"{label(x, name)} has {n} rows: {purpose} needs at least {least}. Pass more.")


def check_same_samples(first: Tensor, second: Tensor, names: str) -> None:
    """Raises unless both (..., n, d) have the same number of samples, and leading sizes that fit."""
    if first.shape[-2] != second.shape[-2] or not leading_fit(first, second):
        raise errors.MatrixShapeError(
            f"Arguments {names} have the shapes {tuple(first.shape)} and {tuple(second.shape)}: they must have the "
            f"same samples, and leading dimensions that agree or are 1."
        )


def check_width_of_rule(width: Tensor, x: Tensor, rule: str, validate: bool | None) -> None:
    """Raises where a rule gives a width (...) that is zero or infinite."""
    if not looks_at_values(x, validate):
        return
    if (width == 0).any():
        at = width.argmin()
        raise errors.MatrixError(
            f"{label(x, 'x')}: the width by the rule {rule!r} is zero{place(at, width)}, since samples are equal "
            f"or squares of their distances below the range of {width.dtype}. Pass a number as width=."
        )
    if not torch.isfinite(width).all():
        at = width.argmax()
        raise errors.NotFiniteError(
            f"{label(x, 'x')}: the width by the rule {rule!r} is infinite{place(at, width)}, since squares of "
            f"distances are beyond {width.dtype}: divide x by a constant, or pass float64."
        )


def check_width(width: Tensor, validate: bool | None) -> None:
    """Raises unless all widths are finite and above zero."""
    if looks_at_values(width, validate) and not ((width > 0) & torch.isfinite(width)).all():
        raise ValueError(f"width must be finite numbers above zero, got {width.detach().flatten().tolist()[:8]}.")


def _index(at: Tensor, values: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(at, values.shape))
