"""Clusters of images, with representative images of each."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.data.randomness import permutation, short_seed
from matrix_ssl.errors import ConfigError, check_whole
from matrix_ssl.evaluate.explore.inputs import Matrix, check_seed, unit_rows

REPRESENTATIVES = 9  # per cluster
_SAMPLE = 2000  # maximum number of images on which the number of clusters is chosen
_COUNTS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 50)
_STREAM = 0xC1A5  # random stream that samples them


class Clusters(NamedTuple):
    """A cluster for every image.

    Attributes:
        assignments: int64 (n,), the cluster of every image, numbered from 0 (the largest); -1 for no cluster.
        representatives: for every cluster, the indices of up to nine of its images, int64, the most central first.
    """

    assignments: NDArray[np.int64]
    representatives: list[NDArray[np.int64]]


def cluster(features: Matrix, *, count: int | None = None, seed: int = 0) -> Clusters:
    """Clusters the features, normalised to length one, with k-means.

    Without a count, the number between 2 and 50 with the highest mean silhouette on at most 2,000 images is used.

    Args:
        features: (n, d), finite.
        count: number of clusters, from 1 to n; None: chosen by the silhouette.
        seed: random seed for the initial centres and for the images on which the number is chosen.

    Raises:
        ConfigError: the count is not between 1 and n, or the seed not between 0 and 2⁶³ - 1.
        DataError: a value is not finite.

    Reference: Lloyd, IEEE Transactions on Information Theory 1982; Arthur and Vassilvitskii, SODA 2007 (k-means++);
    Rousseeuw, Journal of Computational and Applied Mathematics 1987 (silhouette).
    """
    from sklearn.cluster import KMeans  # slow to import

    check_seed(seed)
    rows = unit_rows(features).cpu().numpy()
    if count is None:
        count = choose_count(rows[np.sort(permutation(len(rows), seed, _STREAM)[:_SAMPLE])], seed=seed)
    check_count(count, len(rows))
    with _quiet():
        fitted = KMeans(count, n_init=1, random_state=short_seed(seed)).fit(rows)
    distances = np.linalg.norm(rows - fitted.cluster_centers_[fitted.labels_], axis=1)
    return in_order(fitted.labels_, distances)


def check_count(count: int, images: int, *, name: str = "count") -> None:
    """Raises ConfigError, naming the argument, unless the number of clusters is between 1 and that of the images."""
    check_whole(name, count)
    if not 1 <= count <= images:
        raise ConfigError(f"{name}={count}: expected 1 to {images} clusters, as many as there are images.")


def dense_clusters(features: Matrix, *, smallest: int = 10) -> Clusters:
    """Clusters the features, normalised to length one, with HDBSCAN; images outside dense regions have no cluster, -1.

    All pairs are compared, so this is suitable for up to some ten thousand images.

    Args:
        features: (n, d), finite.
        smallest: minimum number of images in a cluster, at least 2.

    Raises:
        ConfigError: ``smallest`` is below 2 or above n.
        DataError: a value is not finite.

    Reference: Campello, Moulavi and Sander, "Density-based clustering based on hierarchical density estimates", PAKDD
    2013.
    """
    from sklearn.cluster import HDBSCAN  # slow to import

    rows = unit_rows(features).cpu().numpy()
    check_whole("smallest", smallest)
    if not 2 <= smallest <= len(rows):
        raise ConfigError(f"smallest={smallest}: expected 2 to {len(rows)} images of a cluster.")
    fitted = HDBSCAN(min_cluster_size=smallest, copy=True).fit(rows)
    return in_order(fitted.labels_, 1.0 - fitted.probabilities_)


def choose_count(rows: NDArray[np.float32], *, seed: int = 0) -> int:
    """The number of clusters of k-means with the highest mean silhouette; 1 for fewer than three different rows."""
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.metrics import silhouette_score

    different = len(np.unique(rows, axis=0))
    scores = {}
    for count in (count for count in _COUNTS if count < different):
        with _quiet():
            labels = KMeans(count, n_init=1, random_state=short_seed(seed)).fit_predict(rows)
        if 1 < len(np.unique(labels)) < len(rows):  # features that differ only in their last bits share a cluster
            scores[count] = silhouette_score(rows, labels)
    return max(scores, key=lambda count: scores[count], default=1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses scikit-learn's warning that fewer distinct clusters than requested were found."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def in_order(labels: NDArray[np.integer], distances: NDArray[np.floating]) -> Clusters:
    """Clusters numbered by size, with the images with the smallest ``distances`` (n,) as representatives; -1 stays."""
    names, sizes = np.unique(labels[labels >= 0], return_counts=True)
    assignments = np.full(len(labels), -1, dtype=np.int64)
    representatives = []
    for new, old in enumerate(names[np.argsort(-sizes, kind="stable")]):
        members = np.flatnonzero(labels == old)
        assignments[members] = new
        representatives.append(members[np.argsort(distances[members], kind="stable")[:REPRESENTATIVES]])
    return Clusters(assignments, representatives)
