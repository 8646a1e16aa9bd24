"""Checks of the matrix functions' arguments, with errors that say which argument is wrong and by how much.

Shapes are always checked. Values are checked where reading them is free, on the CPU outside of ``torch.compile``:
elsewhere reading would make the device wait or break the graph. ``validate`` overrides this.
"""

import math
from typing import Any

import torch
from torch import Tensor

from matrix_ssl import errors
from matrix_ssl.matrix.numerics.precision import full_precision


def looks_at_values(x: Tensor, validate: bool | None) -> bool:
    """Whether the values of ``x`` are checked."""
    if validate is None:
        return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_mapped(x)
    return validate


def is_mapped(x: Tensor) -> bool:
    """Whether ``torch.func.vmap`` batches a tensor: it then stands for many, and no branch can depend on its values.

    False while ``torch.compile`` traces, where this cannot be queried.
    """
    if torch.compiler.is_compiling():
        return False
    func = torch._C._functorch
    while func.is_functorch_wrapped_tensor(x):
        if func.is_batchedtensor(x):
            return True
        x = func.get_unwrapped(x)
    return False


def tolerance(dtype: torch.dtype, d: int) -> float:
    """What counts as rounding in a d x d matrix, relative to its largest element or eigenvalue.

    100 ε √d allows for the products that a matrix comes from; ε √d in half precision for its own rounding only.
    """
    units = 100 if dtype in (torch.float32, torch.float64) else 1
    return units * torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps * math.sqrt(d)


