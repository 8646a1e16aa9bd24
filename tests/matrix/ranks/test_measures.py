"""The ranks of features against NumPy, SciPy and loops over their published definitions."""

import functools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from matrix_ssl import errors
from matrix_ssl.errors import NotPositiveDefiniteError
from matrix_ssl.matrix import (
    RankStatistics,
    alpha_req,
    effective_rank,
    lidar,
    metrics,
    numerical_rank,
    of_features,
    participation_ratio,
    pca_rank,
    rank_me,
    rank_report,
    renyi_entropy,
    self_cluster,
    stable_rank,
)
from matrix_ssl.matrix.covariances import covariance
from matrix_ssl.matrix.ranks.decomposition import both_spectra
from matrix_ssl.matrix.ranks.report import MEANINGS
from tests.support.decompositions import Decompositions
from tests.support.matrix_samples import rows

SHAPES = [(40, 7), (7, 40), (12, 12)]
FLOATS = [rank_me, participation_ratio, stable_rank, functools.partial(alpha_req, first=1, last=3), self_cluster]


def entropy_rank(weights):
    p = np.asarray(weights) / np.sum(weights)
    p = p[p > 1e-14]
    return math.exp(-(p * np.log(p)).sum())


def eigenvalues(x):
    return np.clip(np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True)), 0, None)[::-1]


def skewed(n, d, *, seed=0):
    """Features with a mean and a decaying spectrum."""
    return rows(n, d, seed=seed) * torch.arange(1, d + 1) ** -0.7 + 0.2


@pytest.mark.parametrize("shape", SHAPES)
class TestAgainstNumPy:
    def test_rank_me(self, shape):
        x = skewed(*shape)
        assert rank_me(x).item() == pytest.approx(entropy_rank(np.linalg.svd(x.numpy(), compute_uv=False)), rel=1e-10)

    def test_rank_me_with_the_constant_of_the_paper(self, shape):
        values = np.linalg.svd(skewed(*shape).numpy(), compute_uv=False)
        p = values / np.abs(values).sum() + 1e-7
        assert rank_me(skewed(*shape)).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)

    def test_participation_ratio(self, shape):
        values = eigenvalues(skewed(*shape))
        expected = values.sum() ** 2 / (values**2).sum()
        assert participation_ratio(skewed(*shape)).item() == pytest.approx(expected, rel=1e-10)

    def test_stable_rank(self, shape):
        x = skewed(*shape)
        expected = np.linalg.norm(x) ** 2 / np.linalg.norm(x, 2) ** 2
        assert stable_rank(x).item() == pytest.approx(expected, rel=1e-10)
        centred = eigenvalues(x)
        assert stable_rank(x - x.mean(0)).item() == pytest.approx(centred.sum() / centred[0], rel=1e-10)

    def test_pca_rank(self, shape):
        values = eigenvalues(skewed(*shape))
        for share in (0.5, 0.95, 1.0):
            expected = int(np.searchsorted(np.cumsum(values) / values.sum(), share - 1e-11) + 1)
            assert pca_rank(skewed(*shape), share=share).item() == expected

    def test_alpha_req(self, shape):
        values = eigenvalues(skewed(*shape))[1:6]
        r = np.arange(2, 7)
        slope = np.polyfit(np.log(r), np.log(values), 1, w=r**-0.5)[0]  # NumPy squares its weights
        assert alpha_req(skewed(*shape), first=2, last=6).item() == pytest.approx(-slope, rel=1e-10)

    def test_self_cluster_by_loops(self, shape):
        x = skewed(*shape).numpy()
        n, d = shape
        squares = [(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) ** 2 for a in x for b in x]
        expected = n + n * (n - 1) / d
        value = (sum(squares) - expected) / (n * n - expected)  # as its authors' code has it
        assert self_cluster(skewed(*shape)).item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize(("n", "v", "d"), [(30, 2, 6), (5, 4, 9), (8, 2, 20)])
