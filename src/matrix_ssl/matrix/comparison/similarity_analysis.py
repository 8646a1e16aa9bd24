"""Representational similarity analysis (RSA): the correlation of two dissimilarity matrices."""

from typing import Any, Literal

import torch
from torch import Tensor

from matrix_ssl.matrix.kernels.pairwise import square_root, squared_distances
from matrix_ssl.matrix.numerics import kernel_checks, validation
from matrix_ssl.matrix.numerics.autograd import Parts, differentiable
from matrix_ssl.matrix.numerics.precision import full_precision, without_autocast
from matrix_ssl.matrix.numerics.scaling import unit_length

Dissimilarity = Literal["correlation", "cosine", "euclidean", "squared_euclidean"]
Correlation = Literal["pearson", "spearman", "cosine"]


def rsa(
    x: Tensor,
    y: Tensor,
    *,
    dissimilarity: Dissimilarity = "correlation",
    correlation: Correlation = "spearman",
    validate: bool | None = None,
) -> Tensor:
    """Correlation of the dissimilarities of all pairs of samples in x and in y: (...), from -1 to 1.

    Every pair of different samples counts once. The value is 0 where all dissimilarities are equal. Spearman's
    correlation, of ranks with ties averaged, has no gradient, and a backward pass is an error; the others can be
    differentiated any number of times, with the Euclidean distance except where samples are equal.

    Computed in float64. Dissimilarities count as equal up to 16 ε √d, with the ε of float64; squared distances, of
    which Euclidean distances are the roots, up to that times the squared distances of the two samples from the mean.
    float32 features carry the error of their own rounding.

    Args:
        x: (..., n, d).
        y: (..., n, e), of the same samples, three or more.
        dissimilarity: of two rows: ``"correlation"``, one minus Pearson's across the columns; ``"cosine"``, one minus
            the cosine; ``"euclidean"``; ``"squared_euclidean"``.
        correlation: ``"spearman"``, ``"pearson"`` or ``"cosine"``, which is Pearson's without centring.
        validate: see ``matrix_ssl.matrix``.

    Raises:
        MatrixError: an argument is not a matrix, empty, or not finite; the numbers of rows differ or are below three;
            or a row has no direction: length zero for the cosine, all columns equal for the correlation.
        ValueError: the dissimilarity or correlation is unknown.

    Reference: Kriegeskorte, Mur and Bandettini, "Representational similarity analysis: connecting the branches of
        systems neuroscience", Frontiers in Systems Neuroscience 2:4, 2008.
    """
    p = profile(x, "x", dissimilarity, correlation, validate)
    kernel_checks.check_same_samples(x, y, "x and y")
    value = (p * profile(y, "y", dissimilarity, correlation, validate)).sum(-1)
    return value.to(torch.promote_types(full_precision(x).dtype, full_precision(y).dtype))


def profile(
    x: Tensor, name: str, dissimilarity: Dissimilarity, correlation: Correlation, validate: bool | None
) -> Tensor:
    """The unit vector that is correlated: the dissimilarities of all pairs of samples, centred or ranked: (..., pairs).

    In float64; zeros where they are equal up to rounding, or all zero for the cosine.
    """
    rows, n = validation.checked_matrix(x, name, validate).double(), x.shape[-2]
    kernel_checks.check_sample_count(n, 3, x, name, "a correlation of pairs")
    if correlation not in ("spearman", "pearson", "cosine"):
        raise ValueError(f"correlation must be 'spearman', 'pearson' or 'cosine', got {correlation!r}.")
    i, j = torch.triu_indices(n, n, 1, device=x.device)
    values, level = _dissimilarities(rows, x, name, dissimilarity, validate)
    p, level = values[..., i, j], level[..., i, j]
    least = 0.0 if correlation == "cosine" else p.amin(-1, keepdim=True)
    differs = p.amax(-1, keepdim=True) - least > level.amax(-1, keepdim=True)
    if correlation == "spearman":
        p = average_ranks(p, level)
    elif dissimilarity == "euclidean":
        p = square_root(torch.where(p > level, p, 0.0))
    return _unit(p if correlation == "cosine" else p - p.mean(-1, keepdim=True), differs)


def _dissimilarities(
    rows: Tensor, x: Tensor, name: str, kind: Dissimilarity, validate: bool | None
) -> tuple[Tensor, Tensor]:
    """Dissimilarities (..., n, n), squared for both distances, and how much of them is rounding."""
    rounding = 16 * torch.finfo(rows.dtype).eps * rows.shape[-1] ** 0.5
    if kind in ("correlation", "cosine"):
        if kind == "correlation":
            rows = rows - rows.mean(-1, keepdim=True)
        kernel_checks.check_rows(rows, x, name, validate)
        rows = unit_length(rows)
        with without_autocast(rows):
            cosines = rows @ rows.mT
        validation.check_representable(cosines, x, name, validate, "sums")
        return 1 - cosines, torch.full_like(cosines, rounding)
    if kind not in ("euclidean", "squared_euclidean"):
        raise ValueError(
            f"dissimilarity must be 'correlation', 'cosine', 'euclidean' or 'squared_euclidean', got {kind!r}."
        )
    squares = squared_distances(rows)
    validation.check_representable(squares, x, name, validate)
    lengths = (rows - rows.mean(-2, keepdim=True)).detach().square().sum(-1)
    return squares, rounding * (lengths.unsqueeze(-1) + lengths.unsqueeze(-2))


def _unit(x: Tensor, differs: Tensor) -> Tensor:
    """x over its length; zeros unless it ``differs`` from values without a correlation."""
    x = torch.where(differs, x, 0.0)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(length > 0, x / torch.where(length > 0, length, 1.0), 0.0)


class AverageRanks(Parts):
    """Ranks from 1 along the last dimension, with the mean rank for values that follow one another within ``level``."""

    @staticmethod
    def forward(x: Tensor, level: Tensor) -> Tensor:
        order, index = x.sort(dim=-1)
        level = level.gather(-1, index)
        differs = order.diff(dim=-1) > torch.maximum(level[..., 1:], level[..., :-1])
        tie = torch.cat([torch.zeros_like(index[..., :1]), differs.cumsum(-1)], -1)
        below, up_to = torch.searchsorted(tie, tie), torch.searchsorted(tie, tie, right=True)
        return torch.zeros_like(x).scatter(-1, index, (below + up_to + 1).to(x.dtype) / 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("Ranks have no gradient: choose correlation='pearson' instead of 'spearman'.")


average_ranks = differentiable(AverageRanks)
