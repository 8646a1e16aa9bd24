"""What the matrix functions ask of their arguments, and the sentences that say how far off an argument is.

Shapes are always checked. Values are checked where looking at them is free: on the CPU outside of ``torch.compile``.
Elsewhere a look would make the device wait or break the graph, so there it takes ``validate=True``; ``validate=False``
never looks.

``tolerance`` says how much counts as rounding, relative to the largest element (symmetry) or the largest eigenvalue
(positive semi-definiteness): 100 ε √d for float64 and float32, ε of the dtype that was passed, which leaves room for
the products a matrix was made by; ε √d for half precision, whose own rounding is all there is room for.
"""

import math

import torch
from torch import Tensor

from matrix_ssl.errors import (
    EmptyMatrixError,
    MatrixShapeError,
    MatrixTypeError,
    NotFiniteError,
    NotPositiveDefiniteError,
    NotPositiveSemidefiniteError,
    NotSquareError,
    NotSymmetricError,
)


def full_precision(x: Tensor) -> Tensor:
    """float64 as it is, everything else real in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which products keep the dtype of their factors."""
    return torch.autocast(x.device.type, enabled=False)


def looks_at_values(x: Tensor, validate: bool | None) -> bool:
    """Whether the values of ``x`` are to be checked."""
    if validate is None:
        return x.device.type == "cpu" and not torch.compiler.is_compiling()
    return validate


def tolerance(dtype: torch.dtype, d: int) -> float:
    """Relative deviation that counts as rounding in a d x d matrix of this dtype."""
    units = 100 if dtype in (torch.float32, torch.float64) else 1
    return units * torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps * math.sqrt(d)


def coarser(p: Tensor, q: Tensor) -> torch.dtype:
    """The dtype of the two with more rounding."""
    return max(p.dtype, q.dtype, key=lambda dtype: tolerance(dtype, 1))


def check_not_negative(value: float, name: str) -> None:
    """Raises ValueError unless the number is zero or above."""
    if not value >= 0:
        raise ValueError(f"{name} must be zero or above, got {value}")


def check_above_zero(value: float, name: str) -> None:
    """Raises ValueError unless the number is above zero."""
    if not value > 0:
        raise ValueError(f"{name} must be above zero, got {value}")


