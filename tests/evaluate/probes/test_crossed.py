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


@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_mean_that_never_varies_is_as_uncertain_as_so_few_images_leave_it(right: int, seeds: int) -> None:
    for images in (4, 360):
        exact = stats.binomtest(right * images, images).proportion_ci(method="exact")
        np.testing.assert_allclose(crossed_interval(np.full((seeds, images), float(right))), exact, rtol=1e-9)
    most = stats.binomtest(0, 360).proportion_ci(method="exact").high
    found = crossed_interval(np.zeros((seeds, 360)), possible=(-1, 1))
    assert found == (pytest.approx(-most), pytest.approx(most))


def test_a_mean_to_which_images_and_seeds_contribute_alike_is_no_certainty() -> None:
    """Right on one image with each seed, and with one seed on each image."""
    low, high = crossed_interval(np.eye(5))
    assert low < 0.2 < high


def test_an_accuracy_near_one_is_covered_as_often_as_promised() -> None:
    """Seeds agree, and every fifth time or so an image is wrong; else all are right, as if that were certain."""
    generator = np.random.default_rng(0)
    found = [crossed_interval(np.tile(generator.random(20) < 0.99, (3, 1)).astype(float)) for _ in range(300)]
    assert np.mean([low <= 0.99 <= high for low, high in found]) >= 0.95


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 1)), np.full((2, 2), np.nan)])
def test_a_mean_of_other_shapes_is_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="finite values of seeds on two images or more"):
        crossed_interval(values)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        crossed_interval(np.zeros((2, 2)), confidence=1.0)
