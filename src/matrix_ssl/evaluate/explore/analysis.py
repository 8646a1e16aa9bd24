"""Everything that the explore page reports about features, from a single neighbour search."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.evaluate.explore.clusters import Clusters, cluster
from matrix_ssl.evaluate.explore.duplicates import THRESHOLD, near_duplicates
from matrix_ssl.evaluate.explore.inputs import Matrix
from matrix_ssl.evaluate.explore.mislabels import VOTERS, LabelIssues, confident_learning, votes
from matrix_ssl.evaluate.explore.neighbours import Neighbours, nearest
from matrix_ssl.evaluate.explore.outliers import mean_distances

_SCORED_BY = 10  # neighbours that determine the outlier score of an image


@dataclass(frozen=True)
class Analysis:
    """The analysis of the features of n images.

    Attributes:
        neighbours: up to 20 neighbours of every image.
        duplicates: groups of near-duplicates, as ``near_duplicates`` returns them.
        clusters: as ``cluster`` returns them.
        outlier_scores: float64 (n,), as ``outlier_scores`` returns them.
        confidence: float64 (n,), the share of each image's votes that are for its own label; None without labels.
        issues: as ``label_issues`` returns them; None without labels.
    """

    neighbours: Neighbours
    duplicates: list[NDArray[np.int64]]
    clusters: Clusters
    outlier_scores: NDArray[np.float64]
    confidence: NDArray[np.float64] | None
    issues: LabelIssues | None


def analyse(
    features: Matrix,
    labels: NDArray[np.int64] | None = None,
    *,
    clusters: int | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> Analysis:
    """Finds neighbours, duplicates, clusters and outliers of features (n, d) and, given labels (n,), suspicious ones.

    If all labels are the same, or some images have none (-1), the images are treated as unlabelled.

    Args:
        clusters: number of clusters; None: chosen by ``cluster``.
        threshold: similarity threshold of near-duplicates.
        seed: random seed of the clusters.

    Raises:
        ConfigError: the threshold or the number of clusters is out of range.
        DataError: there are fewer than two images, or a value is not finite.
    """
    near = nearest(features, k=max(1, min(VOTERS, len(features) - 1)))
    confidence = issues = None
    if labels is not None and labels.min() >= 0 and labels.min() < labels.max():
        probabilities = votes(near, labels)
        confidence = probabilities[np.arange(len(labels)), labels]
        issues = confident_learning(probabilities, labels)
    closest = Neighbours(near.indices[:, :_SCORED_BY], near.similarities[:, :_SCORED_BY])
    return Analysis(
        neighbours=near,
        duplicates=near_duplicates(features, threshold=threshold),
        clusters=cluster(features, count=clusters, seed=seed),
        outlier_scores=mean_distances(closest),
        confidence=confidence,
        issues=issues,
    )