def test_lidar_against_scipy(n, v, d):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((n, 1, d))) + 0.3 * rows(n * v, d).view(n, v, d)
    means = x.mean(1).numpy()
    between = np.cov(means.T, bias=True)
    within = sum(np.outer(a, a) for i in range(n) for a in x[i].numpy() - means[i]) / (n * v) + 1e-4 * np.eye(d)
    root = np.linalg.inv(scipy.linalg.sqrtm(within).real)
    expected = entropy_rank(np.clip(np.linalg.eigvalsh(root @ between @ root), 0, None))
    assert lidar(x).item() == pytest.approx(expected, rel=1e-10)
    assert lidar(x.float()).item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(lidar(torch.stack([x, 2 * x]))[0], lidar(x), rtol=1e-12, atol=0)


def test_lidar_is_nan_where_its_ridge_is_lost_and_values_are_not_read():
    """As on a GPU: a covariance without a Cholesky factor has no LiDAR, and a part of a factor would give a number."""
    x = 1e12 * torch.ones(1, 12, 2, 6, dtype=torch.float64) * torch.tensor([1.0, -1.0]).view(2, 1)
    x = x + torch.randn(1, 12, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    with pytest.raises(NotPositiveDefiniteError, match="is lost in the rounding"):
        lidar(x[0])
    assert torch.func.vmap(lidar)(x).isnan().all()


def test_lidar_sees_only_what_views_share():
    image = torch.zeros(8, 1, 6, dtype=torch.float64)
    image[:, 0, :3] = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    noise = torch.zeros(8, 2, 6, dtype=torch.float64)
    noise[:, 0, 3:], noise[:, 1, 3:] = 5.0, -5.0
    assert lidar(image + noise).item() == pytest.approx(3, rel=1e-9)
    assert lidar(torch.ones(4, 2, 3)).item() == 1


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(300, 64), (50, 80)])
def test_alpha_req_does_not_fit_what_rounding_makes_of_zeros(n, d, dtype, mean):
    """As in NumPy with the ranks that are there alone; the features themselves are of float64 and rank 12."""
    exact = rows(n, d, rank=12) + mean
    x = exact.to(dtype)
    values, r = eigenvalues(exact)[3:12], np.arange(4, 13)
    expected = -np.polyfit(np.log(r), np.log(values), 1, w=r**-0.5)[0]
    state = RankStatistics(d)
    for part in x.split(77):
        state.add(part)
    found = [alpha_req(x), alpha_req(x[None]), rank_report(x).alpha_req, state.report().alpha_req]
    if dtype != torch.float16:  # the metric takes all features for float32
        metric = metrics.AlphaReQ(d)
        metric.update(x)
        found.append(metric.compute())
    assert [float(value) for value in found] == pytest.approx([expected] * len(found), rel=2e-2)


