"""Images whose label is probably wrong, by confident learning."""

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import DataError, check_known
from matrix_ssl.evaluate.explore.inputs import Matrix, as_features, as_labels, check_seed
from matrix_ssl.evaluate.explore.neighbours import Neighbours, nearest
from matrix_ssl.evaluate.probes.linear import fit_path

VOTERS = 20  # neighbours that vote on an image's label
_TEMPERATURE = 0.07  # of the votes, the same as in the kNN protocol
_TOLERANCE = 1e-5  # of the linear probes' fits
_STREAM = 0xF01D  # random stream of the folds

Judge = Literal["neighbours", "linear"]


class LabelIssues(NamedTuple):
    """Images whose label is probably wrong, the most suspicious first.

    Attributes:
        indices: int64 (m,).
        suggested: int64 (m,), the label that each should have instead.
        confidence: float64 (m,), the out-of-fold probability of the suggested label, in [0, 1].
    """

    indices: NDArray[np.int64]
    suggested: NDArray[np.int64]
    confidence: NDArray[np.float64]


def label_issues(features: Matrix, labels: ArrayLike, *, by: Judge = "neighbours", seed: int = 0) -> LabelIssues:
    """Images that confident learning assigns to a label other than their own.

    Args:
        features: (n, d), finite.
        labels: integers (n,) from 0.
        by: the source of the probabilities: ``neighbours``, the votes of the 20 nearest other images, or ``linear``,
            linear probes fitted without the image.
        seed: random seed for the folds of the linear probes.

    Raises:
        ConfigError: there is no such judge, or the seed is not between 0 and 2⁶³ - 1.
        DataError: features or labels cannot be used, or all labels are the same.

    Reference: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021,
    equations 1 to 3 and section 3.2.
    """
    check_known("by", by, get_args(Judge))
    check_seed(seed)
    rows = as_features(features).cpu().numpy()
    check_classes(as_labels(labels, len(rows)))
    judged = (
        neighbour_probabilities(rows, labels) if by == "neighbours" else probe_probabilities(rows, labels, seed=seed)
    )
    return confident_learning(judged, labels)


def probe_probabilities(features: Matrix, labels: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Probabilities (n, classes) of linear probes with penalty 1, each fitted on four fifths of every class.

    A class with a single image is absent from the fit that judges this image, and has probability 0 there. If only one
    class is left, its probability is 1; if none is, all probabilities are 0.

    Args:
        features: (n, d), finite.
        labels: integers (n,) from 0, of at least two classes.
        seed: random seed of the folds.
    """
    x, y = as_features(features), torch.from_numpy(as_labels(labels, len(features)))
    fold = torch.empty(len(y), dtype=torch.int64)
    for label in y.unique().tolist():
        members = (y == label).nonzero()[:, 0]
        fold[members[torch.from_numpy(permutation(len(members), seed, _STREAM, label))]] = (
            torch.arange(len(members)) % 5
        )
    probabilities = torch.zeros(len(y), int(y.max()) + 1, dtype=torch.float64)
    for number in fold.unique():
        rows = (fold != number).nonzero()[:, 0]
        if len(known := y[rows].unique()) < 2:
            probabilities[(fold == number).nonzero(), known] = 1.0
            continue
        fitted = next(fit_path(x, y, classes=probabilities.shape[1], penalties=(1.0,), rows=rows, tolerance=_TOLERANCE))
        probabilities[fold == number] = fitted.scores(x[fold == number]).softmax(dim=1).double()
    return probabilities.numpy()


def neighbour_probabilities(features: Matrix, labels: ArrayLike) -> NDArray[np.float64]:
    """The weighted votes of the 20 nearest other images for each label, (n, classes): no image votes for itself."""
    return votes(nearest(features, k=min(VOTERS, len(features) - 1)), labels)


def votes(neighbours: Neighbours, labels: ArrayLike) -> NDArray[np.float64]:
    """As ``neighbour_probabilities``, from already known neighbours (n, k) of all images."""
    y = as_labels(labels, len(neighbours.indices))
    weights = np.exp((neighbours.similarities.astype(np.float64) - 1.0) / _TEMPERATURE)
    sums = torch.zeros(len(y), int(y.max()) + 1, dtype=torch.float64)
    sums.scatter_add_(1, torch.from_numpy(y[neighbours.indices]), torch.from_numpy(weights))
    return (sums / sums.sum(dim=1, keepdim=True)).numpy()


def confident_learning(probabilities: NDArray[np.floating], labels: ArrayLike) -> LabelIssues:
    """The off-diagonal images of the confident joint, those with the smallest margin of their own label first.

    An image is assigned to class j if its probability of j is at least t_j, the mean probability of j over the images
    labelled j; if this holds for several classes, to the most probable. If the mean is 0, nothing is known about j.

    Args:
        probabilities: (n, classes), out-of-fold, from models that have not seen the image's own label.
        labels: integers (n,) from 0 to classes - 1.
    """
    y = as_labels(labels, len(probabilities))
    classes = check_classes(y)
    thresholds = np.full(probabilities.shape[1], np.inf)
    means = np.array([probabilities[y == label, label].mean() for label in classes])
    thresholds[classes] = np.where(means > 0, means, np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    issues = np.flatnonzero((confident.max(axis=1) >= 0) & (suggested != y))
    margins = probabilities[issues, y[issues]] - probabilities[issues, suggested[issues]]
    order = issues[np.argsort(margins, kind="stable")]
    return LabelIssues(order, suggested[order], probabilities[order, suggested[order]].astype(np.float64))


def check_classes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The labels that occur; DataError if there are fewer than two."""
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError("All images have one label: wrong labels need at least two classes.")
    return classes
