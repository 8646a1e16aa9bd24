"""Every representation against every other: matrices of CKA and RSA, with each kernel computed once.

For n samples, L representations of x and M of y, the squared norms ‖XᵢᵀYⱼ‖²_F of all pairs, from which linear CKA
follows, are inner products ⟨Kᵢ, Lⱼ⟩ of Gram matrices. These are computed one block of rows at a time, all L + M once,
so memory does not grow with n². Where there are few features, n d_i e_j is less work, and the products of pairs are
computed directly. ``CKAStatistics`` adds up the unbiased HSIC of batches, for samples that do not fit in memory.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from matrix_ssl.errors import MatrixShapeError
from matrix_ssl.matrix.comparison import alignment, similarity_analysis
from matrix_ssl.matrix.comparison.rows import named_representations, scaled_rows
from matrix_ssl.matrix.numerics import validation
from matrix_ssl.matrix.numerics.linalg import product
from matrix_ssl.matrix.numerics.precision import full_precision, without_autocast
from matrix_ssl.matrix.numerics.scaling import deviations, largest_element

_BLOCK = 1 << 22  # elements of a block of rows of the Gram matrices, over all representations


class Sums(NamedTuple):
    """HSIC up to a common factor, of all pairs (..., L, M) and of each with itself, (..., L) and (..., M)."""

    pairs: Tensor
    first: Tensor
    second: Tensor


def linear_cka_matrix(
    xs: Sequence[Tensor], ys: Sequence[Tensor] | None = None, *, estimator: alignment.Estimator = "biased",
    validate: bool | None = None,
) -> Tensor:  # fmt: skip
    """``linear_cka`` of every representation in ``xs`` with every one in ``ys``: (..., L, M).

    Use it for layers of two networks, checkpoints of a run, or image and text encoders; widths may differ. Each kernel
    is computed once. Prefer the unbiased estimator where widths differ: the bias grows with the width.

    Args:
        xs: L representations (..., n, dᵢ).
        ys: M representations (..., n, eⱼ) of the same samples; by default ``xs``, which gives a symmetric matrix.
        estimator: ``"biased"`` or ``"unbiased"``, as in ``linear_cka``.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: as in ``linear_cka``; the errors name ``xs[i]`` or ``ys[j]``.
        ValueError: there is no representation, or the estimator is unknown.

    Reference: Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414; Nguyen, Raghu and Kornblith, ICLR 2021,
        https://arxiv.org/abs/2010.15327: layers against layers, unbiased.
    """
    first, second = named_representations(xs, ys)
    name, x = next(iter(first.items()))
    alignment.check_estimator(estimator, x, name)
    rows = _in_one_dtype([scaled_rows(x, name, validate) for name, x in (first | second).items()])
    return _alignment(_sums(rows[: len(first)], rows[len(first) :], estimator))


def rsa_matrix(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None = None,
    *,
    dissimilarity: similarity_analysis.Dissimilarity = "correlation",
    correlation: similarity_analysis.Correlation = "spearman",
    validate: bool | None = None,
) -> Tensor:
    """``rsa`` of every representation in ``xs`` with every one in ``ys``: (..., L, M).

    The n (n - 1) / 2 dissimilarities of each are computed and ranked once. Arguments are those of ``linear_cka_matrix``
    and ``rsa``; errors are those of ``rsa``, and a ValueError if there is no representation.
    """
    first, second = named_representations(xs, ys)
    of_all = [
        similarity_analysis.profile(x, name, dissimilarity, correlation, validate)
        for name, x in (first | second).items()
    ]
    p = torch.stack(torch.broadcast_tensors(*of_all), -2)
    with without_autocast(p):
        values = p[..., : len(first), :] @ p[..., -len(second) or None :, :].mT if second else p @ p.mT
    return values.to(functools.reduce(torch.promote_types, (full_precision(x).dtype for x in (*xs, *(ys or ())))))


class CKAStatistics:
    """The unbiased ``linear_cka_matrix`` of a stream of samples, mergeable across processes.

    Adds up the unbiased HSIC of every batch. Each is on average that of the whole distribution, so batches have to be
    drawn at random: a batch from one class measures that class. The batch size affects the values only through noise; a
    few hundred samples per batch are enough. The state has L M + L + M numbers.

    Args:
        first: L, the number of representations of x.
        second: M, that of y; None compares x with itself.

    Reference: Nguyen, Raghu and Kornblith, ICLR 2021, https://arxiv.org/abs/2010.15327, equation 2: minibatch CKA.
    """

    def __init__(self, first: int, second: int | None = None):
        if first < 1 or (second is not None and second < 1):
            raise MatrixShapeError(f"{first} and {second} representations: there must be at least one of each.")
        self._first, self._second = first, second
        columns = first if second is None else second
        self._sums = Sums(*(torch.zeros(shape, dtype=torch.float64) for shape in ((first, columns), first, columns)))
        self.count = 0

    def add(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None = None, *, validate: bool | None = None) -> None:
        """Adds a batch of samples, without gradient.

        Args:
            xs: L representations (m, dᵢ), m ≥ 4.
            ys: M representations (m, eⱼ) of the same samples; None where x is compared with itself.
            validate: see ``matrix_ssl.matrix``.

        Raises:
            MatrixError: the numbers of representations or samples do not fit, or an element is not finite; in that case
                nothing is added.
        """
        if (len(xs), None if ys is None else len(ys)) != (self._first, self._second):
            raise MatrixShapeError(
                f"{len(xs)} and {None if ys is None else len(ys)} representations were passed, {self._first} and "
                f"{self._second} were announced."
            )
        first, second = named_representations(xs, ys)
        for name, x in (first | second).items():
            if x.ndim != 2:
                raise MatrixShapeError(f"Argument {name!r} has the shape {tuple(x.shape)}: expected (samples, width).")
        alignment.check_estimator("unbiased", xs[0], "xs[0]")
        with torch.no_grad():  # batches must share one scale, which the range of float64 allows
            rows = [_centred(x, name, validate) for name, x in (first | second).items()]
            new = _sums(rows[: len(first)], rows[len(first) :], "unbiased")
        self._sums = Sums(*(old + one.cpu() for old, one in zip(self._sums, new, strict=True)))
        self.count += len(xs[0])

    def matrix(self) -> Tensor:
        """CKA (L, M) in float64 of all samples so far; zeros without any."""
        return _alignment(self._sums)

    def merge(self, other: "CKAStatistics") -> None:
        """Adds the samples of another state with as many representations, which is left unchanged."""
        if (other._first, other._second) != (self._first, self._second):
            raise MatrixShapeError(
                f"States of {self._first} and {self._second} and of {other._first} and {other._second} representations "
                f"cannot be merged."
            )
        self._sums = Sums(*(own + theirs for own, theirs in zip(self._sums, other._sums, strict=True)))
        self.count += other.count

    def packed(self) -> Tensor:
        """The state as one float64 tensor that can be sent, saved and passed to ``merge_packed``."""
        return torch.cat([torch.tensor([self.count], dtype=torch.float64), *(one.flatten() for one in self._sums)])

    def merge_packed(self, packed: Tensor) -> None:
        """``merge`` with a ``packed`` state of as many representations."""
        other, parts = self.empty(), packed[1:].cpu().split([one.numel() for one in self._sums])
        other.count = int(packed[0])
        other._sums = Sums(*(part.view_as(one) for part, one in zip(parts, self._sums, strict=True)))
        self.merge(other)

    def empty(self) -> "CKAStatistics":
        """A state with as many representations and no samples."""
        return CKAStatistics(self._first, self._second)


def _in_one_dtype(rows: Sequence[Tensor]) -> list[Tensor]:
    dtype = functools.reduce(torch.promote_types, (one.dtype for one in rows))
    return [one.to(dtype) for one in rows]


def _centred(x: Tensor, name: str, validate: bool | None) -> Tensor:
    """Rows about their mean in float64, exactly zero where they are constant."""
    full = validation.checked_matrix(x, name, validate).double()
    rows = deviations(full)
    constant = largest_element(rows) <= 16 * torch.finfo(full.dtype).eps * largest_element(full)
    return torch.where(constant, 0.0, rows)


def _sums(x: Sequence[Tensor], y: Sequence[Tensor], estimator: alignment.Estimator) -> Sums:
    """The sums for centred rows; without y, x is compared with itself."""
    n = x[0].shape[-2]
    with without_autocast(x[0]):
        by_kernels = n * (sum(z.shape[-1] for z in (*x, *y)) + len(x) * len(y or x))
        by_columns = sum(z.shape[-1] for z in x) * sum(z.shape[-1] for z in y or x)
        compute = _from_kernels if by_kernels < by_columns else _from_columns
        pairs, of_x, of_y = compute(x, y)
        if estimator == "biased":
            return Sums(pairs, of_x, of_y)
        p, q = (torch.stack(torch.broadcast_tensors(*(z.square().sum(-1) for z in one)), -2) for one in (x, y or x))
        # p and q are the diagonals of the kernels and, up to the sign, the sums of the other elements of each row
        a, b = p.sum(-1), q.sum(-1)
        return Sums(
            alignment.unbiased(pairs - p @ q.mT, p @ q.mT, a.unsqueeze(-1) * b.unsqueeze(-2), n),
            alignment.unbiased(of_x - p.square().sum(-1), p.square().sum(-1), a.square(), n),
            alignment.unbiased(of_y - q.square().sum(-1), q.square().sum(-1), b.square(), n),
        )


def _from_kernels(x: Sequence[Tensor], y: Sequence[Tensor]) -> Sums:
    """⟨Kᵢ, Lⱼ⟩ from blocks of rows of all kernels, half of each because they are symmetric."""
    n = x[0].shape[-2]
    size = max(1, _BLOCK // (n * (len(x) + len(y))))
    pairs = of_x = of_y = x[0].new_zeros(())
    for start in range(0, n, size):
        k = _block(x, start, size)
        l = _block(y, start, size) if y else k  # noqa: E741
        weight = torch.where(torch.arange(start, n, device=k.device) < start + size, 1.0, 2.0).to(k.dtype)
        weighted = k * weight
        pairs = pairs + weighted.flatten(-2) @ l.flatten(-2).mT
        of_x = of_x + (weighted * k).sum((-2, -1))
        of_y = of_y + (l.square() * weight).sum((-2, -1)) if y else of_x
    return Sums(pairs, of_x, of_y)


def _block(rows: Sequence[Tensor], start: int, size: int) -> Tensor:
    """Rows from ``start`` of the kernels, without the columns before it: (..., L, size, n - start)."""
    return torch.stack(
        torch.broadcast_tensors(*(z[..., start : start + size, :] @ z[..., start:, :].mT for z in rows)), -3
    )


def _from_columns(x: Sequence[Tensor], y: Sequence[Tensor]) -> Sums:
    """‖XᵢᵀYⱼ‖²_F from the products of all pairs."""
    of_x = _stacked([_squared(z, z) for z in x])
    if y:
        pairs = [_stacked([_squared(a, b) for b in y]) for a in x]
        return Sums(torch.stack(torch.broadcast_tensors(*pairs), -2), of_x, _stacked([_squared(z, z) for z in y]))
    values = {(i, j): _squared(x[i], x[j]) for i in range(len(x)) for j in range(i)}
    pairs = [
        _stacked([of_x[..., i] if i == j else values[max(i, j), min(i, j)] for j in range(len(x))])
        for i in range(len(x))
    ]
    return Sums(torch.stack(pairs, -2), of_x, of_x)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*values), -1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (product(a) if a is b else a.mT @ b).square().sum((-2, -1))


def _alignment(sums: Sums) -> Tensor:
    return alignment.cosine(sums.pairs, sums.first.unsqueeze(-1), sums.second.unsqueeze(-2))
