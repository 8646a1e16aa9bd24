"""The nearest neighbours of images by cosine similarity of their features: exact, or approximate with known recall.

The exact search is that of the kNN protocol, ``probes.knn.nearest``, which compares every pair, in blocks.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from matrix_ssl.errors import ConfigError, DataError, check_whole, import_extra
from matrix_ssl.evaluate.explore.inputs import Matrix, as_features, unit_rows
from matrix_ssl.evaluate.map import nearest_neighbours
from matrix_ssl.evaluate.probes import knn

_LINKS = 32  # links per node of the HNSW graph, M in the paper
_CANDIDATES = 200  # candidates kept during search and construction, ef in the paper


class Neighbours(NamedTuple):
    """The k nearest images of each query, most similar first.

    Attributes:
        indices: int64 (m, k).
        similarities: float32 (m, k), cosines in [-1, 1].
    """

    indices: NDArray[np.int64]
    similarities: NDArray[np.float32]


def nearest(features: Matrix, queries: Matrix | None = None, *, k: int) -> Neighbours:
    """The k rows of ``features`` with the highest cosine similarity to each query, by exhaustive search.

    For equal similarities, the lower index comes first. Besides the features this needs one float32 copy of the
    queries, two (m, k) arrays and some megabytes for blocks of 2,048 by 2,048 pairs; features may be memory-mapped.

    Args:
        features: (n, d), finite; rows need not have length one. A row of zeros has similarity 0 with everything.
        queries: (m, d); None: the features themselves, excluding each one from its own neighbours.
        k: number of neighbours, at most n, or n - 1 without queries.

    Raises:
        ConfigError: ``k`` is not an integer of at least 1.
        DataError: there are fewer than k images, the widths differ, or a value is not finite.
    """
    check_whole("k", k)
    rows = as_features(features)
    if queries is None:
        indices, similarities = nearest_neighbours(rows, torch.arange(len(rows)), k=k)
    else:
        indices, similarities = knn.nearest(rows, _queries(queries, rows.shape[1]), k=k)
    return Neighbours(indices.cpu().numpy(), similarities.cpu().numpy())


def import_faiss() -> Any:
    """The library for approximate search; MissingExtra if it is not installed."""
    return import_extra("faiss", extra="search")


class ApproximateIndex:
    """An index that finds most of the nearest neighbours without comparing all pairs (extra ``search``).

    The graph of Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical
    navigable small world graphs", TPAMI 2020, as implemented in faiss. It takes about 4 (d + 64) bytes per image.

    Args:
        features: (n, d), finite.

    Raises:
        MissingExtra: faiss is not installed.
        DataError: the features are not such a matrix.
    """

    def __init__(self, features: Matrix):
        faiss = import_faiss()
        self._rows = unit_rows(features)
        self._index: Any = faiss.IndexHNSWFlat(self._rows.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = self._index.hnsw.efSearch = _CANDIDATES
        self._index.add(self._rows.numpy())

    def nearest(self, queries: Matrix, *, k: int) -> Neighbours:
        """Up to k rows with a high cosine similarity to each query (m, d); missing ones have index -1.

        Raises:
            ConfigError: ``k`` is not between 1 and the number of images.
        """
        units = unit_queries(queries, self._rows, k=k)
        self._index.hnsw.efSearch = max(_CANDIDATES, k)
        similarities, indices = self._index.search(units.numpy(), k)
        return Neighbours(indices.astype(np.int64), similarities.clip(-1.0, 1.0))


def recall(approximate: Neighbours, exact: Neighbours) -> float:
    """The mean share of the exact neighbours found among the approximate ones, in [0, 1]; both have the same shape.

    Raises:
        DataError: the shapes differ.
    """
    a, b = approximate.indices, exact.indices
    if a.shape != b.shape:
        raise DataError(f"Neighbours of shapes {a.shape} and {b.shape} cannot be compared: search for equal k.")
    return float(np.mean([np.isin(row, other).mean() for row, other in zip(b, a, strict=True)]))


def unit_queries(queries: Matrix, rows: torch.Tensor, *, k: int) -> torch.Tensor:
    """Queries to an index, normalised to length one.

    Raises:
        ConfigError: ``k`` is not between 1 and the number of rows.
        DataError: the widths differ, or a value is not finite.
    """
    check_whole("k", k)
    if not 1 <= k <= len(rows):
        raise ConfigError(f"k={k}: expected 1 to {len(rows)} neighbours, as many as there are images.")
    return unit_rows(_queries(queries, rows.shape[1]), "queries")


def _queries(queries: Matrix, width: int) -> torch.Tensor:
    rows = as_features(queries, "queries")
    if rows.shape[1] != width:
        raise DataError(f"The queries have {rows.shape[1]} features, the images {width}: use one encoder for both.")
    return rows
