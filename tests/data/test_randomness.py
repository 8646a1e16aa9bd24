"""The counter-based generator against a big-integer version and statistical tests at fixed coordinates."""

import numpy as np
import pytest
import scipy.stats

from matrix_ssl.data.randomness import hash_integers, permutation, uniform

_GOLDEN, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def mix(x: int) -> int:
    """SplitMix64's finaliser in Python's unbounded integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def hashed(*coordinates: int) -> int:
    state = 0
    for coordinate in coordinates:
        state = mix((state + _GOLDEN + mix((coordinate + _GOLDEN) & _MASK)) & _MASK)
    return state


def test_the_reference_is_splitmix64():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]  # seed 0
    assert [mix(_GOLDEN * k & _MASK) for k in range(1, 5)] == published


@pytest.mark.parametrize("coordinates", [(), (0,), (1,), (0, 0), (3, 1, 4, 1, 5), (2**63, 2**32 + 1), (2**64 - 1, 7)])
def test_hash_is_the_big_integer_version(coordinates):
    assert int(hash_integers(*coordinates)) == hashed(*coordinates)


def test_arrays_broadcast():
    found = hash_integers(5, np.arange(3)[:, None], np.array([10, 20]))
    assert found.tolist() == [[hashed(5, i, j) for j in (10, 20)] for i in range(3)]
    draws = uniform(5, np.arange(3), 1, draws=4)
    assert draws.shape == (3, 4)
    assert draws[2, 3] == (hashed(5, 2, 1, 3) >> 11) / 2**53


def test_order_of_coordinates_matters():
    assert int(hash_integers(1, 2)) != int(hash_integers(2, 1))
    assert int(hash_integers(0)) != int(hash_integers(0, 0))


def test_more_draws_leave_the_earlier_ones():
    np.testing.assert_array_equal(uniform(1, 2, draws=9)[:4], uniform(1, 2, draws=4))


@pytest.mark.parametrize("axis", ["seeds", "epochs", "samples", "draws"])
def test_uniform_along_every_axis(axis):
    counter = np.arange(20_000)
    values = {
        "seeds": lambda: uniform(counter, 0, 0, draws=1)[:, 0],
        "epochs": lambda: uniform(0, counter, 0, draws=1)[:, 0],
        "samples": lambda: uniform(0, 0, counter, draws=1)[:, 0],
        "draws": lambda: uniform(0, 0, 0, draws=20_000),
    }[axis]()
    assert values.min() >= 0
    assert values.max() < 1
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.01
    lagged = np.histogram2d(values[:-1], values[1:], bins=10)[0]  # neighbours fill the square evenly
    assert scipy.stats.chisquare(lagged.ravel()).pvalue > 0.01


def test_neighbouring_coordinates_are_independent():
    table = uniform(np.arange(3)[:, None, None], np.arange(3)[:, None], np.arange(3), draws=4000).reshape(27, 4000)
    correlation = np.corrcoef(table) - np.eye(27)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_every_bit_is_used():
    bits = np.unpackbits(hash_integers(7, np.arange(4096)).view(np.uint8)).reshape(4096, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / 64


class TestPermutation:
    @pytest.mark.parametrize("n", [0, 1, 2, 1000])
    def test_is_a_permutation(self, n):
        assert sorted(permutation(n, 3, 1).tolist()) == list(range(n))

    def test_depends_on_every_coordinate(self):
        orders = [permutation(50, *c).tolist() for c in [(0, 0), (1, 0), (0, 1), (0, 0, 0)]]
        assert len({tuple(order) for order in orders}) == 4
        assert permutation(50, 0, 0).tolist() == orders[0]

    def test_every_place_is_equally_likely(self):
        first = np.bincount([permutation(8, seed)[0] for seed in range(4000)], minlength=8)
        assert scipy.stats.chisquare(first).pvalue > 0.01