def matrix(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """A real, finite, not empty (..., m, n) in full precision."""
    if x.ndim < 2:
        raise MatrixShapeError(f"{_called(x, name)} has too few dimensions: expected a matrix (..., rows, columns).")
    if 0 in x.shape[-2:]:
        raise EmptyMatrixError(f"{_called(x, name)} is empty: at least one row and one column are needed.")
    if x.is_complex():
        raise MatrixTypeError(f"{_called(x, name)}, has complex elements, dtype {x.dtype}: pass real ones.")
    if looks_at_values(x, validate) and not torch.isfinite(x).all():
        bad = ~torch.isfinite(x)
        first = tuple(bad.nonzero()[0].tolist())
        raise NotFiniteError(
            f"{_called(x, name)}, holds {int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite of {x.numel()} "
            f"elements, the first at {first}: find the step that made them, often a division by zero or an overflow "
            f"of half precision."
        )
    return full_precision(x)


def symmetric(a: Tensor, name: str, validate: bool | None) -> Tensor:
    """The symmetric part of a (..., d, d) that is symmetric up to rounding, in full precision."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise NotSquareError(f"{_called(a, name)} is no square matrix: expected (..., d, d).")
    full = matrix(a, name, validate)
    if looks_at_values(a, validate) and a.numel():
        _check_symmetric(full, a, name)
    return (full + full.mT) / 2


def _check_symmetric(full: Tensor, a: Tensor, name: str) -> None:
    allowed = tolerance(a.dtype, a.shape[-1])
    off = (full - full.mT).abs().amax((-2, -1))
    relative = (off / full.abs().amax((-2, -1)).clamp_min(torch.finfo(full.dtype).tiny)).detach()
    if (relative > allowed).any():
        raise NotSymmetricError(
            f"{_called(a, name)}, is not symmetric: the largest |a - aᵀ| is {relative.max():.2g} of the largest "
            f"|a|{_place(relative.argmax(), relative)}; up to {allowed:.2g} counts as rounding. If only the symmetric "
            f"part is meant, pass ({name} + {name}.mT) / 2."
        )


def check_positive_semidefinite(eigenvalues: Tensor, a: Tensor, name: str, validate: bool | None) -> None:
    """Raises unless the eigenvalues (..., d), of ``a`` or of ``a`` plus a ridge, are zero or above up to rounding."""
    if not looks_at_values(a, validate) or not eigenvalues.numel():
        return
    allowed = tolerance(a.dtype, a.shape[-1])
    smallest, largest = eigenvalues.detach().amin(-1), eigenvalues.detach().abs().amax(-1)
    relative = smallest / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    if (relative < -allowed).any():
        raise NotPositiveSemidefiniteError(
            f"{_called(a, name)}, is not positive semi-definite{_extremes(relative, smallest, largest)}; down to "
            f"-{allowed:.2g} of the largest counts as rounding. Covariances and kernels are positive semi-definite, "
            f"cross-covariances and differences are not; a ridge= above {-smallest.min():.2g} lifts the "
            f"eigenvalues above zero."
        )


def check_purity(squared_norm: Tensor, trace: Tensor, a: Tensor, name: str, validate: bool | None) -> None:
    """Raises unless ‖A‖_F ≤ tr A up to rounding, as for every positive semi-definite matrix; takes (...) and (...)."""
    if not looks_at_values(a, validate) or not trace.numel():
        return
    norm, excess = squared_norm.detach().sqrt(), squared_norm.detach().sqrt() - trace.detach()
    relative = excess / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    if (relative > tolerance(a.dtype, a.shape[-1])).any():
        raise NotPositiveSemidefiniteError(
            f"{_called(a, name)}, is not positive semi-definite: tr A / ‖A‖_F is "
            f"{1 - relative.max():.3g}, below 1{_place(relative.argmax(), relative)}. Covariances and kernels are "
            f"positive semi-definite, cross-covariances and differences are not."
        )


def check_positive_definite(eigenvalues: Tensor, bad: Tensor, a: Tensor, name: str) -> None:
    """Raises where ``bad`` (...), with the eigenvalues (..., d) of ``a`` or of ``a`` plus a ridge in the text."""
    if not bad.any():
        return
    smallest, largest = eigenvalues.detach().amin(-1), eigenvalues.detach().abs().amax(-1)
    relative = smallest / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    relative = torch.where(bad, relative, torch.inf)
    raise NotPositiveDefiniteError(
        f"{_called(a, name)}, is not positive definite{_extremes(relative, smallest, largest)}, and the logarithm "
        f"needs all above zero by more than rounding. Pass ridge=, a number of the size of the smallest eigenvalue "
        f"that still matters."
    )


def check_same_width(p: Tensor, q: Tensor, names: str) -> None:
    """Raises unless the last dimensions agree and the leading ones can be broadcast."""
    fits = p.shape[-1] == q.shape[-1]
    fits &= all(m == n or 1 in (m, n) for m, n in zip(p.shape[-3::-1], q.shape[-3::-1], strict=False))
    if not fits:
        raise MatrixShapeError(
            f"{names} have the shapes {tuple(p.shape)} and {tuple(q.shape)}: the last dimensions have to agree and "
            f"the leading ones to agree or be 1."
        )


def _called(x: Tensor, name: str) -> str:
    return f"argument {name!r}, shape {tuple(x.shape)}"


def _extremes(relative: Tensor, smallest: Tensor, largest: Tensor) -> str:
    at = relative.argmin()
    low, high = smallest.flatten()[at], largest.flatten()[at]
    return f": its smallest eigenvalue is {low:.3g}, the largest in size {high:.3g}{_place(at, relative)}"


def _place(at: Tensor, values: Tensor) -> str:
    """Which matrix of a batch, as text; nothing for a single one."""
    index = tuple(int(i) for i in torch.unravel_index(at, values.shape)) if values.ndim else ()
    return f" (matrix {', '.join(map(str, index))} of the batch)" if index else ""
