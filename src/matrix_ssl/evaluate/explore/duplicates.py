"""Groups of near-duplicate images, connected by similarities above a threshold."""

from collections.abc import Iterator
from numbers import Real

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.explore.inputs import Matrix, unit_rows

THRESHOLD = 0.9  # above 0.86, the best on planted copies: benchmarks/experiments/find.py
_BLOCK = 2048  # rows compared at a time


def near_duplicates(features: Matrix, *, threshold: float = THRESHOLD) -> list[NDArray[np.int64]]:
    """Groups of images that are connected by pairs with a cosine similarity of at least ``threshold``.

    Two images of a group may be less similar than that if they are connected through others. All pairs are compared, in
    blocks; memory does not grow with the number of pairs.

    Args:
        features: (n, d), finite.
        threshold: in (-1, 1].

    Returns:
        Increasing indices of each group of two or more, int64. The largest groups come first and, among groups of equal
        size, the one with the lowest index.

    Raises:
        ConfigError: the threshold is out of range.
        DataError: a value is not finite.
    """
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    check_threshold(threshold)
    rows = unit_rows(features)
    groups = np.arange(len(rows))
    for first, second in _pairs(rows, threshold):
        ends = groups[first], groups[second]
        graph = coo_array((np.ones(len(first), dtype=bool), ends), shape=(len(rows), len(rows)))
        groups = connected_components(graph, directed=False)[1][groups]
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return sorted((group for group in members if len(group) > 1), key=lambda group: (-len(group), int(group[0])))


def check_threshold(threshold: float) -> None:
    """Raises ConfigError unless it is in (-1, 1]."""
    if not isinstance(threshold, Real) or not -1.0 < threshold <= 1.0:
        raise ConfigError(f"threshold={threshold!r}: expected a cosine similarity above -1 and at most 1.")


def _pairs(rows: Tensor, threshold: float) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indices of pairs i < j above the threshold, block by block; blocks without any are skipped."""
    bound = threshold - 1e-6  # equal images have a product of one, up to rounding
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for other in range(start, len(rows), _BLOCK):
            close = block @ rows[other : other + _BLOCK].T >= bound
            if other == start:
                close = close.triu(1)
            i, j = torch.nonzero(close, as_tuple=True)
            if len(i):
                yield i.cpu().numpy() + start, j.cpu().numpy() + other