@pytest.mark.parametrize("rank", [1, 4, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numerical_rank(rank, dtype):
    assert numerical_rank(rows(300, 64, rank=rank, dtype=dtype)).item() == rank
    assert numerical_rank(rows(64, 300, rank=rank, dtype=dtype) * 1e-25).item() == rank


def test_numerical_rank_of_many_float32_rows_is_not_that_of_numpy():
    x = torch.diag(torch.tensor([1.0, 1e-3])).repeat(20_000, 1)
    assert np.linalg.matrix_rank(x.numpy()) == 1
    assert numerical_rank(x).item() == 2
    assert numerical_rank(x, threshold=0.01).item() == 1


class TestProperties:
    @pytest.mark.parametrize("function", FLOATS)
    def test_batches(self, function):
        x = torch.stack([skewed(9, 5, seed=seed) for seed in range(4)])
        one_by_one = torch.stack([function(one) for one in x])
        torch.testing.assert_close(function(x), one_by_one, rtol=1e-12, atol=0)
        torch.testing.assert_close(function(x.view(2, 2, 9, 5)), one_by_one.view(2, 2), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("function", FLOATS)
    def test_scale_and_rotation_do_not_matter(self, function):
        x, basis = skewed(9, 5), torch.linalg.qr(rows(5, 5))[0]
        for other in (x @ basis, 1e150 * x, 1e-150 * x, x.flip(0)):
            assert function(other).item() == pytest.approx(function(x).item(), rel=1e-9)

    @pytest.mark.parametrize("function", FLOATS)
    def test_float32(self, function):
        x = skewed(30, 6).float()
        assert function(x).dtype == torch.float32
        assert function(x).item() == pytest.approx(function(x.double()).item(), rel=1e-6)
        assert function(x.bfloat16()).dtype == torch.float32

    @pytest.mark.parametrize("function", FLOATS)
    @pytest.mark.parametrize("name", ["generic", "wide", "repeated", "rank two"])
    def test_gradients(self, function, name):
        x = {
            "generic": skewed(7, 4),
            "wide": skewed(4, 6),
            "repeated": torch.cat([torch.eye(4), -torch.eye(4)]).double(),
            "rank two": rows(7, 4, rank=2),
        }[name]
        corners = {"repeated": {stable_rank, FLOATS[3]}, "rank two": {rank_me, FLOATS[3]}}
        if function in corners.get(name, ()):
            pytest.skip("a corner: the largest one is repeated, the order decides, or a singular value is zero")
        assert torch.autograd.gradcheck(function, x.clone().requires_grad_())

    @pytest.mark.parametrize("function", [participation_ratio, self_cluster])
    def test_second_derivatives(self, function):
        assert torch.autograd.gradgradcheck(function, skewed(6, 3).requires_grad_())

    def test_gradient_of_lidar(self):
        x = rows(12, 3).view(4, 3, 3).requires_grad_()
        assert torch.autograd.gradcheck(lidar, x)

    def test_flat_spectra_give_their_number_of_directions(self):
        x = torch.cat([torch.eye(5), -torch.eye(5)]).double()
        for function in (rank_me, participation_ratio, stable_rank, of_features.effective_rank):
            assert function(x).item() == pytest.approx(5, rel=1e-12)
        assert alpha_req(x, first=1, last=5).item() == pytest.approx(0, abs=1e-12)
        assert pca_rank(x, share=0.8).item() == 4

    def test_equal_rows_and_zeros(self):
        x = torch.full((6, 3), 0.1)
        assert [participation_ratio(x).item(), stable_rank(x).item(), rank_me(x).item()] == [1, 1, pytest.approx(1)]
        zero = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
        for function in (participation_ratio, stable_rank):
            assert function(zero).item() == 1
            assert torch.autograd.grad(function(zero), zero)[0].eq(0).all()
        assert (numerical_rank(zero).item(), pca_rank(zero).item()) == (0, 0)
        assert self_cluster(x).item() == pytest.approx(1)

    def test_order_of_the_ranks(self):
        x = skewed(50, 8)
        x = x - x.mean(0)
        ordered = [rank_me(x), of_features.effective_rank(x), participation_ratio(x), stable_rank(x)]
        assert ordered == sorted(ordered, reverse=True)
        assert participation_ratio(x).log().item() == pytest.approx(renyi_entropy(covariance(x), alpha=2).item())
        assert rank_me(x).item() == effective_rank(x).item()

    def test_self_cluster_of_uniform_directions_has_no_bias(self):
        values = [self_cluster(rows(5, 6, seed=seed)).item() for seed in range(400)]
        assert abs(np.mean(values)) < 4 * np.std(values) / 20


class TestErrors:
    @pytest.mark.parametrize("function", [*FLOATS, numerical_rank, pca_rank, lidar])
    def test_of_a_tensor_that_is_no_matrix(self, function):
        with pytest.raises(errors.MatrixShapeError, match=r"features.* has"):
            function(torch.ones(4))
        with pytest.raises(errors.NotFiniteError, match="1 NaN"):
            function(torch.ones(4, 3, 2).index_fill(0, torch.tensor(0), 1.0).masked_fill_(
                torch.arange(24).view(4, 3, 2) == 5, torch.nan))  # fmt: skip

    def test_of_settings(self):
        x = skewed(9, 3)
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 0"):
            pca_rank(x, share=0.0)
        with pytest.raises(ValueError, match="threshold must be a finite number, zero or above, got -1"):
            numerical_rank(x, threshold=-1.0)
        with pytest.raises(ValueError, match="got first=3 and last=3"):
            alpha_req(x, first=3, last=3)
        with pytest.raises(ValueError, match=r"integers, 1 ≤ first < last, got first=1\.5 and last='a'"):
            alpha_req(x, first=1.5, last="a")
        with pytest.raises(errors.MatrixError, match="has 0 eigenvalues above zero of the ranks 4 to 100"):
            alpha_req(x)
        with pytest.raises(ValueError, match="ridge must be a finite number above zero, got 0"):
            lidar(x[None], ridge=0.0)
        with pytest.raises(errors.MatrixShapeError, match="at least two images and two views"):
            lidar(x[:, None])
        with pytest.raises(errors.NotPositiveDefiniteError, match=r"ridge=1e-30 is lost"):
            lidar(torch.ones(3, 2, 2).double() + torch.eye(2)[None], ridge=1e-30)
        with pytest.raises(errors.MatrixShapeError, match="at least two rows and two columns"):
            self_cluster(x[:1])

    def test_values_are_not_read_on_request(self):
        assert alpha_req(skewed(9, 3), validate=False).isnan()


class TestReport:
    @pytest.mark.parametrize("shape", [(130, 40), (30, 40)])
    def test_has_what_the_functions_give(self, shape):
        x = skewed(*shape)
        report = rank_report(x, views=x.view(shape[0] // 2, 2, 40))
        functions = {
            "rank_me": rank_me, "effective_rank": of_features.effective_rank,
            "participation_ratio": participation_ratio, "stable_rank": stable_rank,
            "numerical_rank": numerical_rank, "pca_rank": pca_rank, "alpha_req": alpha_req,
            "self_cluster": self_cluster,
        }  # fmt: skip
        expected = {name: function(x).item() for name, function in functions.items()}
        expected["lidar"] = lidar(x.view(-1, 2, 40)).item()
        assert report.values() == pytest.approx(expected, rel=1e-10)
        assert set(report.values()) == set(MEANINGS)

    @pytest.mark.parametrize("shape", [(40, 6), (6, 40), (6, 6)])
    def test_takes_one_decomposition(self, shape):
        with Decompositions() as taken:
            rank_report(skewed(*shape))
        assert taken.names == ["aten._linalg_svd.default"]
        with Decompositions() as taken:
            rank_me(skewed(*shape)), of_features.effective_rank(skewed(*shape))
        assert taken.names == ["aten._linalg_svd.default", "numpy.eigvalsh"]  # none escapes

    @pytest.mark.parametrize("mean", [0.0, 1e-12, 1.0, 1e5])
    @pytest.mark.parametrize(("shape", "rank"), [((40, 6), None), ((6, 40), None), ((40, 6), 3), ((9, 30), 3)])
    def test_both_spectra_are_those_of_two_decompositions(self, shape, rank, mean):
        x = rows(*shape, rank=rank)
        x = x - x.mean(0) + mean * rows(1, shape[1], seed=1)
        spectra = both_spectra(x)
        expected = np.linalg.svd(x.numpy(), compute_uv=False)[::-1]
        np.testing.assert_allclose(spectra.singular_values, expected, rtol=0, atol=1e-14 * expected[-1])
        centred = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False)[::-1]
        np.testing.assert_allclose(spectra.eigenvalues.sqrt(), centred, rtol=0, atol=1e-14 * centred[-1])

    @pytest.mark.parametrize(
        "x", [torch.ones(5, 3), torch.eye(4), torch.zeros(2, 3), torch.tensor([[1.0, 5], [-1, 5]])]
    )
    def test_both_spectra_where_values_coincide(self, x):
        spectra = both_spectra(x.double())
        expected = np.linalg.svd(x.double().numpy(), compute_uv=False)[::-1]
        np.testing.assert_allclose(spectra.singular_values, expected, rtol=1e-14, atol=1e-14)

    def test_says_what_each_means(self):
        x = skewed(30, 6)
        text = str(rank_report(x, views=x.view(15, 2, 6)))
        assert text.startswith("30 samples, 6 features each")
        assert all(meaning.heading in text and meaning.meaning in text for meaning in MEANINGS.values())

    @pytest.mark.parametrize(
        ("views", "what"),
        [
            (torch.ones(4, 1, 3), r"'views' has the shape \(4, 1, 3\)"),
            (torch.full((2, 2, 3), torch.nan), "'views' .*not finite"),
        ],
    )
    def test_errors_name_the_views(self, views, what):
        with pytest.raises(errors.MatrixError, match=what):
            rank_report(torch.eye(3), views=views)

    def test_of_few_samples_leaves_out_what_is_not_defined(self):
        report = rank_report(torch.ones(1, 3))
        assert (report.alpha_req, report.self_cluster, report.lidar) == (None, None, None)
        assert (report.rank_me, report.pca_rank) == (1, 0)
        with pytest.raises(errors.MatrixShapeError, match="one matrix"):
            rank_report(torch.ones(2, 3, 4))
