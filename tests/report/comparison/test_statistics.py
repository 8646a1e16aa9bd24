import numpy as np
import pytest
from scipy import stats

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.report.comparison.statistics import (
    PairedDifference,
    against,
    holm,
    paired_difference,
    pairwise,
)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_agrees_with_the_formula_of_the_docstring(n, confidence):
    a, b = np.random.default_rng(n).normal([0.3, 0.0], 1, (n, 2)).T
    mean, error = np.mean(a - b), np.std(a - b, ddof=1) / np.sqrt(n)
    reach, p = stats.t.ppf((1 + confidence) / 2, n - 1) * error, 2 * stats.t.sf(abs(mean) / error, n - 1)
    result = paired_difference(a, b, confidence=confidence)
    np.testing.assert_allclose(result[:4], [mean, mean - reach, mean + reach, p], rtol=1e-10)
    assert result.n == n


def test_a_case_worked_by_hand():
    # differences 1, 2, 3: mean 2, sd 1, error 1/√3; t with 2 degrees of freedom at 0.975 is 4.3027
    # and P(|T| > t) = 1 - t / √(t² + 2) = 1 - √(12/14) for t = 2√3
    result = paired_difference([2, 4, 6], [1, 2, 3])
    assert result.mean == 2
    assert result.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)
    assert result.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6)
    assert result.p == pytest.approx(1 - (12 / 14) ** 0.5)


def test_swapping_changes_signs_only():
    a, b = [0.91, 0.93, 0.92], [0.90, 0.95, 0.97]
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (back.mean, back.low, back.high, back.p) == (-there.mean, -there.high, -there.low, there.p)


def test_pairing_removes_what_seeds_have_in_common():
    noise = np.random.default_rng(0).normal(size=8)
    a, b = noise + 0.01 * np.arange(8) + 0.1, noise
    assert paired_difference(a, b).p < 1e-3
    assert stats.ttest_ind(a, b).pvalue > 0.5


def test_one_seed_gives_no_interval():
    assert paired_difference([0.75], [0.5]) == PairedDifference(0.25, None, None, None, 1)


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.1, 2 / 16), (-0.25, 2 / 16)])  # four coins that agree
def test_equal_differences(shift, p):
    b = np.array([0.1, 0.2, 0.7, 0.9])  # b + 0.1 - b differs from 0.1 in the last bits
    result = paired_difference(b + shift, b)
    assert result.mean == pytest.approx(shift, abs=1e-12)
    assert (result.low, result.high, result.p) == (None, None, p)


def test_equal_differences_of_scores_with_seven_digits():
    """One test image of 360 in each of five seeds, as a published file has it."""
    right = np.array([358, 357, 358, 356, 359])
    a, b = ([float(f"{value:.7g}") for value in count / 360] for count in (right, right - 1))
    assert np.ptp(np.subtract(a, b)) > 0
    result = paired_difference(a, b)
    assert (result.low, result.high, result.p) == (None, None, 2 / 32)


def test_intervals_of_coarse_differences_cover_the_truth_where_there_are_any():
    """Nothing or one test image more, equally likely: three seeds agree once in four times, and are never at 1/2."""
    differences = np.random.default_rng(0).integers(0, 2, (400, 3))
    found = [paired_difference(row, np.zeros(3)) for row in differences]
    given = [one.low <= 0.5 <= one.high for one in found if one.low is not None]
    assert len(found) - len(given) == sum(len(set(row)) == 1 for row in differences.tolist()) > 50
    assert np.mean(given) >= 0.95


def test_rounding_is_no_difference():
    result = paired_difference([0.1 + 0.2, 0.3], [0.3, 0.1 + 0.2])
    assert (result.mean, result.p) == (0, 1)
    assert paired_difference([0.1 + 0.2], [0.3]).mean == 0


def test_a_tiny_but_real_spread_is_kept():
    result = paired_difference([1e-9, 3e-9], [0, 0])
    assert result.low < result.mean < result.high
    assert 0 < result.p < 1


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    repeats, truth = 2000, 0.3
    covered, rejected = 0, 0
    for _ in range(repeats):
        common = generator.normal(0, 5, 4)
        a, b = common + generator.normal(truth, 1, 4), common + generator.normal(0, 2, 4)
        result = paired_difference(a, b, confidence=0.9)
        covered += result.low <= truth <= result.high
        rejected += (result.p < 0.1) != (not result.low <= 0 <= result.high)
    assert abs(covered / repeats - 0.9) < 3 * (0.9 * 0.1 / repeats) ** 0.5
    assert rejected == 0  # p and interval agree


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[2.0]]), ([float("nan")], [1.0]), ([1.0], [float("inf")])]
)
def test_scores_that_do_not_fit_are_refused(a, b):
    with pytest.raises(DataError, match="paired difference"):
        paired_difference(a, b)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, float("nan")])
