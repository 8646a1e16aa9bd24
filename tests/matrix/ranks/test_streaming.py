"""Moments and ranks of features in one pass: against everything at once; intervals and expectations."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from matrix_ssl import errors
from matrix_ssl.matrix import covariance, participation_ratio, rank_me, rank_report
from matrix_ssl.matrix.moments import Moments, merged
from matrix_ssl.matrix.ranks.intervals import estimate, expectation, student
from matrix_ssl.matrix.ranks.statistics import RankStatistics
from tests.support.matrix_samples import rows


def skewed(n, d, *, seed=0):
    return rows(n, d, seed=seed) * torch.arange(1, d + 1) ** -0.7 + 0.2


def streamed(x, *sizes, groups=8):
    state = RankStatistics(x.shape[1], groups=groups)
    for part in x.split(list(sizes)):
        state.add(part)
    return state


class TestMoments:
    def test_one_pass_is_the_covariance(self):
        x = skewed(100, 6)
        state = Moments(6)
        for part in x.split([1, 0, 40, 59]):
            state.add(part)
        assert state.count == 100
        torch.testing.assert_close(state.covariance(), covariance(x), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(state.second_moment(), x.mT @ x / 100, rtol=1e-12, atol=1e-15)

    def test_a_large_mean_does_not_cancel(self):
        x = rows(400, 3) + 1e6
        state = Moments(3)
        for part in x.split(7):
            state.add(part)
        exact = torch.from_numpy(np.cov((x - 1e6).numpy().T, bias=True))
        torch.testing.assert_close(state.covariance(), exact, rtol=1e-8, atol=1e-9)
        naive = x.mT @ x / 400 - x.mean(0).outer(x.mean(0))
        assert (naive - exact).abs().max() > 1e-5

    def test_states_merge_in_any_order(self):
        x = skewed(60, 4)
        states = []
        for part in x.split([10, 0, 35, 15]):
            states.append(Moments(4))
            states[-1].add(part)
        for order in itertools.permutations(states):
            torch.testing.assert_close(merged(order).covariance(), covariance(x), rtol=1e-12, atol=1e-15)
        assert states[0].count == 10

    def test_a_state_survives_as_a_tensor(self):
        state = Moments(5)
        state.add(skewed(9, 5))
        again = Moments.unpacked(state.packed())
        assert (again.count, len(again.mean)) == (9, 5)
        assert torch.equal(again.covariance(), state.covariance())

    def test_errors(self):
        state = Moments(3)
        with pytest.raises(errors.MatrixError, match="No features were added"):
            state.covariance()
        with pytest.raises(errors.MatrixShapeError, match=r"shape \(4, 2\): expected \(n, 3\)"):
            state.add(torch.ones(4, 2))
        with pytest.raises(errors.NotFiniteError):
            state.add(torch.tensor([[1.0, 2, 3], [1, math.nan, 3]]))
        assert state.count == 0
        with pytest.raises(errors.MatrixShapeError, match="widths 3 and 2 cannot be merged"):
            state.merge(Moments(2))
        with pytest.raises(errors.MatrixShapeError, match="width=0"):
            Moments(0)


class TestRankStatistics:
    @pytest.mark.parametrize("n", [300, 20])
    def test_is_the_report_of_everything_at_once(self, n):
        x = skewed(n, 40)
        expected = rank_report(x).values()
        for state in (streamed(x, n), streamed(x, 1, n - 8, 7), streamed(x, n, groups=0)):
            assert state.report().values() == pytest.approx(expected, rel=1e-7)  # singular values of 1e-8 are lost

    def test_states_merge_and_travel(self):
        x = skewed(90, 12)
        whole, other = streamed(x[:50], 50), streamed(x[50:], 15, 25)
        again = RankStatistics(12)
        again.merge_packed(whole.packed())
        whole.merge(other)
        again.merge(other)
        assert whole.report().values() == pytest.approx(rank_report(x).values(), rel=1e-9)
        assert again.report() == whole.report()
        with pytest.raises(errors.MatrixShapeError, match="8 and 4 groups cannot be merged"):
            whole.merge(RankStatistics(12, groups=4))

    def test_estimates(self):
        state = streamed(skewed(400, 20), *[25] * 16)
        estimates, report = state.estimates(population=100_000), state.report().values()
        assert set(estimates) == set(report) - {"self_cluster", "lidar"}
        for name, one in estimates.items():
            assert one.value == report[name] and one.samples == 400
            assert one.low <= one.value <= one.high
        assert estimates["rank_me"].quarter < estimates["rank_me"].half < estimates["rank_me"].value
        assert estimates["rank_me"].value < estimates["rank_me"].expected

    def test_intervals_stay_within_the_range(self):
        """Of one state, and of three of unequal groups that are merged."""
        merged_state = streamed(rows(19, 64), 19)
        for count in (20, 21):
            merged_state.merge(streamed(rows(count, 64, seed=count), count))
        full = streamed(rows(5000, 20), 5000)
        for state, most in ((streamed(rows(60, 64), 60), 60), (merged_state, 60), (full, 20)):
            estimates = state.estimates()
            assert estimates["numerical_rank"].low == pytest.approx(most)
            for name in ("rank_me", "effective_rank", "participation_ratio", "stable_rank", "numerical_rank"):
                one = estimates[name]
                assert 1 <= one.low <= one.value <= one.high <= most

    def test_one_direction_has_no_rank_below_one(self):
        state = streamed(torch.linspace(1, 3, 61).outer(torch.ones(4)) + 1e-3 * rows(61, 4), 61)
        assert all(state.estimates()[name].low >= 1 for name in ("rank_me", "effective_rank", "stable_rank"))

    def test_the_state_does_not_grow(self):
        state = RankStatistics(6)
        sizes = set()
        for seed in range(5):
            state.add(skewed(30, 6, seed=seed))
            sizes.add(state.packed().numel())
        assert sizes == {8 * (1 + 6 + 36) + 36 + 2}

    def test_too_few_samples(self):
        with pytest.raises(errors.MatrixShapeError, match="10 samples in 8 groups"):
            streamed(skewed(10, 3), 10).estimates()
        with pytest.raises(errors.MatrixError, match="No features"):
            RankStatistics(3).report()
        with pytest.raises(ValueError, match="multiple of 4, got 6"):
            RankStatistics(3, groups=6)

    def test_a_bad_batch_adds_nothing(self):
        state = streamed(skewed(16, 3), 16)
        before = state.packed()
        with pytest.raises(errors.NotFiniteError):
            state.add(torch.full((2, 3), math.inf))
        assert torch.equal(state.packed(), before)


class TestSampling:
    def test_of_a_mean_it_is_the_interval_of_textbooks(self):
        x = rows(80, 1)
        one = estimate(lambda x: x.mean(), x, groups=8, seed=3)
        order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
        means = x[order].view(8, 10).mean(1).numpy()
        margin = scipy.stats.t.ppf(0.975, 7) * means.std(ddof=1) / math.sqrt(8)
        assert one.high - one.value == pytest.approx(margin, rel=1e-3)
        assert [one.quarter, one.half] == pytest.approx([one.value] * 2)

    def test_intervals_hold_what_other_samples_of_the_size_give(self):
        truth = np.mean([rank_me(skewed(64, 10, seed=seed)).item() for seed in range(200)])
        intervals = [estimate(rank_me, skewed(64, 10, seed=1000 + seed)) for seed in range(60)]
        inside = sum(one.low <= truth <= one.high for one in intervals)
        assert 50 <= inside <= 60

    @pytest.mark.parametrize("n", [96, 97, 100, 103])
    def test_groups_of_unequal_size_do_not_widen_intervals(self, n):
        """Of fewer samples than columns, where a rank grows with every sample."""

        def fresh(seed):
            return torch.randn(n, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

        honest = 1.96 * np.std([rank_me(fresh(seed)).item() for seed in range(40)])
        intervals = [estimate(rank_me, fresh(100 + seed)) for seed in range(6)]
        assert 0.5 * honest < np.mean([(one.high - one.low) / 2 for one in intervals]) < 3 * honest

    def test_a_number_of_samples_has_no_error(self):
        one = estimate(lambda x: torch.tensor(len(x)), rows(61, 3))
        assert one.low == pytest.approx(61) and one.high == pytest.approx(61)

    def test_the_expectation_is_nearer_to_the_truth_than_the_value(self):
        """Independent columns: the participation ratio of infinitely many samples is known."""
        scales = torch.arange(1, 31).double() ** -0.5
        truth = scales.square().sum().item() ** 2 / scales.pow(4).sum().item()
        estimates = [estimate(participation_ratio, rows(160, 30, seed=s) * scales, population=10**6) for s in range(20)]
        value, expected = (np.mean([getattr(one, key) for one in estimates]) for key in ("value", "expected"))
        assert abs(expected - truth) < 0.5 * abs(value - truth)
        assert value < truth

    @pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
    def test_a_power_is_continued_exactly(self, power):
        def bias(n):
            return 100 - 40 * n**-power

        assert expectation(bias(25), bias(50), bias(100), 1000) == pytest.approx(bias(100_000), rel=1e-12)

    def test_without_a_trend_that_slows_down(self):
        assert expectation(1.0, 2.0, 3.0, 10) is None
        assert expectation(1.0, 2.0, 1.9, 10) == 1.9
        assert expectation(2.0, 2.0, 2.0, 10) == 2.0
        assert expectation(1.0, 2.0, 2.5, 1) == 2.5
        assert expectation(2.0, 2.0, 2.5, 10) is None

    @pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
    @pytest.mark.parametrize("freedom", [3, 7, 31])
    def test_student(self, level, freedom):
        exact = scipy.stats.t.ppf((1 + level) / 2, freedom)
        assert student(level, freedom) == pytest.approx(exact, rel=0.02)

    def test_errors(self):
        with pytest.raises(errors.MatrixShapeError, match="at least 16 rows"):
            estimate(rank_me, skewed(15, 3))
        with pytest.raises(ValueError, match="got 5"):
            estimate(rank_me, skewed(50, 3), groups=5)
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
            estimate(rank_me, skewed(50, 3), level=95)
        for population in (49, 0, -5):
            with pytest.raises(ValueError, match=f"population must be 50, .* or larger, got {population}"):
                estimate(rank_me, skewed(50, 3), population=population)
            with pytest.raises(ValueError, match="population must be 50"):
                streamed(skewed(50, 3), 50).estimates(population=population)
        assert estimate(rank_me, skewed(50, 3), population=50).expected is not None
