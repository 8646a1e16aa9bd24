"""Products with the rows of a head in its own dtype, summed in float32 or better; the head is never copied whole.

A GPU multiplies in bfloat16 and accumulates in float32. Everywhere else, and for gradients in float16, where they would
underflow, one block of rows at a time is converted. The factors are the same, and so are the results, up to rounding.
"""

import inspect

import torch
from torch import Tensor

_ROWS = 8192  # rows of a half-precision head that are converted at a time
_HAS_OUT_DTYPE = "out_dtype" in (inspect.getdoc(torch.mm) or "")  # since PyTorch 2.8


def times_rows(x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """x @ rowsᵀ (n, vocabulary) in ``dtype``, of x (n, d) and rows (vocabulary, d)."""
    if rows.dtype == dtype:
        return x.to(dtype) @ rows.mT
    if _natively(x, rows, (torch.bfloat16, torch.float16)):
        return torch.mm(x, rows.mT, out_dtype=dtype)
    x, result = x.to(dtype), rows.new_empty(len(x), len(rows), dtype=dtype)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        torch.mm(x, rows[part].to(dtype).mT, out=result[:, part])
    return result


def times_columns(coefficients: Tensor, rows: Tensor) -> Tensor:
    """coefficients @ rows (n, d) in the dtype of the coefficients (n, vocabulary); rows (vocabulary, d)."""
    dtype = coefficients.dtype
    if rows.dtype == dtype:
        return coefficients @ rows
    if _natively(rows, rows, (torch.bfloat16,)):
        return torch.mm(coefficients.to(rows.dtype), rows, out_dtype=dtype)
    result = rows.new_zeros(len(coefficients), rows.shape[1], dtype=dtype)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        result.addmm_(coefficients[:, part], rows[part].to(dtype))
    return result


def add_outer(total: Tensor | None, coefficients: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """total + coefficientsᵀ @ x (vocabulary, d), of coefficients (n, vocabulary) and x (n, d); overwrites ``total``.

    ``total=None`` stands for zeros, which would be written only to be read. ``dtype`` is that of the head: if it is
    bfloat16, the factors are rounded to it on a GPU.
    """
    if not (coefficients.is_cuda and dtype == torch.bfloat16 and _HAS_OUT_DTYPE):
        x = x.to(coefficients.dtype)
        return coefficients.mT @ x if total is None else total.addmm_(coefficients.mT, x)
    x = x.to(dtype)
    if total is None:
        return torch.mm(coefficients.to(dtype).mT, x, out_dtype=coefficients.dtype)
    for start in range(0, len(total), _ROWS):
        part = slice(start, start + _ROWS)
        total[part] += torch.mm(coefficients[:, part].to(dtype).mT, x, out_dtype=total.dtype)
    return total


def _natively(x: Tensor, rows: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    return x.is_cuda and x.dtype == rows.dtype and rows.dtype in dtypes and _HAS_OUT_DTYPE