def test_a_confidence_outside_its_range_is_refused(confidence):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        paired_difference([1, 2], [2, 4], confidence=confidence)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 · 0.005, 3 · 0.01, 2 · 0.03, max(0.06, 0.04)
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),  # the last would be 0.03, below its predecessor
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, None, 0.01], [0.02, None, 0.02]),
        ([None], [None]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.04], [0.04]),
        ([], []),
    ],
)
def test_holm_worked_by_hand(given, expected):
    result = holm(given)
    assert [p is None for p in result] == [p is None for p in expected]
    assert [p for p in result if p is not None] == pytest.approx([p for p in expected if p is not None])


def test_holm_lies_between_the_p_value_and_bonferroni_and_keeps_the_order():
    p = np.random.default_rng(1).uniform(0, 0.2, 30) ** 2
    adjusted = np.array(holm(p.tolist()))
    assert np.all((p <= adjusted) & (adjusted <= np.minimum(1, 30 * p) + 1e-15))
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_probability(p):
    with pytest.raises(DataError, match="between 0 and 1"):
        holm([0.5, p])


def test_pairs_use_the_seeds_that_both_entries_have():
    scores = {
        "a": {0: 0.9, 1: 0.8, 2: 0.7},
        "b": {1: 0.5, 2: 0.6, 3: 0.1},
        "c": {2: 0.65, 9: 0.3},
        "d": {7: 0.5},
        "e": {},
    }
    pairs = pairwise(scores, confidence=0.8)
    assert pairs.keys() == {("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")}
    assert pairs["a", "b"].difference == paired_difference([0.8, 0.7], [0.5, 0.6], confidence=0.8)
    assert pairs["b", "a"].difference == paired_difference([0.5, 0.6], [0.8, 0.7], confidence=0.8)
    assert pairs["a", "c"].difference == (pytest.approx(0.05), None, None, None, 1)
    assert pairs["c", "a"].adjusted_p is None
    assert pairs["a", "b"].adjusted_p == pairs["a", "b"].difference.p  # the only pair with a test


def test_pairs_are_adjusted_over_all_unordered_pairs():
    generator = np.random.default_rng(2)
    scores = {name: dict(enumerate(generator.normal(shift, 1, 6))) for name, shift in [("a", 0), ("b", 2), ("c", 9)]}
    pairs = pairwise(scores)
    order = [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pairs[o].adjusted_p for o in order] == holm([pairs[o].difference.p for o in order])
    assert all(pairs[a, b].adjusted_p == pairs[b, a].adjusted_p for a, b in order)
    assert {pair.tests for pair in pairs.values()} == {3}


def test_against_a_reference_holm_counts_the_pairs_with_it_alone():
    r = np.random.default_rng(3)
    scores = {name: dict(enumerate(r.normal(i / 2, 1, 6))) for i, name in enumerate("abcd")}
    scores["d"] = {4: 0.1, 5: 0.3, 9: 0.2}  # two seeds in common
    pairs, all_pairs = against(scores, "b"), pairwise(scores)
    assert list(pairs) == ["a", "c", "d"]
    raw = {}
    for name, pair in pairs.items():
        assert pair.difference == all_pairs[name, "b"].difference
        common = sorted(scores[name].keys() & scores["b"].keys())
        raw[name] = stats.ttest_rel([scores[name][s] for s in common], [scores["b"][s] for s in common]).pvalue
    for rank, name in enumerate(sorted(raw, key=raw.get)):  # three pairs, not the six of all
        smaller = sorted(raw.values())[: rank + 1]
        expected = max(min(1.0, (3 - i) * p) for i, p in enumerate(smaller))
        assert pairs[name].adjusted_p == pytest.approx(expected)
        assert pairs[name].adjusted_p <= all_pairs[name, "b"].adjusted_p
    assert against({"a": {0: 0.5}, "b": {0: 0.4}}, "b")["a"].adjusted_p is None
    assert against({"a": {0: 0.5}, "b": {1: 0.4}}, "b") == {}
