"""Intervals of means over seeds and images, against Student's and against their own promises."""

import numpy as np
import pytest
from scipy import stats

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.probes.crossed import crossed_interval


def test_a_mean_over_seeds_and_images_covers_the_truth() -> None:
    """Both effects are drawn anew; images alone, or seeds alone, would miss the truth too often."""
    generator = np.random.default_rng(0)
    for seeds, images, seed_effect, image_effect in ((3, 100, 0.05, 0.5), (3, 100, 0.0, 0.5), (5, 400, 0.05, 0.2)):
        covered = 0
        for _ in range(300):
            values = 0.1 + seed_effect * generator.normal(size=(seeds, 1)) + generator.normal(size=(seeds, images))
            values += image_effect * generator.normal(size=(1, images))
            low, high = crossed_interval(values)
            covered += low <= 0.1 <= high
        assert covered >= 0.93 * 300


def test_a_mean_of_one_seed_is_that_of_its_images() -> None:
    values = np.random.default_rng(1).normal(size=(1, 50))
    expected = stats.ttest_1samp(values[0], 0.0).confidence_interval(0.95)
    assert crossed_interval(values) == (pytest.approx(expected.low), pytest.approx(expected.high))
    by_seed = np.random.default_rng(2).normal(size=(4, 1)) + np.zeros((4, 9))  # images do not matter
    expected = stats.ttest_1samp(by_seed[:, 0], 0.0).confidence_interval(0.95)
    assert crossed_interval(by_seed) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_a_mean_that_never_varies_has_no_width() -> None:
    assert crossed_interval(np.zeros((3, 4))) == (0.0, 0.0)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 1)), np.full((2, 2), np.nan)])
def test_a_mean_of_other_shapes_is_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="finite values of seeds on two images or more"):
        crossed_interval(values)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        crossed_interval(np.zeros((2, 2)), confidence=1.0)
