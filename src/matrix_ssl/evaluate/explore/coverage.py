"""How well one collection of images covers another, and how balanced the classes of a collection are."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.evaluate.explore.inputs import Matrix
from matrix_ssl.evaluate.explore.neighbours import nearest


class Coverage(NamedTuple):
    """How much of a target a collection covers.

    Attributes:
        covered: bool (m,), whether each target image is covered.
        similarities: float32 (m,), similarity of each target image to the nearest image of the collection.
        share: fraction of the target that is covered, in [0, 1].
        expected: the expected share if both were samples from one distribution.
    """

    covered: NDArray[np.bool_]
    similarities: NDArray[np.float32]
    share: float
    expected: float


class Balance(NamedTuple):
    """How balanced classes are.

    Attributes:
        counts: int64 (classes,), number of images in every class.
        effective_classes: exp of the entropy of the shares, the number of equally large classes with the same entropy.
        ratio: number of images in the largest class over that in the smallest non-empty one.
    """

    counts: NDArray[np.int64]
    effective_classes: float
    ratio: float


def coverage(features: Matrix, target: Matrix, *, k: int = 5) -> Coverage:
    """The share of target images with an image of the collection no farther than their k-th neighbour in the target.

    For n images in the collection and m in the target, both from one distribution, the expected share is
    1 - (m-1)···(m-k) / ((n+m-1)···(n+m-k)).

    Args:
        features: (n, d) of the collection.
        target: (m, d), m > k.
        k: number of neighbours within the target.

    Raises:
        ConfigError: ``k`` is not positive.
        DataError: the target does not have more than k images, the widths differ, or a value is not finite.

    Reference: Naeem, Oh, Uh, Choi and Yoo, "Reliable fidelity and diversity metrics for generative models", ICML 2020,
    equation 5 and section 3.3.
    """
    radius = nearest(target, k=k).similarities[:, -1]
    similarities = nearest(features, target, k=1).similarities[:, 0]
    covered = similarities >= radius
    n, m = len(features), len(target)
    missed = np.prod([(m - i) / (n + m - i) for i in range(1, k + 1)])
    return Coverage(covered, similarities, float(covered.mean()), float(1 - missed))


def class_balance(labels: ArrayLike, *, classes: int | None = None) -> Balance:
    """Number of images in every class, and how balanced they are; ``classes`` includes classes without images."""
    counts = np.bincount(np.asarray(labels), minlength=classes or 0).astype(np.int64)
    present = counts[counts > 0]
    shares = present / present.sum()
    return Balance(counts, float(np.exp(-(shares * np.log(shares)).sum())), float(present.max() / present.min()))