def coarser(p: Tensor, q: Tensor) -> torch.dtype:
    """The dtype of the two with more rounding."""
    return coarsest(p.dtype, q.dtype)


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype with the most rounding."""
    coarse = dtypes[0]
    for dtype in dtypes[1:]:
        coarse = dtype if tolerance(dtype, 1) > tolerance(coarse, 1) else coarse
    return coarse


def check_positive(**numbers: float) -> None:
    """Raises ValueError unless every number is finite and above zero."""
    for name, value in numbers.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above zero, got {value!r}.")


def check_not_negative(**numbers: float) -> None:
    """Raises ValueError unless every number is finite and zero or above."""
    for name, value in numbers.items():
        if not is_number(value) or not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number, zero or above, got {value!r}.")


def check_constant(**numbers: Any) -> None:
    """Raises ValueError where a number is a tensor with a recorded gradient, since it would get none or a wrong one."""
    for name, value in numbers.items():
        if torch.is_tensor(value) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} has no gradient here and cannot be learnt: pass {name}.detach() or a number.")


def check_ridge(ridge: float) -> None:
    """Raises ValueError unless the ridge is a constant, finite and zero or above."""
    check_constant(ridge=ridge)
    check_not_negative(ridge=ridge)


def check_entropy_order(order: float, name: str = "alpha") -> None:
    """Raises ValueError unless the order of a Rényi entropy is a constant, zero or above; infinity is an order."""
    check_constant(**{name: order})
    if not is_number(order) or not order >= 0:
        raise ValueError(f"{name} must be zero or above, got {order!r}.")


def is_number(value: object) -> bool:
    """Whether a value can be compared with numbers: not None, a string or a list."""
    return hasattr(value, "__float__")


def check_tensor(x: Any, name: str) -> None:
    """Raises unless ``x`` is a tensor whose elements are all stored."""
    if not torch.is_tensor(x):
        kind = type(x)
        hint = f"torch.from_numpy({name})" if kind.__module__ == "numpy" else "a torch.Tensor"
        raise errors.MatrixTypeError(
            f"Argument {name!r} is of type {kind.__module__}.{kind.__qualname__}: pass {hint}."
        )
    if x.layout != torch.strided:
        raise errors.MatrixTypeError(f"{label(x, name)} has the layout {x.layout}: pass {name}.to_dense().")


def check_real(x: Any, name: str) -> None:
    """Raises unless ``x`` is a tensor of real numbers, all of them stored."""
    check_tensor(x, name)
    if x.is_complex():
        raise errors.MatrixTypeError(f"{label(x, name)} has complex elements, dtype {x.dtype}: pass real ones.")


def check_representable(result: Tensor, x: Tensor, name: str, validate: bool | None, what: str = "squares") -> None:
    """Raises unless what was computed from a finite ``x`` is finite, too; ``what`` names its terms."""
    if looks_at_values(x, validate) and not torch.isfinite(result.detach().sum()) and not result.isfinite().all():
        raise errors.NotFiniteError(
            f"{label(x, name)} has values up to {float(x.detach().abs().max()):.3g}, whose {what} are beyond "
            f"{full_precision(result).dtype}: divide it by a constant, or pass float64."
        )


def checked_matrix(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """A real, finite, non-empty matrix (..., m, n) in full precision."""
    check_tensor(x, name)
    if x.ndim < 2:
        raise errors.MatrixShapeError(
            f"{label(x, name)} has too few dimensions: expected a matrix (..., rows, columns)."
        )
    if 0 in x.shape[-2:]:
        raise errors.EmptyMatrixError(f"{label(x, name)} is empty: at least one row and one column are needed.")
    return checked_real(x, name, validate)


def checked_real(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """A real, finite tensor of any shape in full precision."""
    check_real(x, name)
    # a finite sum has only finite terms, and is checked ten times as fast
    if looks_at_values(x, validate) and not torch.isfinite(x.detach().sum()) and not torch.isfinite(x).all():
        bad = ~torch.isfinite(x)
        first = tuple(bad.nonzero()[0].tolist())
        raise errors.NotFiniteError(
            f"{label(x, name)} is not finite: {int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite of "
            f"{x.numel()} elements, the first at {first}. Trace the operation that produced them, often a division by "
            f"zero or an overflow in half precision."
        )
    return full_precision(x)


def checked_not_negative(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """Real, finite numbers (..., k) in full precision, at least one, that are zero or above up to rounding."""
    check_tensor(x, name)
    if x.ndim < 1:
        raise errors.MatrixShapeError(f"{label(x, name)} has no dimension: expected (..., k).")
    if x.shape[-1] == 0:
        raise errors.EmptyMatrixError(f"{label(x, name)} is empty: at least one number is needed.")
    full = checked_real(x, name, validate)
    if looks_at_values(x, validate):
        allowed = tolerance(x.dtype, x.shape[-1])
        wrong = full < -allowed * full.amax(-1, keepdim=True).clamp_min(0)
        if wrong.any():
            first = tuple(wrong.nonzero()[0].tolist())
            raise errors.MatrixError(
                f"{label(x, name)} has {full[first].item():.3g} at {first}: expected numbers of zero or above; down to "
                f"-{allowed:.2g} of the largest counts as rounding."
            )
    return full


def checked_symmetric(a: Tensor, name: str, validate: bool | None) -> Tensor:
    """The symmetric part of a (..., d, d) that is symmetric up to rounding, in full precision."""
    check_tensor(a, name)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise errors.NotSquareError(f"{label(a, name)} is not square: expected (..., d, d).")
    full = checked_matrix(a, name, validate)
    if looks_at_values(a, validate) and a.numel():
        _check_symmetric(full, a, name)
    return (full + full.mT) / 2


def _check_symmetric(full: Tensor, a: Tensor, name: str) -> None:
    allowed = tolerance(a.dtype, a.shape[-1])
    off = (full - full.mT).abs().amax((-2, -1))
    relative = (off / full.abs().amax((-2, -1)).clamp_min(torch.finfo(full.dtype).tiny)).detach()
    if (relative > allowed).any():
        raise errors.NotSymmetricError(
            f"{label(a, name)} is not symmetric: the largest |a - aᵀ| is {relative.max():.2g} of the largest "
            f"|a|{place(relative.argmax(), relative)}; up to {allowed:.2g} counts as rounding. To use the symmetric "
            f"part only, pass ({name} + {name}.mT) / 2."
        )


def check_positive_semidefinite(eigenvalues: Tensor, a: Tensor, name: str, validate: bool | None) -> None:
    """Raises unless the eigenvalues (..., d), of ``a`` or of ``a`` plus a ridge, are zero or above up to rounding."""
    if not looks_at_values(a, validate) or not eigenvalues.numel():
        return
    allowed = tolerance(a.dtype, a.shape[-1])
    smallest, largest = eigenvalues.detach().amin(-1), eigenvalues.detach().abs().amax(-1)
    relative = smallest / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    if (relative < -allowed).any():
        raise errors.NotPositiveSemidefiniteError(
            f"{label(a, name)} is not positive semi-definite{_extremes(relative, smallest, largest)}; down to "
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
        raise errors.NotPositiveSemidefiniteError(
            f"{label(a, name)} is not positive semi-definite: tr A / ‖A‖_F is "
            f"{1 - relative.max():.3g}, below 1{place(relative.argmax(), relative)}. Covariances and kernels are "
            f"positive semi-definite, cross-covariances and differences are not."
        )


def check_positive_definite(eigenvalues: Tensor, bad: Tensor, a: Tensor, name: str) -> None:
    """Raises where ``bad`` (...) is true. The eigenvalues (..., d) are those of ``a``, or of ``a`` plus a ridge."""
    if not bad.any():
        return
    smallest, largest = eigenvalues.detach().amin(-1), eigenvalues.detach().abs().amax(-1)
    relative = smallest / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    relative = torch.where(bad, relative, torch.inf)
    raise errors.NotPositiveDefiniteError(
        f"{label(a, name)} is not positive definite{_extremes(relative, smallest, largest)}. The logarithm needs all "
        f"eigenvalues above zero by more than rounding: pass ridge=, of the size of the smallest eigenvalue that still "
        f"matters."
    )


def check_same_width(p: Tensor, q: Tensor, names: str) -> None:
    """Raises unless the last dimensions agree and the leading ones can be broadcast."""
    if p.shape[-1] != q.shape[-1] or not leading_fit(p, q):
        raise errors.MatrixShapeError(
            f"Arguments {names} have the shapes {tuple(p.shape)} and {tuple(q.shape)}: the last dimensions must agree, "
            f"and the leading ones must agree or be 1."
        )


def leading_fit(p: Tensor, q: Tensor) -> bool:
    """Whether the dimensions before the last two can be broadcast."""
    return all(m == n or 1 in (m, n) for m, n in zip(p.shape[-3::-1], q.shape[-3::-1], strict=False))


def label(x: Tensor, name: str) -> str:
    """The argument and its shape, as errors begin."""
    return f"Argument {name!r} (shape {tuple(x.shape)})"


def _extremes(relative: Tensor, smallest: Tensor, largest: Tensor) -> str:
    at = relative.argmin()
    low, high = smallest.flatten()[at], largest.flatten()[at]
    return f": the smallest eigenvalue is {low:.3g}, the largest in magnitude {high:.3g}{place(at, relative)}"


def place(at: Tensor, values: Tensor) -> str:
    """Which matrix of a batch, as text; empty for a single matrix."""
    index = tuple(int(i) for i in torch.unravel_index(at, values.shape)) if values.ndim else ()
    return f" (matrix {', '.join(map(str, index))} of the batch)" if index else ""
