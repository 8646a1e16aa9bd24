"""eRank, Diff-eRank, matrix nuclear norm and their streamed sums, against textbook versions by NumPy's SVD."""

import math

import numpy as np
import pytest
import torch

from matrix_ssl.errors import MatrixError, MatrixShapeError, NotFiniteError
from matrix_ssl.llm.diagnose.measures import TokenStatistics, curvature, diff_erank, erank, matrix_nuclear_norm
from matrix_ssl.matrix import lidar, matrix_entropy
from matrix_ssl.matrix.comparison.dime import VIEWS
from matrix_ssl.training.diagnostics import describe


def tokens(n=12, d=7, *, seed=0, mean=3.0):
    """Rows that share a direction, of unequal lengths, as in a language model."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.3, 2, d) + mean * torch.ones(d)


def textbook_unit(x):
    """Rows minus their mean, over their lengths."""
    z = x.numpy() - x.numpy().mean(axis=0)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def textbook_entropy(x):
    """-Σ p log p of the singular values of ZᵀZ / n over their sum."""
    z = textbook_unit(x)
    p = np.linalg.svd(z.T @ z / len(z), compute_uv=False)
    p = p / p.sum()
    return float(-(p[p > 1e-14] * np.log(p[p > 1e-14])).sum())


def textbook_nuclear_norm(x):
    z = textbook_unit(x)
    columns = sorted(np.sqrt((z**2).sum(axis=0)), reverse=True)
    return float(sum(columns[: min(z.shape)]) / len(z))


def textbook_covariance_entropy(x):
    p = np.linalg.eigvalsh(np.cov(x.numpy(), rowvar=False))
    p = p[p > 1e-14] / p.sum()
    return float(-(p * np.log(p)).sum())


def rotation(d, seed=1):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


class TestFunctions:
    @pytest.mark.parametrize("shape", [(12, 7), (5, 9), (2, 3), (40, 1)])
    def test_against_the_textbook(self, shape):
        x = tokens(*shape)
        assert erank(x).item() == pytest.approx(math.exp(textbook_entropy(x)), rel=1e-10)
        assert matrix_nuclear_norm(x).item() == pytest.approx(textbook_nuclear_norm(x), rel=1e-12)

    @pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
    def test_dtypes(self, dtype, error):
        x = tokens()
        for function in (erank, matrix_nuclear_norm):
            found = function(x.to(dtype))
            assert found.dtype == torch.float32
            assert found.item() == pytest.approx(function(x).item(), rel=error)

    def test_batches(self):
        x = torch.stack([tokens(seed=i) for i in range(6)]).view(2, 3, 12, 7)
        for function in (erank, matrix_nuclear_norm):
            assert function(x).shape == (2, 3)
            assert function(x)[1, 2] == pytest.approx(function(x[1, 2]).item(), rel=1e-12)

    @pytest.mark.parametrize(("n", "d"), [(5, 8), (8, 8), (2, 8)])
    def test_orthogonal_tokens_lose_one_direction(self, n, d):
        assert erank(3 * torch.eye(n, d, dtype=torch.float64)).item() == pytest.approx(n - 1, rel=1e-12)

    def test_more_tokens_than_directions(self):
        """Every axis in both signs has the mean zero and spreads evenly."""
        axes = torch.eye(6, dtype=torch.float64)
        x = torch.cat([axes, -axes])
        assert erank(x).item() == pytest.approx(6, rel=1e-12)
        assert matrix_nuclear_norm(x).item() == pytest.approx(math.sqrt(6 / 12), rel=1e-12)  # its upper bound

    def test_tokens_on_a_line_have_rank_one(self):
        line = torch.tensor([1.0, -2.0, 0.5, 4.0])[:, None] * torch.tensor([1.0, 2.0, -1.0]) + 5
        assert erank(line).item() == pytest.approx(1, abs=1e-6)
        # all rows are ± one vector v of length 1: the columns are √n |v_j| long
        v = torch.tensor([1.0, 2.0, -1.0]) / math.sqrt(6)
        assert matrix_nuclear_norm(line).item() == pytest.approx(v.abs().sum().item() / 2, rel=1e-6)

    def test_two_tokens_are_opposite(self):
        assert erank(tokens(2, 7)).item() == pytest.approx(1, rel=1e-10)

    def test_what_does_not_matter(self):
        x = tokens()
        shifted, permuted = x - 11, x[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))] * -1
        for function in (erank, matrix_nuclear_norm):
            for same in (250 * x, shifted, permuted, x.flip(0)):
                assert function(same).item() == pytest.approx(function(x).item(), rel=1e-9)
        assert erank(x @ rotation(7)).item() == pytest.approx(erank(x).item(), rel=1e-10)

    def test_the_nuclear_norm_depends_on_the_axes(self):
        """It bounds the true one from above where d ≤ n; the true one is the same in all axes."""
        x = tokens()
        turned = x @ rotation(7)
        assert abs(matrix_nuclear_norm(turned) - matrix_nuclear_norm(x)) > 1e-3
        true = np.linalg.svd(textbook_unit(x), compute_uv=False).sum() / 12
        for y in (x, turned):
            assert true < matrix_nuclear_norm(y).item() < math.sqrt(7 / 12)

    def test_a_token_at_the_mean_adds_nothing(self):
        x = tokens(6, 5, mean=0)
        x = torch.cat([x, x.mean(0, keepdim=True)])
        assert erank(x).item() == pytest.approx(erank(x[:6]).item(), rel=1e-10)

    def test_diff_erank(self):
        trained, untrained = tokens(12, 7), torch.eye(12, 7, dtype=torch.float64)
        expected = math.exp(textbook_entropy(untrained)) - math.exp(textbook_entropy(trained))
        assert diff_erank(untrained, trained).item() == pytest.approx(expected, rel=1e-10)
        assert diff_erank(trained, untrained).item() == pytest.approx(-expected, rel=1e-10)
        with pytest.raises(MatrixShapeError, match=r"\(12, 7\) and \(11, 7\): pass the representations of the same"):
            diff_erank(untrained, trained[1:])


class TestErrors:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("function", [erank, matrix_nuclear_norm])
    def test_equal_tokens(self, function, dtype):
        x = tokens(1, 7).repeat(9, 1).to(dtype)
        with pytest.raises(MatrixError, match=r"all 9 rows are equal up to rounding"):
            function(x)
        noise = 1 + torch.randn(9, 7, generator=torch.Generator().manual_seed(0)) * torch.finfo(dtype).eps / 2
        with pytest.raises(MatrixError, match=r"all 9 rows are equal up to rounding"):
            function(x * noise.to(dtype))

    def test_one_window_of_several_with_equal_tokens(self):
        x = torch.stack([tokens(), tokens(1, 7).repeat(12, 1)])
        with pytest.raises(MatrixError, match=r"shape \(2, 12, 7\)\): all 12 rows are equal"):
            erank(x)

    def test_others(self):
        with pytest.raises(MatrixShapeError, match=r"shape \(1, 7\)\): 1 token has no spread"):
            erank(tokens(1))
        x = tokens()
        x[3, 2] = math.nan
        with pytest.raises(NotFiniteError, match=r"1 NaN .* the first at \(3, 2\)"):
            matrix_nuclear_norm(x)
        with pytest.raises(MatrixError, match=r"No window was added"):
            TokenStatistics().measures()


class TestCurvature:
    def test_against_a_loop(self):
        x = tokens(6, 4).numpy()
        angles = []
        for before, here, after in zip(x, x[1:], x[2:], strict=False):
            u, v = here - before, after - here
            angles.append(math.acos(u @ v / math.sqrt(u @ u) / math.sqrt(v @ v)))
        assert curvature(tokens(6, 4)).item() == pytest.approx(np.mean(angles), rel=1e-12)
        assert curvature(2 * tokens(6, 4) @ rotation(4) + 1).item() == pytest.approx(np.mean(angles), rel=1e-9)

    def test_known_angles(self):
        line = torch.tensor([[0.0, 1], [1, 2], [3, 4], [4, 5]])
        assert curvature(line).item() == pytest.approx(0, abs=1e-3)
        assert curvature(torch.eye(3).repeat(2, 1)).item() == pytest.approx(2 * math.pi / 3, rel=1e-6)
        back = torch.tensor([[0.0], [1], [0], [1]])
        assert curvature(back).item() == pytest.approx(math.pi)
        assert curvature(torch.zeros(3, 2)).item() == pytest.approx(math.pi / 2)  # no direction
        with pytest.raises(MatrixShapeError, match="an angle needs three tokens"):
            curvature(tokens(2, 3))


class TestViews:
    def test_normalised_entropies_and_halves(self):
        statistics, x = TokenStatistics(), torch.stack([tokens(8, 5, seed=i, mean=i) for i in range(6)])
        statistics.add(x)
        found = statistics.measures()
        assert found.normalised_matrix_entropy == pytest.approx(found.matrix_entropy / math.log(5), rel=1e-12)
        assert found.token_entropy == pytest.approx(math.log(found.erank), rel=1e-12)
        assert found.normalised_token_entropy == pytest.approx(found.token_entropy / math.log(5), rel=1e-12)
        assert found.curvature == pytest.approx(curvature(x).mean().item(), rel=1e-12)
        halves = torch.stack([x[:, :4].mean(1), x[:, 4:].mean(1)], 1)
        scale = halves.flatten(0, 1).std(0, correction=0).square().mean().sqrt()
        assert found.lidar == pytest.approx(lidar(halves / scale).item(), rel=1e-9)
        assert found.dime > 0  # windows of different means are told apart by either half

    def test_halves_that_share_nothing(self):
        statistics = TokenStatistics()
        statistics.add(torch.stack([tokens(8, 40, seed=i, mean=0) for i in range(30)]))
        assert abs(statistics.measures().dime) < 0.05

    def test_what_is_not_defined_is_none(self):
        statistics = TokenStatistics()
        statistics.add(tokens(2, 3)[None])
        found = statistics.measures()
        assert [found.normalised_token_entropy, found.curvature, found.dime, found.lidar] == [None] * 4


class TestStream:
    def windows(self, count=5, n=12, d=7):
        """Windows whose means differ, so that one mean for all would be another measure."""
        return torch.stack([tokens(n, d, seed=i, mean=4.0 * i - 3) for i in range(count)])

    def test_against_the_textbook(self):
        x, found = self.windows(), TokenStatistics()
        found.add(x)
        measures = found.measures()
        assert (measures.windows, measures.tokens) == (5, 60)
        assert measures.erank == pytest.approx(math.exp(np.mean([textbook_entropy(w) for w in x])), rel=1e-10)
        assert measures.matrix_nuclear_norm == pytest.approx(np.mean([textbook_nuclear_norm(w) for w in x]), rel=1e-12)
        entropy = textbook_covariance_entropy(x.flatten(0, 1))
        assert measures.matrix_entropy == pytest.approx(entropy, rel=1e-10)
        assert measures.effective_rank == pytest.approx(math.exp(entropy), rel=1e-10)
        # neither the mean of eranks nor one centring for all tokens
        assert abs(measures.erank - np.mean([erank(w).item() for w in x])) > 1e-4
        assert abs(measures.erank - erank(x.flatten(0, 1)).item()) > 0.1

    def test_one_window_is_the_function(self):
        x, found = tokens(), TokenStatistics()
        found.add(x[None])
        assert found.measures().erank == pytest.approx(erank(x).item(), rel=1e-12)
        assert found.measures().matrix_nuclear_norm == pytest.approx(matrix_nuclear_norm(x).item(), rel=1e-12)

    def test_the_same_entropy_as_the_package_has_elsewhere(self):
        x, found = self.windows(), TokenStatistics()
        found.add(x)
        rows = x.flatten(0, 1)
        values, _ = describe(rows, rows, rows)
        assert found.measures().matrix_entropy == pytest.approx(values["matrix_entropy"].item(), rel=1e-10)
        covariance = torch.from_numpy(np.cov(rows.numpy(), rowvar=False))
        scaled = matrix_entropy(covariance / covariance.trace())
        assert found.measures().matrix_entropy == pytest.approx(scaled.item() - 1, rel=1e-10)

    def test_streaming_equals_one_shot(self):
        x, whole, parts, turned = self.windows(), TokenStatistics(), TokenStatistics(), TokenStatistics()
        whole.add(x)
        for part in (x[:1], x[1:4], x[4:]):
            parts.add(part)
        turned.add(x.flip(0))
        expected = vars(whole.measures())
        assert vars(parts.measures()) == pytest.approx(expected, rel=1e-12)
        permuted = {"dime": expected["dime"]}  # by the same permutations of a different order
        assert vars(turned.measures()) | permuted == pytest.approx(expected, rel=1e-12)

    def test_windows_of_other_lengths(self):
        long, short, found = tokens(30), tokens(4, seed=1, mean=-2), TokenStatistics()
        found.add(long[None])
        found.add(short[None])
        measures = found.measures()
        entropy = textbook_covariance_entropy(torch.cat([long, short]))
        assert measures.matrix_entropy == pytest.approx(entropy, rel=1e-10)
        expected = math.exp((textbook_entropy(long) + textbook_entropy(short)) / 2)
        assert measures.erank == pytest.approx(expected, rel=1e-10)

    def test_padding_does_not_count(self):
        x, plain, padded = self.windows(2), TokenStatistics(), TokenStatistics()
        plain.add(x[:1, :9])
        plain.add(x[1:])
        mask = torch.ones(2, 12, dtype=torch.long)
        mask[0, 9:] = 0
        x[0, 9:] = 1e6
        padded.add(x, mask=mask)
        assert vars(padded.measures()) == vars(plain.measures())

    def test_a_large_mean_costs_no_digits(self):
        """E[xxᵀ] - E[x]E[x]ᵀ would lose them all: the mean's square is 1e16 times the variance."""
        x, near, far = self.windows(), TokenStatistics(), TokenStatistics()
        near.add(x)
        far.add(x + 1e8 * torch.arange(1.0, 8))
        assert far.measures().matrix_entropy == pytest.approx(near.measures().matrix_entropy, rel=1e-6)

    def test_float32_and_a_full_precision_sum(self):
        x, double, single = self.windows(50), TokenStatistics(), TokenStatistics()
        double.add(x)
        single.add(x.float())
        assert vars(single.measures()) == pytest.approx(vars(double.measures()), rel=1e-6)

    def test_what_is_kept_does_not_grow(self):
        def kept(found):
            return sum(value.numel() if torch.is_tensor(value) else 1 for value in vars(found).values())

        few, many = TokenStatistics(), TokenStatistics()
        few.add(self.windows(2))
        for _ in range(50):
            many.add(self.windows(2))
        assert kept(few) == kept(many) == 7 * 7 + 7 + VIEWS * 2 * 7 + 7

    def test_a_bad_window_leaves_the_others(self):
        x, found, expected = self.windows(3), TokenStatistics(), TokenStatistics()
        expected.add(x[:1])
        x[1, 0, 0] = math.inf
        with pytest.raises(NotFiniteError, match="0 NaN and 1 infinite"):
            found.add(x)
        assert vars(found.measures()) == vars(expected.measures())
