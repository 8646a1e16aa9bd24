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
    np.testing.assert_allclose(mean_interval(values, confidence=confidence), expected, atol=0.006)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    held = [low <= 0.6 <= high for low, high in (mean_interval(right_or_wrong(150, 0.6, seed)) for seed in range(400))]
    assert 0.91 <= np.mean(held) <= 0.98


def test_classes_count_alike_whatever_their_sizes():
    values = torch.cat([torch.ones(1000), right_or_wrong(20, 0.5, 0)])
    labels = torch.cat([torch.zeros(1000), torch.ones(20)]).long()
    low, high = mean_per_class_interval(values, labels)
    small = mean_interval(values[1000:])
    np.testing.assert_allclose([low, high], [(1 + small.low) / 2, (1 + small.high) / 2], atol=0.015)


@pytest.mark.parametrize("images", [2, 3, 5])
def test_intervals_of_few_images_a_class_are_as_wide_as_the_mean_varies(images):
    labels, widths = torch.arange(10).repeat(images), []
    for seed in range(200):
        low, high = mean_per_class_interval(right_or_wrong(10 * images, 0.6, seed), labels)
        widths.append(high - low)
    deviation = (0.6 * 0.4 / (10 * images)) ** 0.5
    assert np.mean(np.square(widths)) ** 0.5 == pytest.approx(2 * 1.96 * deviation, rel=0.06)


def test_a_class_of_one_image_leaves_no_interval():
    labels = torch.cat([torch.zeros(10), torch.ones(1)]).long()
    assert mean_per_class_interval(right_or_wrong(11, 0.5, 0), labels) is None
    assert mean_per_class_interval(torch.ones(1), labels[:1]) is None
    assert mean_interval(torch.ones(1)) == (1.0, 1.0)


def test_no_bound_is_outside_the_range_of_the_values():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert mean_per_class_interval(values, torch.zeros(4).long()).high == 1.0
    assert mean_per_class_interval(torch.ones(4), torch.tensor([0, 0, 1, 1])) == (1.0, 1.0)


def test_the_same_values_have_the_same_interval_and_no_spread_no_width():
    values = right_or_wrong(100, 0.7, 0)
    assert mean_interval(values) == mean_interval(values.clone()) != mean_interval(1 - values)
    assert mean_interval(torch.ones(10)) == (1.0, 1.0)


def test_bad_input():
    with pytest.raises(DataError, match="got 0 and 0"):
        mean_interval(torch.zeros(0))
    with pytest.raises(DataError, match="got 3 and 2"):
        mean_per_class_interval(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"confidence=95"):
        mean_interval(torch.ones(3), confidence=95)
