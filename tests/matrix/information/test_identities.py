"""What the theory says of entropies, divergences and kernels, on random matrices."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from matrix_ssl.matrix import (
    coding_rate,
    conditional_entropy,
    dual_total_correlation,
    effective_rank,
    entropy_difference_ratio,
    gaussian_kernel,
    holevo_information,
    interaction_information,
    jensen_renyi_divergence,
    joint_entropy,
    log_det,
    low_rank_entropy,
    matrix_cross_entropy,
    matrix_entropy,
    matrix_kl,
    matrix_mutual_information_ratio,
    min_entropy,
    mutual_information,
    normalised_mutual_information,
    of_features,
    renyi_entropy,
    schatten_divergence,
    shannon_entropy,
    total_correlation,
    truncated_entropy,
    tsallis_entropy,
    vendi_score,
    von_neumann_entropy,
)
from tests.support.matrix_samples import eigenvalue_lists, pairs, positive, rows, unit_kernel

seeds = st.integers(0, 1000)
orders = st.one_of(st.sampled_from([0.0, 1.0, 2.0, math.inf]), st.floats(0.01, 20))
often = settings(max_examples=40, deadline=None)


def density(eigenvalues, seed=0):
    return positive(np.array(eigenvalues) / sum(eigenvalues), seed=seed)


class TestDivergence:
    @given(pairs, seeds)
    @often
    def test_is_not_negative_and_closes_the_cross_entropy(self, eigenvalues, seed):
        p, q = positive(eigenvalues[0], seed=seed), positive(eigenvalues[1], seed=seed + 1)
        divergence = matrix_kl(p, q).item()
        assert divergence > -1e-10
        assert matrix_cross_entropy(p, q).item() == pytest.approx(divergence + matrix_entropy(p).item(), abs=1e-10)
        assert matrix_kl(p, p).item() == pytest.approx(0, abs=1e-10)
        if torch.linalg.matrix_norm(p - q) > 1e-2:
            assert divergence > 1e-7

    @given(pairs, seeds)
    @often
    def test_unitary_invariance(self, eigenvalues, seed):
        p, q = positive(eigenvalues[0], seed=seed), positive(eigenvalues[1], seed=seed + 1)
        u = torch.linalg.qr(rows(len(p), len(p), seed=seed))[0]
        a, b = ((x + x.mT) / 2 for x in (u @ p @ u.mT, u @ q @ u.mT))
        assert matrix_kl(a, b).item() == pytest.approx(matrix_kl(p, q).item(), abs=1e-10)
        for function in (matrix_entropy, von_neumann_entropy, log_det, effective_rank):
            assert function(a).item() == pytest.approx(function(p).item(), abs=1e-10)

    @given(pairs, st.floats(0.1, 10))
    @often
    def test_scaling_both_scales_it(self, eigenvalues, factor):
        p, q = positive(eigenvalues[0]), positive(eigenvalues[1], seed=1)
        expected = factor * matrix_kl(p, q).item()
        assert matrix_kl(factor * p, factor * q).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)

    @given(pairs, pairs)
    @often
    def test_additivity_over_kronecker_products(self, first, second):
        p1, q1, p2, q2 = (density(v, seed=s) for s, v in enumerate((*first, *second)))
        p, q = torch.kron(p1, p2), torch.kron(q1, q2)
        expected = matrix_kl(p1, q1).item() + matrix_kl(p2, q2).item()
        assert matrix_kl(p, q).item() == pytest.approx(expected, abs=1e-9)

    @given(pairs)
    @often
    @pytest.mark.filterwarnings("ignore:logm result may be inaccurate:RuntimeWarning")  # by 4e-13
    def test_definition_with_scipy(self, eigenvalues):
        p, q = positive(eigenvalues[0]), positive(eigenvalues[1], seed=1)
        p_, q_ = p.numpy(), q.numpy()
        expected = np.trace(p_ @ scipy.linalg.logm(p_) - p_ @ scipy.linalg.logm(q_) - p_ + q_)
        assert matrix_kl(p, q).item() == pytest.approx(expected, abs=1e-9)


class TestEntropy:
    @given(eigenvalue_lists, seeds)
    @often
    def test_lies_between_rank_one_and_uniform(self, eigenvalues, seed):
        d, a = len(eigenvalues), positive(eigenvalues, seed=seed)
        assert -1e-10 <= von_neumann_entropy(a).item() <= math.log(d) + 1e-10
        assert von_neumann_entropy(torch.eye(d) * 3).item() == pytest.approx(math.log(d), abs=1e-6)
        rho = density(eigenvalues, seed=seed)
        assert matrix_entropy(rho).item() == pytest.approx(von_neumann_entropy(a).item() + 1, abs=1e-10)
        assert matrix_entropy(rho).item() <= matrix_entropy(torch.eye(d).double() / d).item() + 1e-10

    @given(eigenvalue_lists, eigenvalue_lists, orders)
    @often
    def test_additivity_over_kronecker_products(self, first, second, alpha):
        a, b = positive(first), positive(second, seed=1)
        expected = sum(renyi_entropy(x, alpha=alpha).item() for x in (a, b))
        assert renyi_entropy(torch.kron(a, b), alpha=alpha).item() == pytest.approx(expected, abs=1e-9)

    @given(eigenvalue_lists, orders, orders)
    @often
    def test_renyi_does_not_increase_with_its_order(self, eigenvalues, first, second):
        a = positive(eigenvalues)
        low, high = sorted((first, second))
        assert renyi_entropy(a, alpha=high).item() <= renyi_entropy(a, alpha=low).item() + 1e-10

    @given(eigenvalue_lists, st.sampled_from([1e-12, 1e-9, 1e-6, 1e-3]), st.sampled_from([-1, 1]))
    @often
    def test_renyi_is_continuous_at_one(self, eigenvalues, step, sign):
        a = positive(eigenvalues)
        found, limit = renyi_entropy(a, alpha=1 + sign * step).item(), von_neumann_entropy(a).item()
        assert abs(found - limit) <= 40 * step + 1e-12  # half the variance of log p, at most log(5000)² / 2
        assert (found - limit) * sign <= 1e-12

    @given(eigenvalue_lists, seeds, st.floats(1.5, 300))
    @often
    def test_renyi_tends_to_the_min_entropy(self, eigenvalues, seed, alpha):
        a = positive(eigenvalues, seed=seed)
        least = min_entropy(a).item()
        assert least - 1e-10 <= renyi_entropy(a, alpha=alpha).item() <= alpha / (alpha - 1) * least + 1e-10

    @given(eigenvalue_lists, st.sampled_from([0.75, 1.25]))
    @often
    def test_renyi_is_continuous_where_the_formula_changes(self, eigenvalues, border):
        a = positive(eigenvalues)
        left, right = (renyi_entropy(a, alpha=border + e).item() for e in (-1e-10, 1e-10))
        assert left == pytest.approx(right, abs=1e-8)

    @given(eigenvalue_lists, seeds, st.floats(0.01, 1))
    @often
    def test_a_ridge_does_not_lower_it(self, eigenvalues, seed, ridge):
        a = positive(eigenvalues, seed=seed)
        assert von_neumann_entropy(a, ridge=ridge).item() >= von_neumann_entropy(a).item() - 1e-10


class TestKernels:
    @given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 6), orders, seeds)
    @often
    def test_joint_entropy_is_not_below_either(self, n, d, e, alpha, seed):
        k1, k2 = unit_kernel(n, d, seed=seed), unit_kernel(n, e, seed=seed + 1)
        assume(alpha == 0 or alpha >= 0.3)  # below, rounding decides what an eigenvalue of 1e-14 counts for
        single = [renyi_entropy(k, alpha=alpha).item() for k in (k1, k2)]
        assert joint_entropy(k1, k2, alpha=alpha).item() >= max(single) - 1e-6
        assert mutual_information(k1, k2, alpha=alpha).item() <= min(single) + 1e-6

    @given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.0, 1.0]), seeds)
    @often
    def test_mutual_information_is_not_negative_for_orders_zero_and_one(self, n, d, e, alpha, seed):
        k1, k2 = 2 * unit_kernel(n, d, seed=seed), unit_kernel(n, e, seed=seed + 1)
        assert mutual_information(k1, k2, alpha=alpha).item() >= -1e-10

    def test_mutual_information_of_order_two_can_be_negative(self):
        labels = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 0]])
        k1, k2 = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).double()
        expected = math.log(0.44 / 0.68**2)
        assert expected < -0.04
        assert mutual_information(k1, k2, alpha=2).item() == pytest.approx(expected, abs=1e-12)
        assert mutual_information(k1, k2).item() > 0.05

    @given(st.integers(1, 4), st.integers(1, 4), orders, seeds)
    @often
    def test_independent_factors(self, n, m, alpha, seed):
        assume(alpha == 0 or alpha >= 0.3)
        a, b = unit_kernel(n, n + 1, seed=seed), unit_kernel(m, m + 1, seed=seed + 1)
        k1 = torch.kron(a, torch.ones(m, m, dtype=a.dtype))
        k2 = torch.kron(torch.ones(n, n, dtype=b.dtype), b)
        expected = renyi_entropy(a, alpha=alpha).item() + renyi_entropy(b, alpha=alpha).item()
        assert joint_entropy(k1, k2, alpha=alpha).item() == pytest.approx(expected, abs=1e-6)
        assert mutual_information(k1, k2, alpha=alpha).item() == pytest.approx(0, abs=1e-6)

    @given(st.integers(1, 8), st.integers(1, 6), seeds)
    @often
    def test_a_constant_and_an_identity(self, n, d, seed):
        k = unit_kernel(n, d, seed=seed)
        assert mutual_information(k, torch.ones_like(k)).item() == pytest.approx(0, abs=1e-10)
        identity = torch.eye(n, dtype=k.dtype)
        assert mutual_information(k, identity).item() == pytest.approx(von_neumann_entropy(k).item(), abs=1e-10)

    def test_with_itself_a_kernel_of_labels_gives_its_entropy(self):
        labels = torch.tensor([0, 0, 1, 2, 2, 2])
        k = (labels.unsqueeze(-1) == labels).double()
        p = np.array([2, 1, 3]) / 6
        assert mutual_information(k, k).item() == pytest.approx(-(p * np.log(p)).sum(), abs=1e-12)


class TestSeveralKernels:
    """What holds for kernels with a diagonal of one, and what of information theory does not."""

    @given(st.integers(1, 7), st.integers(1, 6), st.sampled_from([0.0, 1.0]), seeds)
    @often
    def test_subadditivity(self, n, d, alpha, seed):
        grams = [unit_kernel(n, d, seed=seed + s) for s in range(3)]
        single = [renyi_entropy(k, alpha=alpha).item() for k in grams]
        assert joint_entropy(*grams, alpha=alpha).item() <= sum(single) + 1e-9
        total = total_correlation(*grams, alpha=alpha).item()
        assert -1e-9 <= total <= sum(single) - max(single) + 1e-9

    @given(st.integers(1, 7), st.integers(1, 6), orders, seeds)
    @often
    def test_chain_rules(self, n, d, alpha, seed):
        assume(alpha == 0 or alpha >= 0.3)
        x, y, z = (unit_kernel(n, d, seed=seed + s) for s in range(3))
        value = lambda function, *grams: function(*grams, alpha=alpha).item()  # noqa: E731
        chain = value(joint_entropy, x) + value(conditional_entropy, y, x)
        chain += conditional_entropy(z, [x, y], alpha=alpha).item()
        assert value(joint_entropy, x, y, z) == pytest.approx(chain, abs=1e-9)
        shared = value(mutual_information, x, y)
        assert shared == pytest.approx(value(joint_entropy, x) - value(conditional_entropy, x, y), abs=1e-9)
        pairs = sum(value(mutual_information, *pair) for pair in ((x, y), (x, z), (y, z)))
        total, interaction = value(total_correlation, x, y, z), value(interaction_information, x, y, z)
        assert total == pytest.approx(pairs + interaction, abs=1e-9)
        assert total - value(dual_total_correlation, x, y, z) == pytest.approx(-interaction, abs=1e-9)

    @given(st.integers(1, 7), st.integers(1, 6), orders, seeds)
    @often
    def test_conditional_entropy_is_not_negative(self, n, d, alpha, seed):
        assume(alpha == 0 or alpha >= 0.3)
        x, y = unit_kernel(n, d, seed=seed), unit_kernel(n, d, seed=seed + 1)
        found = conditional_entropy(x, y, alpha=alpha).item()
        assert found >= -1e-6
        if alpha in (0, 1):
            assert found <= renyi_entropy(x, alpha=alpha).item() + 1e-9

    @given(st.integers(2, 7), st.integers(1, 6), seeds)
    @often
    def test_ratios_lie_between_zero_and_one(self, n, d, seed):
        x, y = unit_kernel(n, d, seed=seed), unit_kernel(n, d + 1, seed=seed + 1)
        for function in (matrix_mutual_information_ratio, entropy_difference_ratio):
            assert -1e-9 <= function(x, y).item() <= 1 + 1e-9
        ordered = [normalised_mutual_information(x, y, by=by).item() for by in ("joint", "max", "mean", "min")]
        assert ordered == sorted(ordered) or max(ordered) - min(ordered) < 1e-6
        mean = normalised_mutual_information(x, y, by="geometric_mean").item()
        assert ordered[2] - 1e-6 <= mean <= ordered[3] + 1e-6

    @given(st.integers(1, 6), st.integers(1, 5), orders, seeds)
    @often
    def test_the_order_of_samples_does_not_matter(self, n, d, alpha, seed):
        assume(alpha == 0 or alpha >= 0.3)
        grams = [unit_kernel(n, d, seed=seed + s) for s in range(3)]
        order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
        found = total_correlation(*(k[order][:, order] for k in grams), alpha=alpha).item()
        assert found == pytest.approx(total_correlation(*grams, alpha=alpha).item(), abs=1e-9)

    @given(st.integers(1, 6), st.integers(1, 5), seeds)
    @often
    def test_strong_subadditivity_at_order_one(self, n, d, seed):
        x, y, z = (unit_kernel(n, d, seed=seed + s) for s in range(3))
        assert conditional_entropy(x, [y, z]).item() <= conditional_entropy(x, y).item() + 1e-9
        assert dual_total_correlation(x, y, z).item() >= -1e-9

    def test_strong_subadditivity_fails_at_other_orders(self):
        """Kernels of labels: entropies of Rényi order 2 of the partitions, whose mutual information is negative."""
        labels = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 0]])
        x, z = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).double()
        nothing = torch.ones_like(x)
        found = (
            conditional_entropy(x, [nothing, z], alpha=2.0).item() - conditional_entropy(x, nothing, alpha=2.0).item()
        )
        assert found == pytest.approx(-math.log(0.44 / 0.68**2), abs=1e-12)
        assert found > 0.04

    @given(st.integers(2, 7), st.integers(1, 6), seeds)
    @often
    def test_data_processing_of_a_factor(self, n, d, seed):
        """A Gaussian kernel of fewer columns, or of a larger width, shares no more with x."""
        x, features = unit_kernel(n, d, seed=seed), rows(n, d + 1, seed=seed + 1)
        whole = mutual_information(x, gaussian_kernel(features, width=1.0)).item()
        assert mutual_information(x, gaussian_kernel(features[:, :d], width=1.0)).item() <= whole + 1e-9
        assert mutual_information(x, gaussian_kernel(features, width=1.7)).item() <= whole + 1e-9

    def test_data_processing_fails_for_a_linear_map(self):
        """Two classes whose features are 6 degrees apart; an invertible linear map makes them orthogonal."""
        x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)
        y = torch.tensor([[1.0, 0], [1, 0], [1, 0.1], [1, 0.1]], dtype=torch.float64)
        mapped = y @ torch.tensor([[1.0, 0], [-10, 10]], dtype=torch.float64)
        assert of_features.mutual_information(x, mapped).item() == pytest.approx(math.log(2), abs=1e-12)
        assert of_features.mutual_information(x, y).item() < 0.02


class TestVendi:
    @given(st.integers(1, 8), st.integers(1, 6), orders, seeds)
    @often
    def test_lies_between_one_and_the_number_of_samples(self, n, d, order, seed):
        k = unit_kernel(n, d, seed=seed)
        assert 1 - 1e-9 <= vendi_score(k, order=order).item() <= n + 1e-9

    @given(st.integers(2, 6), st.integers(1, 6), st.sampled_from([0.5, 1.0, 2.0, 5.0, math.inf]), seeds)
    @often
    def test_copies_of_a_sample_that_share_its_weight(self, n, d, order, seed):
        x = rows(n, d, seed=seed)
        weights = torch.ones(n, dtype=torch.float64)
        halves = torch.cat([weights, weights[:1] / 2])
        halves[0] = 0.5
        found = of_features.vendi_score(torch.cat([x, x[:1]]), order=order, weights=halves).item()
        assert found == pytest.approx(of_features.vendi_score(x, order=order).item(), rel=1e-6)


class TestStates:
    @given(pairs, st.floats(0.05, 0.95), st.sampled_from([0.3, 0.5, 0.9, 1.0]), seeds)
    @often
    def test_jensen_renyi_is_not_negative_up_to_order_one(self, eigenvalues, weight, alpha, seed):
        states = [density(v, seed=seed + s) for s, v in enumerate(eigenvalues)]
        found = jensen_renyi_divergence(*states, alpha=alpha, weights=[weight, 1 - weight]).item()
        assert found >= -1e-9
        if alpha == 1:
            bound = -weight * math.log(weight) - (1 - weight) * math.log(1 - weight)
            distance = schatten_divergence(*states).item()
            assert found <= bound + 1e-9
            assert found >= weight * (1 - weight) / 2 * distance**2 - 1e-9  # Pinsker

    @given(pairs, st.floats(0.05, 0.95), seeds)
    @often
    def test_holevo_is_a_mean_divergence_to_the_mixture(self, eigenvalues, weight, seed):
        states = [density(v, seed=seed + s) for s, v in enumerate(eigenvalues)]
        mixture = weight * states[0] + (1 - weight) * states[1]
        expected = weight * matrix_kl(states[0], mixture).item() + (1 - weight) * matrix_kl(states[1], mixture).item()
        assert holevo_information(*states, weights=[weight, 1 - weight]).item() == pytest.approx(expected, abs=1e-9)

    @given(pairs, seeds)
    @often
    def test_schatten_norms_fall_with_the_order(self, eigenvalues, seed):
        states = [density(v, seed=seed + s) for s, v in enumerate(eigenvalues)]
        found = [schatten_divergence(*states, order=order).item() for order in (1.0, 1.5, 2.0, 4.0, math.inf)]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(found))
        assert found[0] <= 2 + 1e-12

    @given(eigenvalue_lists, orders)
    @often
    def test_tsallis_and_renyi_are_functions_of_each_other(self, eigenvalues, alpha):
        assume(alpha < math.inf and alpha != 1)
        a = positive(eigenvalues)
        expected = math.expm1((1 - alpha) * renyi_entropy(a, alpha=alpha).item()) / (1 - alpha)
        assert tsallis_entropy(a, alpha=alpha).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)

    @given(eigenvalue_lists, st.integers(1, 6))
    @often
    def test_truncation(self, eigenvalues, k):
        assume(k <= len(eigenvalues))
        a = positive(eigenvalues)
        assert truncated_entropy(a, k=k).item() <= von_neumann_entropy(a).item() + 1e-10
        assert low_rank_entropy(a, k=k, alpha=1.0).item() >= von_neumann_entropy(a).item() - 1e-10
        assert min_entropy(a).item() <= renyi_entropy(a, alpha=2).item() + 1e-10 <= 2 * min_entropy(a).item() + 2e-10


class TestRank:
    @given(
        st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), seeds, st.sampled_from([torch.float32, torch.float64])
    )
    @often
    def test_lies_between_one_and_the_rank(self, n, d, rank, seed, dtype):
        x = rows(n, d, rank=rank, seed=seed, dtype=dtype)
        bound = min(n, d, rank)
        assert 1 - 1e-6 <= effective_rank(x).item() <= bound * (1 + 1e-6)
        assert 1 - 1e-6 <= of_features.effective_rank(x).item() <= bound * (1 + 1e-5)

    @given(st.integers(1, 7), st.integers(1, 7), seeds, st.floats(0.1, 2))
    @often
    def test_coding_rate_of_orthogonal_features(self, k, extra, seed, distortion):
        z = torch.linalg.qr(rows(k + extra, k, seed=seed))[0]  # ZᵀZ = I
        expected = k / 2 * math.log1p(k / ((k + extra) * distortion**2))
        assert coding_rate(z, distortion=distortion).item() == pytest.approx(expected, abs=1e-10)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda v: sum(v) > 0.1))
    @often
    def test_shannon_entropy_counts_directions(self, values):
        p = torch.tensor(values, dtype=torch.float64)
        assert -1e-12 <= shannon_entropy(p).item() <= math.log(int((p > 0).sum())) + 1e-9
        assert shannon_entropy(p).item() == pytest.approx(scipy.stats.entropy(values), abs=1e-12)
