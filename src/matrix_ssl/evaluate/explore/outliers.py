"""Outliers: images that are far from their nearest neighbours."""

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.errors import check_whole
from matrix_ssl.evaluate.explore.inputs import Matrix
from matrix_ssl.evaluate.explore.neighbours import Neighbours, nearest


def outlier_scores(features: Matrix, *, k: int = 10) -> NDArray[np.float64]:
    """The mean cosine distance, 1 - similarity, of every image to its k nearest neighbours; higher is more unusual.

    Args:
        features: (n, d), finite.
        k: number of neighbours; if there are fewer other images, all are used. A group of at most k images that
            resemble only each other still has high scores.

    Returns:
        float64 (n,) in [0, 2].

    Raises:
        ConfigError: ``k`` is not an integer of at least 1.
        DataError: there are fewer than two images, or a value is not finite.

    Reference: Angiulli and Pizzuti, "Fast outlier detection in high dimensional spaces", PKDD 2002, definition 1, with
    the mean instead of the sum.
    """
    check_whole("k", k)
    return mean_distances(nearest(features, k=min(k, max(1, len(features) - 1))))


def mean_distances(neighbours: Neighbours) -> NDArray[np.float64]:
    """As ``outlier_scores``, from already known neighbours (n, k) of all images."""
    distances: NDArray[np.float64] = 1.0 - neighbours.similarities.astype(np.float64)
    return distances.mean(axis=1)
