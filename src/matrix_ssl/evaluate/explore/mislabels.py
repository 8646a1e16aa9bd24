"""Images whose label is probably wrong, by confident learning."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.explore.inputs import Matrix, as_features, as_labels
from matrix_ssl.evaluate.explore.neighbours import Neighbours, nearest

VOTERS = 20  # neighbours of an image
_TEMPERATURE = 0.07  # of the votes, that of the kNN protocol


class LabelIssues(NamedTuple):
    """Images whose label is probably wrong, the most suspicious first.

    Attributes:
        indices: int64 (m,).
        suggested: int64 (m,), the label that each should have.
        confidence: float64 (m,), the out-of-fold probability of the suggested label, in [0, 1].
    """

    indices: NDArray[np.int64]
    suggested: NDArray[np.int64]
    confidence: NDArray[np.float64]


def label_issues(features: Matrix, labels: ArrayLike, *, seed: int = 0) -> LabelIssues:
    """Images that confident learning counts for a label other than their own, by the votes of their neighbours.

    Args:
        features: (n, d), finite.
        labels: integers (n,) from 0.
        seed: of the folds.

    Raises:
        DataError: features or labels cannot be used, or all labels are the same.

    Reference: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021,
    equations 1 to 3 and section 3.2.
    """
    rows = as_features(features)
    return confident_learning(neighbour_probabilities(rows.cpu().numpy(), labels), labels)


def neighbour_probabilities(features: Matrix, labels: ArrayLike) -> NDArray[np.float64]:
    """The weighted votes of the 20 nearest other images for each label, (n, classes): no image votes for itself."""
    return votes(nearest(features, k=min(VOTERS, len(features) - 1)), labels)


def votes(neighbours: Neighbours, labels: ArrayLike) -> NDArray[np.float64]:
    """The same from the neighbours (n, k) of all images, where they are known."""
    y = as_labels(labels, len(neighbours.indices))
    weights = np.exp((neighbours.similarities.astype(np.float64) - 1.0) / _TEMPERATURE)
    sums = torch.zeros(len(y), int(y.max()) + 1, dtype=torch.float64)
    sums.scatter_add_(1, torch.from_numpy(y[neighbours.indices]), torch.from_numpy(weights))
    return (sums / sums.sum(dim=1, keepdim=True)).numpy()


def confident_learning(probabilities: NDArray[np.floating], labels: ArrayLike) -> LabelIssues:
    """The off-diagonal images of the confident joint, those with the smallest margin of their own label first.

    An image counts for class j if its probability of j is at least t_j, the mean probability of j over the images that
    are labelled j; of several such classes for the most probable.

    Args:
        probabilities: (n, classes), out of fold: of models that have not seen the image's own label.
        labels: integers (n,) from 0 to classes - 1.
    """
    y = as_labels(labels, len(probabilities))
    classes = np.unique(y)
    if len(classes) < 2:
        raise DataError("All images have one label: wrong labels need at least two classes.")
    thresholds = np.full(probabilities.shape[1], np.inf)
    thresholds[classes] = [probabilities[y == label, label].mean() for label in classes]
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    issues = np.flatnonzero((confident.max(axis=1) >= 0) & (suggested != y))
    margins = probabilities[issues, y[issues]] - probabilities[issues, suggested[issues]]
    order = issues[np.argsort(margins, kind="stable")]
    return LabelIssues(order, suggested[order], probabilities[order, suggested[order]].astype(np.float64))
