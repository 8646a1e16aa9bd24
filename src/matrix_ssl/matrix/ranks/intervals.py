"""What a measure of n samples says about its value for more samples: bias and uncertainty.

A rank measured on n samples is too low, because some directions have not been seen yet. The rank of 10,000 images must
therefore not be compared with that of a million. ``Estimate`` holds the value at n, an interval for it, the values at
n/2 and n/4, and what to expect from these at a larger number of samples.

The samples are divided at random into groups. The interval is the delete-a-group jackknife,

    s² = (g - 1) / g Σ (θ_i - mean θ)²,    θ_i without group i,    θ ± t s,

with t from Student's distribution with g - 1 degrees of freedom. Groups of unequal sizes m_i leave different numbers of
samples, which is no uncertainty: θ_i is replaced by θ_i + c (m_i - mean m), where c = (θ - mean θ_i) / mean m is the
growth per sample. The interval is for the value that different samples of the same size would give, bias included. A
bootstrap would draw samples twice, which lowers every rank.

The expectation at N continues the last doubling: with a = θ(n/2) - θ(n/4), b = θ(n) - θ(n/2) and q = b/a, every further
doubling adds q times the previous one, so that θ(N) = θ(n) + b q (1 - q^k) / (1 - q) with k = log₂(N/n). A bias of
c n^-p is continued exactly. With q ≥ 1 growth is not slowing down, and there is no expectation; with q ≤ 0 there is no
trend to continue.

References:
    Quenouille, "Notes on bias in estimation", Biometrika 43, 1956. Shao and Wu, "A general theory for jackknife
    variance estimation", Annals of Statistics 17(3), 1989.
    Aitken, "On Bernoulli's numerical solution of algebraic equations", 1926: q from three terms.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import torch
from torch import Tensor

from matrix_ssl.errors import MatrixShapeError
from matrix_ssl.matrix.numerics.validation import check_tensor, checked_matrix

GROUPS = 8
LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Estimate:
    """A measure of n samples.

    Attributes:
        samples: n.
        value: at n samples.
        low, high: bounds of the interval.
        half, quarter: mean value over disjoint halves and quarters of the samples.
        population: the larger number of samples N that was asked for.
        expected: the value to expect at N; None without N, or where growth is not slowing down.
    """

    samples: int
    value: float
    low: float
    high: float
    half: float
    quarter: float
    population: int | None = None
    expected: float | None = None


def estimate(
    measure: Callable[[Tensor], Tensor], features: Tensor, *, population: int | None = None, groups: int = GROUPS,
    level: float = LEVEL, seed: int = 0, validate: bool | None = None,
) -> Estimate:  # fmt: skip
    """A measure of features (n, d) with its interval, its values at fewer samples and what to expect at more.

    Args:
        measure: a function of features (m, d) that returns a number, such as ``rank_me``.
        features: (n, d), independent rows, n ≥ 2 · groups.
        population: N ≥ n, for the expectation.
        groups: number of groups: 4, 8, 12, ...; the measure is computed groups + 7 times.
        level: level of the interval, in (0, 1).
        seed: random seed of the division into groups.
        validate: whether to check values; by default on the CPU.

    Raises:
        MatrixError: ``features`` is not one matrix, has too few rows, or is not finite.
        ValueError: ``groups``, ``level`` or ``population`` is out of range.
    """
    check_groups(groups)
    check_tensor(features, "features")
    x = checked_matrix(features.detach(), "features", validate)
    if x.ndim != 2 or len(x) < 2 * groups:
        raise MatrixShapeError(
            f"Argument 'features' has the shape {tuple(features.shape)}: an interval needs a matrix (n, d) with at "
            f"least {2 * groups} rows; pass more samples or fewer groups."
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    parts = x[order].tensor_split(groups)
    return combine(
        lambda chosen: float(measure(torch.cat([parts[i] for i in chosen]))), [len(part) for part in parts],
        population=population, level=level,
    )  # fmt: skip


def combine(
    of_groups: Callable[[Sequence[int]], float], sizes: Sequence[int], *, population: int | None, level: float,
    directions: int | None = None,
) -> Estimate:  # fmt: skip
    """The estimate, from the measure of any of the groups taken together.

    Args:
        of_groups: the measure of the groups with these numbers, taken together.
        sizes: numbers of samples of the groups.
        population: N, for the expectation.
        level: level of the interval.
        directions: for a rank, the largest possible value: limits the expectation and, together with the number of
            samples and 1, the interval.
    """
    groups, samples = len(sizes), sum(sizes)
    if population is not None and population < samples:
        raise ValueError(f"population must be {samples}, the number of samples, or larger, got {population}.")
    everything = range(groups)
    value = of_groups(everything)
    left_out = [of_groups([i for i in everything if i != one]) for one in everything]
    quarters, halves = (
        fmean(of_groups(range(start, start + size)) for start in range(0, groups, size))
        for size in (groups // 4, groups // 2)
    )
    mean, size = fmean(left_out), samples / groups
    growth = (value - mean) / size
    error = math.sqrt(
        (groups - 1) / groups
        * sum((one + growth * (own - size) - mean) ** 2 for one, own in zip(left_out, sizes, strict=True))
    )  # fmt: skip
    margin = student(level, groups - 1) * error
    expected = None if population is None else expectation(quarters, halves, value, population / samples)
    low, high = value - margin, value + margin
    if directions is not None:
        expected = None if expected is None else min(expected, directions)
        low, high = max(low, min(value, 1.0)), min(high, max(value, min(directions, samples)))
    return Estimate(samples, value, low, high, halves, quarters, population, expected)


def expectation(quarter: float, half: float, value: float, ratio: float) -> float | None:
    """What to expect at ``ratio`` times as many samples, from the values at a quarter, half and all of them."""
    before, last = half - quarter, value - half
    if ratio <= 1 or last == 0 or last * before < 0:
        return value
    if before == 0 or last / before >= 1:
        return None
    q = last / before
    return value + last * q * (1 - q ** math.log2(ratio)) / (1 - q)


def student(level: float, freedom: int) -> float:
    """The two-sided quantile of Student's distribution: a share ``level`` of it lies between ± this value.

    From 3 degrees of freedom on, accurate to 1 % up to a level of 0.99, and to 5 % up to 0.999.

    Reference: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def check_groups(groups: int) -> None:
    """Raises ValueError unless groups can be halved twice."""
    if groups < 4 or groups % 4:
        raise ValueError(f"groups must be 4, 8, 12 or a larger multiple of 4, got {groups}.")
