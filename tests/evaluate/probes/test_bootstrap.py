"""Bootstrap intervals against SciPy's, which draws images one by one, and against their own promises."""

import numpy as np
import pytest
import scipy.stats
import torch

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.probes.accuracy import mean_interval, mean_per_class_interval


def right_or_wrong(m, accuracy, seed):
    return (torch.rand(m, generator=torch.Generator().manual_seed(seed)) < accuracy).double()


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(
    "values", [right_or_wrong(300, 0.7, 0), right_or_wrong(200, 0.4, 1) - right_or_wrong(200, 0.5, 2)]
)
def test_agrees_with_scipy(values, confidence):
    expected = scipy.stats.bootstrap(
        (values.numpy(),), np.mean, confidence_level=confidence, method="percentile", n_resamples=10_000, rng=0
    ).confidence_interval
    found = mean_interval(values, confidence=confidence, possible=(-1, 1))
    np.testing.assert_allclose(found, expected, atol=0.006)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    held = [low <= 0.6 <= high for low, high in (mean_interval(right_or_wrong(150, 0.6, seed)) for seed in range(400))]
    assert 0.91 <= np.mean(held) <= 0.98


def test_classes_count_alike_whatever_their_sizes():
    values = torch.cat([torch.ones(1000), right_or_wrong(20, 0.5, 0)])
    labels = torch.cat([torch.zeros(1000), torch.ones(20)]).long()
    low, high = mean_per_class_interval(values, labels)
    small = mean_interval(values[1000:])
    np.testing.assert_allclose([low, high], [(1 + small.low) / 2, (1 + small.high) / 2], atol=0.015)


@pytest.mark.parametrize(("classes", "images", "least"), [(5, 2, 0.9), (10, 2, 0.93), (10, 3, 0.93), (10, 5, 0.92)])
def test_intervals_of_few_images_a_class_hold_the_truth_as_often_as_they_say(classes, images, least):
    """Two images of each of five classes all agree within their class once in twenty-six times: no interval."""
    labels = torch.arange(classes).repeat(images)
    found = [mean_per_class_interval(right_or_wrong(classes * images, 0.6, seed), labels) for seed in range(400)]
    held = [one is not None and one.low <= 0.6 <= one.high for one in found]
    assert least <= np.mean(held) <= 0.995


@pytest.mark.parametrize("images", [10, 20, 40])
def test_intervals_of_few_images_are_those_of_student(images):
    """About the mean of values that are neither skewed nor coarse, where Student's interval is exact."""
    for seed in range(5):
        values = torch.randn(images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected = scipy.stats.ttest_1samp(values.numpy(), 0).confidence_interval()
        low, high = mean_interval(values, possible=(-np.inf, np.inf))
        assert high - low == pytest.approx(expected.high - expected.low, rel=0.06)
        np.testing.assert_allclose([low, high], expected, atol=0.05 * (high - low))


def test_a_class_of_one_image_leaves_no_interval():
    labels = torch.cat([torch.zeros(10), torch.ones(1)]).long()
    assert mean_per_class_interval(right_or_wrong(11, 0.5, 0), labels) is None
    assert mean_per_class_interval(torch.ones(1), labels[:1]) is None


def test_no_bound_is_outside_the_range_of_the_values():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert mean_per_class_interval(values, torch.zeros(4).long()).high == 1.0


def test_the_same_values_have_the_same_interval():
    values = right_or_wrong(100, 0.7, 0)
    assert mean_interval(values) == mean_interval(values.clone()) != mean_interval(1 - values)


@pytest.mark.parametrize("images", [1, 2, 10, 3925])
@pytest.mark.parametrize("right", [0.0, 1.0])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_equal_values_have_the_exact_interval(images, right, confidence):
    exact = scipy.stats.binomtest(round(right) * images, images).proportion_ci(confidence, method="exact")
    found = mean_interval(torch.full((images,), right), confidence=confidence)
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_equal_differences_have_the_interval_of_the_images_that_may_differ():
    most = scipy.stats.binomtest(0, 20).proportion_ci(method="exact").high
    for value in (-1.0, 0.0, 0.3, 1.0):
        found = mean_interval(torch.full((20,), value, dtype=torch.float64), possible=(-1, 1))
        np.testing.assert_allclose(found, [value - most * (value + 1), value + most * (1 - value)])


def test_classes_that_each_agree_leave_no_interval():
    labels = torch.tensor([0, 0, 1, 1])
    assert mean_per_class_interval(torch.ones(4), labels) is None
    assert mean_per_class_interval(labels.double(), labels) is None
    assert mean_interval(labels.double()).low < 0.5 < mean_interval(labels.double()).high


def test_bad_input():
    with pytest.raises(DataError, match="got 0 and 0"):
        mean_interval(torch.zeros(0))
    with pytest.raises(DataError, match="got 3 and 2"):
        mean_per_class_interval(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"confidence=95"):
        mean_interval(torch.ones(3), confidence=95)
    with pytest.raises(DataError, match=r"The value -1 is not between 0 and 1: .* possible=\(-1, 1\)"):
        mean_interval(torch.tensor([0.0, -1.0, 1.0]))
