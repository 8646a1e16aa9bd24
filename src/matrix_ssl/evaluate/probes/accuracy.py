"""Accuracies, their summary over repetitions, and their confidence intervals by the bootstrap over test images.

The bootstrap resamples the images with replacement and measures how much a statistic varies over such draws (Efron,
"Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979). Images with the same class and value
are interchangeable, so a draw is a draw of their counts from a multinomial distribution: ten thousand draws take
milliseconds, however many images there are.

Means of draws from n images vary (n - 1) / n times as much as means of n new images, and their variance is only an
estimate, as in Student's t test. So their deviations are multiplied by √(n / (n - 1)) · t / z, with the quantiles of
Student's and of the normal distribution; this matters only for few images (Hesterberg, "What teachers should know about
the bootstrap", American Statistician 69, 2015).

If all n values are equal, every draw is the same, and a bootstrap would claim certainty. But with probability 1 - α/2
or more, at most a fraction 1 - (α/2)^(1/n) of all images of this kind have another value, or these n would hardly all
have missed them. The bounds are those that the mean can have then, for an accuracy of 0 or 1 the exact ones of Clopper
and Pearson ("The use of confidence or fiducial limits", Biometrika 26, 1934).

An interval says how far this encoder's accuracy may be from that on all images of this kind. It says nothing about
another random seed of the pre-training.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl.errors import ConfigError, DataError

_DRAWS = 10_000


class Interval(NamedTuple):
    """The bounds of a confidence interval."""

    low: float
    high: float


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The fraction of images, in [0, 1], whose predicted label (n,) equals the correct one in ``labels`` (n,).

    Raises:
        DataError: there are no images, or predictions and labels differ in number.
    """
    if predicted.shape != labels.shape or not len(labels):
        raise DataError(
            f"accuracy needs as many predictions as labels and at least one: "
            f"got shapes {tuple(predicted.shape)} and {tuple(labels.shape)}."
        )
    return float((predicted == labels).double().mean())


def summarise(values: Tensor | Sequence[float]) -> dict[str, float | int]:
    """``{"mean", "sd", "n"}`` of repeated measurements; ``sd`` is the sample standard deviation (n - 1), 0 if n = 1.

    Raises:
        DataError: there are no values.
    """
    numbers = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    if not len(numbers):
        raise DataError("nothing to summarise: give at least one measurement.")
    spread = float(numbers.std(correction=1)) if len(numbers) > 1 else 0.0
    return {"mean": float(numbers.mean()), "sd": spread, "n": len(numbers)}


def mean_interval(values: Tensor, *, confidence: float = 0.95, possible: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """Interval for the mean of one value per image, such as 1 if a prediction is right and 0 otherwise.

    For a paired comparison of two classifiers, pass the differences of their values on the same images, which are
    between -1 and 1. No bound is outside the range of the values, except where they are all equal; the interval is then
    the widest that is compatible with so many equal values.

    Args:
        values: (m,), one for each test image.
        confidence: in (0, 1).
        possible: the smallest and largest value that an image can have.

    Raises:
        DataError: there are no values, or one is outside the possible range.
        ConfigError: ``confidence`` is out of range.
    """
    _check(values, values, confidence)
    least, most = float(values.min()), float(values.max())
    if not possible[0] <= least <= most <= possible[1]:
        outside = least if least < possible[0] else most
        raise DataError(
            f"The value {outside:g} is not between {possible[0]:g} and {possible[1]:g}: give the range of possible "
            "values, for differences of two accuracies possible=(-1, 1)."
        )
    return _interval([values], confidence) if least < most else _of_equal(least, len(values), confidence, possible)


def mean_per_class_interval(values: Tensor, labels: Tensor, *, confidence: float = 0.95) -> Interval | None:
    """Interval for the mean over classes of their images' mean value; None if these images do not determine it.

    They do not if a class has a single image, or if no class has two images whose values differ.

    Every class keeps its number of images and is resampled separately. The degrees of freedom of Student's distribution
    are Satterthwaite's for a sum of variances, v² / Σ (v_c² / (n_c - 1)), with v_c the variance of the mean of class c
    and v their sum. No bound is outside the range of the values.

    Args:
        values, labels: (m,).

    Raises:
        DataError: there are no values, or values and labels differ in number.
        ConfigError: ``confidence`` is out of range.

    Reference: Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2
    (1946).
    """
    _check(values, labels, confidence)
    classes = [values[labels == label] for label in labels.unique()]
    alike = all(one.min() == one.max() for one in classes)
    return None if alike or min(map(len, classes)) == 1 else _interval(classes, confidence)


def _check(values: Tensor, labels: Tensor, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence}: expected a number between 0 and 1, for example 0.95.")
    if not len(values) or values.shape != labels.shape:
        raise DataError(f"a bootstrap needs a value and a label for each image: got {len(values)} and {len(labels)}.")


def _of_equal(value: float, count: int, confidence: float, possible: tuple[float, float]) -> Interval:
    """Interval for the mean if each of ``count`` images has the same value."""
    others = 1 - ((1 - confidence) / 2) ** (1 / count)  # the largest fraction of all images with another value
    return Interval(value - others * (value - possible[0]), value + others * (possible[1] - value))


def _interval(groups: Sequence[Tensor], confidence: float) -> Interval:
    """Interval for the mean of the means of groups, each resampled separately; in one of them, values differ."""
    from scipy.special import ndtri, stdtrit  # slow to import

    generator = np.random.default_rng(0)  # so that the same values always have the same interval
    centre = float(np.mean([float(one.double().mean()) for one in groups]))
    means = np.mean([_widened(one, _draw(one, generator)) for one in groups], axis=0)
    quantiles = (1 - confidence) / 2, (1 + confidence) / 2
    variances = np.array([float(one.double().var()) / len(one) if len(one) > 1 else 0.0 for one in groups])
    sizes = np.array([len(one) for one in groups])
    freedom = variances.sum() ** 2 / (variances**2 / np.maximum(sizes - 1, 1)).sum()
    factor = float(stdtrit(freedom, quantiles[1]) / ndtri(quantiles[1]))
    bounds = centre + factor * (np.quantile(means, quantiles) - centre)
    low, high = bounds.clip(min(float(one.min()) for one in groups), max(float(one.max()) for one in groups))
    return Interval(float(low), float(high))


def _widened(values: Tensor, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of draws, widened to vary as much as those of new images."""
    centre, count = float(values.double().mean()), len(values)
    return centre + (means - centre) * (count / max(count - 1, 1)) ** 0.5


def _draw(values: Tensor, generator: np.random.Generator) -> NDArray[np.float64]:
    """Means of ``_DRAWS`` draws with replacement."""
    distinct, counts = np.unique(values.double().cpu().numpy(), return_counts=True)
    return generator.multinomial(len(values), counts / len(values), size=_DRAWS) @ distinct / len(values)
