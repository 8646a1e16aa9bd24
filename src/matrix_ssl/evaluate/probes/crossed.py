"""Confidence intervals for means over seeds (or draws of labelled images) and test images, both drawn at random."""

import numpy as np
import torch
from numpy.typing import NDArray

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.probes.accuracy import Interval, mean_interval


def crossed_interval(
    values: NDArray[np.float64], *, confidence: float = 0.95, possible: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Interval for the mean of values from n seeds on the same m test images, such as differences in correctness.

    Another draw of seeds and another draw of images both change the mean. Its variance is estimated by v = a + b: a is
    the variance over images of their means over the seeds, divided by m; b is the variance over seeds of their means
    over the images, divided by n. The interaction of image and seed is in both, so v tends to be too large. The
    interval is mean ± t √v, where t is the quantile at (1 + confidence) / 2 of Student's distribution with
    v² / (a² / (m - 1) + b² / (n - 1)) degrees of freedom. With one seed, b is 0 and the interval covers only the
    images. Draws of labelled images are treated like seeds.

    If neither the images nor the seeds differ in their mean, v is 0 and says nothing. The interval is then that of
    ``mean_interval``, which covers only the images: the widest that is compatible with m equal values.

    Args:
        values: (n, m), finite, m at least 2.
        confidence: between 0 and 1, both excluded.
        possible: the smallest and largest value that an image can have, used only if nothing varies; (-1, 1) for
            differences of two accuracies.

    Raises:
        DataError: the shape is not as above, a value is not finite, or nothing varies outside the possible range.
        ConfigError: ``confidence`` is not between 0 and 1.

    Reference: Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2
    (1946).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"The confidence must be between 0 and 1, got {confidence}.")
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise DataError(f"A mean needs finite values of seeds on two images or more, got shape {values.shape}.")
    n, m = values.shape
    by_image, by_seed = values.mean(axis=0), values.mean(axis=1)
    if np.ptp(by_image) == 0 and np.ptp(by_seed) == 0:
        return mean_interval(torch.from_numpy(by_image), confidence=confidence, possible=possible)
    from scipy import stats  # slow to import

    images, seeds = float(by_image.var(ddof=1)) / m, float(by_seed.var(ddof=1)) / n if n > 1 else 0.0
    mean, variance = float(values.mean()), images + seeds
    freedom = variance**2 / (images**2 / (m - 1) + (seeds**2 / (n - 1) if n > 1 else 0.0))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * variance**0.5
    return Interval(mean - half, mean + half)
