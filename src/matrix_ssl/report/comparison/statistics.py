"""Which of two methods or encoders is better, judged by the seeds and the test images that both were run with.

Two runs with the same seed share what the seed determines, such as the order of the images and their views, so the
comparison is paired: only differences within a seed count, and what makes a seed easy or hard for all methods cancels.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, TypeVar

import numpy as np

from matrix_ssl.errors import ConfigError, DataError

SIGNIFICANT = 0.05  # an adjusted p value below it counts as a difference
_ROUNDING = 4e-7  # of the largest score: scores may have been written with seven digits
Name = TypeVar("Name", bound=Hashable)


class PairedDifference(NamedTuple):
    """The mean of a - b over ``n`` seeds, its confidence interval, and the two-sided p value of "no difference".

    ``low`` and ``high`` are None if the differences show no spread: if all of them are equal, and for n = 1, where
    ``p`` is None as well.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    def reversed(self) -> "PairedDifference":
        """The difference b - a."""
        low, high = (None if self.high is None else -self.high), (None if self.low is None else -self.low)
        return PairedDifference(-self.mean, low, high, self.p, self.n)


class Pair(NamedTuple):
    """One entry against another; ``adjusted_p`` accounts for the number of pairs and is None for n = 1."""

    difference: PairedDifference
    adjusted_p: float | None
    tests: int  # the number of pairs that it accounts for

    def reversed(self) -> "Pair":
        """The other entry against this one."""
        return Pair(self.difference.reversed(), self.adjusted_p, self.tests)

    @property
    def significant(self) -> bool:
        """Whether the adjusted p value is below ``SIGNIFICANT``."""
        return self.adjusted_p is not None and self.adjusted_p < SIGNIFICANT


def paired_difference(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> PairedDifference:
    """Mean, interval and p value of a - b by Student's paired t test.

    The interval is mean ± t · sd / √n, where sd is the standard deviation of the n differences (n - 1 in its
    denominator) and t the quantile of Student's distribution with n - 1 degrees of freedom at (1 + confidence) / 2, and
    p = 2 P(T > |mean| √n / sd). Both are exact when the differences are independent and normal.

    Differences that are all equal, up to the rounding of a and b to seven digits, have sd = 0, which can happen by
    chance because scores are multiples of one test image. The t interval would be a single point, so there is none, and
    p, which the t test would put at 0, is that of the sign test, which needs no spread: 2 / 2ⁿ, the chance that n fair
    coins agree, or 1 if the mean is zero.

    Args:
        a, b: (n,) scores, one per seed, for the same seeds in the same order.
        confidence: probability that the interval covers the true difference, between 0 and 1, both excluded.

    Raises:
        DataError: the numbers of scores differ, there are none, or they are not finite.
        ConfigError: ``confidence`` is not between 0 and 1.

    Reference: Student, "The probable error of a mean", Biometrika 6 (1908).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"The confidence must be between 0 and 1, got {confidence}.")
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise DataError(
            f"A paired difference needs two equally long lists of scores, got shapes {x.shape} and {y.shape}."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("A paired difference needs finite scores.")
    differences = x - y
    mean, n = float(differences.mean()), len(x)
    rounding = _ROUNDING * max(np.abs(x).max(), np.abs(y).max())
    mean = 0.0 if abs(mean) <= rounding else mean
    if n == 1:
        return PairedDifference(mean, None, None, None, n)
    if np.ptp(differences) <= rounding:
        return PairedDifference(mean, None, None, 2.0 ** (1 - n) if mean else 1.0, n)
    from scipy import stats  # slow to import

    test = stats.ttest_rel(x, y)
    low, high = test.confidence_interval(confidence)
    return PairedDifference(mean, float(low), float(high), float(test.pvalue), n)


def over_common_seeds(
    a: Mapping[int, float], b: Mapping[int, float], *, confidence: float = 0.95
) -> PairedDifference | None:
    """``paired_difference`` of scores by seed, over the seeds that both have; None if there are none."""
    seeds = sorted(a.keys() & b.keys())
    return paired_difference([a[s] for s in seeds], [b[s] for s in seeds], confidence=confidence) if seeds else None


class Estimate(NamedTuple):
    """A mean over seeds and test images with its confidence interval, from ``evaluate.probes.crossed``."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is above or below 0; 0 if it includes 0, so that no claim is supported."""
        return (self.low > 0) - (self.high < 0)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for their number m: rejecting all below α makes any error with probability at most α.

    The adjusted p of the i-th smallest is max over j ≤ i of min(1, (m - j + 1) p_j): never below the p value, never
    above Bonferroni's m p, and valid however the tests depend on each other. None stays None and is not counted in m.

    Args:
        p_values: (m,) each in [0, 1] or None.

    Raises:
        DataError: a p value outside [0, 1].

    Reference: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics
    6 (1979).
    """
    known = {i: p for i, p in enumerate(p_values) if p is not None}
    if not all(0 <= p <= 1 for p in known.values()):
        raise DataError(f"A p value is between 0 and 1, got {list(known.values())}.")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=known.__getitem__)):
        largest = max(largest, min(1.0, (len(known) - rank) * known[i]))
        adjusted[i] = largest
    return adjusted


def pairwise(scores: Mapping[str, Mapping[int, float]], *, confidence: float = 0.95) -> dict[tuple[str, str], Pair]:
    """Every ordered pair of entries (a, b): the difference a - b over the seeds that both have.

    p values are adjusted by ``holm`` over all unordered pairs. Intervals are not adjusted: each has the given
    confidence on its own. Pairs without a common seed are skipped.

    Args:
        scores: for every entry, its scores by seed.
        confidence: of each interval, between 0 and 1, both excluded.

    Raises:
        DataError: a score is not finite.
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    pairs = _adjusted({
        (a, b): difference for a, b in combinations(scores, 2)
        if (difference := over_common_seeds(scores[a], scores[b], confidence=confidence))
    })  # fmt: skip
    return pairs | {(b, a): pair.reversed() for (a, b), pair in pairs.items()}


def against(scores: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, Pair]:
    """Every entry minus the reference, over the seeds that both have; like ``pairwise``, but for these pairs only.

    p values are adjusted by ``holm`` over the pairs with the reference, one fewer than there are entries.
    """
    return _adjusted({
        name: difference for name, values in scores.items()
        if name != reference and (difference := over_common_seeds(values, scores[reference]))
    })  # fmt: skip


def _adjusted(differences: Mapping[Name, PairedDifference]) -> dict[Name, Pair]:
    adjusted = holm([difference.p for difference in differences.values()])
    tests = sum(p is not None for p in adjusted)
    return {name: Pair(d, p, tests) for (name, d), p in zip(differences.items(), adjusted, strict=True)}
