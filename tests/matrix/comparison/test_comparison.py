"""Comparisons of representations against textbook forms in NumPy and SciPy."""

import functools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
import torch

from matrix_ssl import matrix
from matrix_ssl.errors import MatrixError, MatrixShapeError
from matrix_ssl.evaluate.similarities import similarities
from tests.matrix.of_features.test_features import LargestTensor
from tests.support.matrix_samples import quick_gradcheck, quick_gradgradcheck, rows
from tests.support.quick import some

SHAPES = [(20, 4, 6), (30, 6, 3), (7, 9, 12), (8, 3, 20)]
BY_FEATURES = {
    "linear_cka": matrix.linear_cka,
    "linear_cka unbiased": functools.partial(matrix.linear_cka, estimator="unbiased"),
    "canonical_correlations": matrix.canonical_correlations,
    "cca": matrix.cca,
    "cca squared": functools.partial(matrix.cca, power=2),
    "svcca": functools.partial(matrix.svcca, variance=0.8),
    "pwcca": matrix.pwcca,
    "procrustes_distance": matrix.procrustes_distance,
    "rsa": matrix.rsa,
    "rsa pearson": functools.partial(matrix.rsa, correlation="pearson"),
    "rsa euclidean": functools.partial(matrix.rsa, dissimilarity="euclidean", correlation="cosine"),
}
every_one = pytest.mark.parametrize("name", BY_FEATURES)
shapes = pytest.mark.parametrize(("n", "d", "e"), SHAPES)


def pair(n, d, e):
    """Two representations with something in common."""
    x = rows(n, d) + 2
    return x, torch.cat([x[:, : min(d, e)], rows(n, max(e - d, 0), seed=5)], 1) + 0.5 * rows(n, e, seed=1)


def centred(x):
    return x.numpy() - x.numpy().mean(0)


def hsic(k, l, estimator):  # noqa: E741
    """Sums over pairs, triples and quadruples of different samples, or the trace with centring matrices."""
    n = len(k)
    if estimator == "biased":
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ l @ h)
    indices = range(n)
    pairs = sum(k[i, j] * l[i, j] for i in indices for j in indices if i != j) / (n * (n - 1))
    triples = sum(k[i, j] * l[i, m] for i in indices for j in indices for m in indices if len({i, j, m}) == 3) / (
        n * (n - 1) * (n - 2)
    )
    off_k, off_l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    all_four = off_k.sum() * off_l.sum() - 4 * (off_k @ off_l).sum() + 2 * (off_k * off_l).sum()
    return pairs + all_four / (n * (n - 1) * (n - 2) * (n - 3)) - 2 * triples


def cka_by_numpy(k, l, estimator):  # noqa: E741
    return hsic(k, l, estimator) / math.sqrt(hsic(k, k, estimator) * hsic(l, l, estimator))


def correlations_by_scipy(x, y):
    """Cosines of the angles between the column spaces."""
    return np.sort(np.cos(scipy.linalg.subspace_angles(scipy.linalg.orth(x), scipy.linalg.orth(y))))[::-1]


class TestCKA:
    @shapes
    @pytest.mark.parametrize("estimator", ["biased", "unbiased"])
    def test_definition(self, n, d, e, estimator):
        x, y = pair(n, d, e)
        k, l = (z @ z.T for z in (centred(x), centred(y)))  # noqa: E741
        expected = cka_by_numpy(k, l, estimator)
        assert matrix.linear_cka(x, y, estimator=estimator).item() == pytest.approx(expected, abs=1e-10)
        grams = [matrix.linear_kernel(z) for z in (x, y)]
        assert matrix.cka(*grams, estimator=estimator).item() == pytest.approx(expected, abs=1e-9)

    def test_unbiased_is_zero_on_average(self):
        found = torch.stack([
            matrix.linear_cka(rows(12, 20, seed=s), rows(12, 20, seed=s + 500), estimator="unbiased")
            for s in range(60)
        ])  # fmt: skip
        assert abs(found.mean().item()) < 4 * found.std().item() / math.sqrt(60)
        assert matrix.linear_cka(rows(12, 20), rows(12, 20, seed=500)).item() > 0.4

    def test_of_kernels(self):
        x, y = pair(10, 3, 3)
        k, l = (matrix.gaussian_kernel(z, width="median") for z in (x, y))  # noqa: E741
        for estimator in ("biased", "unbiased"):
            expected = cka_by_numpy(k.numpy(), l.numpy(), estimator)
            assert matrix.cka(k, l, estimator=estimator).item() == pytest.approx(expected, abs=1e-12)
            assert matrix.cka(k, 3 * k, estimator=estimator).item() == pytest.approx(1, abs=1e-12)

    @pytest.mark.parametrize("scale", [1e-15, 1e15])
    def test_float32_neither_overflows_nor_vanishes(self, scale):
        x, y = (z.float() for z in pair(20, 4, 6))
        assert matrix.linear_cka(x * scale, y).item() == pytest.approx(matrix.linear_cka(x, y).item(), rel=1e-5)

    def test_few_samples(self):
        with pytest.raises(MatrixError, match="has 3 rows: the unbiased estimator needs at least 4"):
            matrix.linear_cka(rows(3, 2), rows(3, 2), estimator="unbiased")
        with pytest.raises(ValueError, match="estimator must be 'biased' or 'unbiased', got 'none'"):
            matrix.linear_cka(rows(3, 2), rows(3, 2), estimator="none")


class TestCanonicalCorrelations:
    @shapes
    def test_with_scipy(self, n, d, e):
        x, y = pair(n, d, e)
        expected = correlations_by_scipy(centred(x), centred(y))
        found = matrix.canonical_correlations(x, y)
        count = min(n - 1, d, e)
        assert found.shape == (min(n, d, e),)
        np.testing.assert_allclose(found[:count], expected[:count], atol=1e-10)
        assert matrix.cca(x, y).item() == pytest.approx(expected[:count].mean(), abs=1e-10)
        assert matrix.cca(x, y, power=2).item() == pytest.approx((expected[:count] ** 2).mean(), abs=1e-10)

    def test_badly_conditioned_features(self):
        """Columns of sizes from 1 to 1e-6, where a covariance would have lost them: the error is 1e-16 times 1e6."""
        x, y = pair(30, 5, 5)
        scales = torch.logspace(0, -6, 5, dtype=torch.float64)
        mixed = x @ torch.linalg.qr(rows(5, 5, seed=3))[0] * scales
        np.testing.assert_allclose(
            matrix.canonical_correlations(mixed, y), matrix.canonical_correlations(x, y), atol=1e-10
        )

    def test_rank_deficiency(self):
        x, y = rows(20, 5, rank=2), rows(20, 4, seed=1)
        expected = correlations_by_scipy(centred(x), centred(y))
        found = matrix.canonical_correlations(x, y)
        np.testing.assert_allclose(found, [*expected, 0, 0], atol=1e-10)
        assert matrix.cca(x, y).item() == pytest.approx(expected.mean(), abs=1e-10)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_directions_of_rounding_do_not_count(self, dtype):
        """Of a product of rank 5 in float32, the other 15 directions are its rounding."""
        generator = torch.Generator().manual_seed(0)
        x, y = (
            torch.randn(200, 5, dtype=dtype, generator=generator) @ torch.randn(5, 20, dtype=dtype, generator=generator)
            for _ in range(2)
        )
        spaces = [scipy.linalg.svd(centred(z.double()), full_matrices=False)[0][:, :5] for z in (x, y)]
        expected = np.cos(scipy.linalg.subspace_angles(*spaces))
        tolerance = 1e-4 if dtype == torch.float32 else 1e-10
        np.testing.assert_allclose(matrix.canonical_correlations(x, y)[:5].sort().values, expected, atol=tolerance)
        assert matrix.canonical_correlations(x, y)[5:].amax() < 1e-10
        assert matrix.cca(x, y).item() == pytest.approx(expected.mean(), abs=tolerance)
        of_both = matrix.covariance(torch.cat([x, y], 1).double())
        streamed = similarities(of_both, 20, samples=200)
        assert matrix.cca(x, y, power=2).item() == pytest.approx(streamed["cca"], abs=tolerance)
        assert matrix.svcca(x, y).item() == pytest.approx(streamed["svcca"], abs=tolerance)
        assert matrix.pwcca(x, y).item() == pytest.approx(streamed["pwcca"], abs=tolerance)

    @pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1.0])
    def test_svcca(self, variance):
        x, y = pair(30, 6, 8)
        kept = []
        for z in (centred(x), centred(y)):
            u, s, _ = np.linalg.svd(z, full_matrices=False)
            count = int(np.searchsorted((s**2).cumsum() / (s**2).sum(), variance - 1e-12)) + 1
            kept.append(u[:, :count])
        expected = np.linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean()
        assert matrix.svcca(x, y, variance=variance).item() == pytest.approx(expected, abs=1e-10)

    def test_pwcca(self):
        x, y = pair(30, 4, 6)
        a, b = centred(x), centred(y)
        (qx, _), (qy, _) = np.linalg.qr(a), np.linalg.qr(b)
        u, s, _ = np.linalg.svd(qx.T @ qy, full_matrices=False)
        weights = np.abs((qx @ u).T @ a).sum(1)
        expected = (weights * s).sum() / weights.sum()
        assert matrix.pwcca(x, y).item() == pytest.approx(expected, abs=1e-10)
        assert matrix.pwcca(x, y).item() != pytest.approx(matrix.pwcca(y, x).item(), abs=1e-4)

    def test_numbers(self):
        x = rows(5, 2)
        with pytest.raises(ValueError, match="power must be 1 or 2, got 3"):
            matrix.cca(x, x, power=3)
        with pytest.raises(ValueError, match="variance must be a share above 0 and at most 1, got 0"):
            matrix.svcca(x, x, variance=0.0)


class TestProcrustes:
    @shapes
    def test_definition(self, n, d, e):
        x, y = pair(n, d, e)
        a, b = (z / np.linalg.norm(z) for z in (centred(x), centred(y)))
        width = max(d, e)
        a, b = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (a, b))
        rotation = scipy.linalg.orthogonal_procrustes(b, a)[0]
        expected = np.linalg.norm(a - b @ rotation) ** 2
        assert matrix.procrustes_distance(x, y).item() == pytest.approx(expected, abs=1e-10)

    def test_ends(self):
        x = torch.tensor([[1.0, 0], [-1, 0], [0, 0], [0, 0]])
        y = torch.tensor([[0.0, 0], [0, 0], [1, 0], [-1, 0]])
        assert matrix.procrustes_distance(x, y).item() == pytest.approx(2)
        assert matrix.procrustes_distance(x, torch.ones(4, 2)).item() == pytest.approx(2)


class TestRSA:
    @pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean", "squared_euclidean"])
    @pytest.mark.parametrize("correlation", ["spearman", "pearson", "cosine"])
    def test_with_scipy(self, dissimilarity, correlation):
        x, y = pair(12, 5, 8)
        metric = {"squared_euclidean": "sqeuclidean"}.get(dissimilarity, dissimilarity)
        p, q = (scipy.spatial.distance.pdist(z, metric) for z in (x, y))
        expected = {
            "spearman": lambda: scipy.stats.spearmanr(p, q).statistic,
            "pearson": lambda: scipy.stats.pearsonr(p, q).statistic,
            "cosine": lambda: p @ q / (np.linalg.norm(p) * np.linalg.norm(q)),
        }[correlation]()
        found = matrix.rsa(x, y, dissimilarity=dissimilarity, correlation=correlation).item()
        assert found == pytest.approx(expected, abs=1e-10)

    def test_ties_have_their_mean_rank(self):
        x = torch.tensor([[0.0], [1], [2], [3], [3]], dtype=torch.float64)
        y = torch.tensor([[0.0], [2], [1], [1], [5]], dtype=torch.float64)
        p, q = (scipy.spatial.distance.pdist(z) for z in (x, y))
        found = matrix.rsa(x, y, dissimilarity="euclidean").item()
        assert found == pytest.approx(scipy.stats.spearmanr(p, q).statistic, abs=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean", "squared_euclidean"])
    @pytest.mark.parametrize("correlation", ["spearman", "pearson"])
    def test_against_classes(self, dtype, dissimilarity, correlation):
        """Two samples of one-hot classes are of one class or not; SciPy ranks these two values, which have no error."""
        classes = torch.arange(100) % 10
        y = torch.nn.functional.one_hot(classes).to(dtype)
        x = rows(100, 8).to(dtype) + 0.3 * y @ rows(10, 8, seed=1).to(dtype)
        p = scipy.spatial.distance.pdist(x.double(), dissimilarity.replace("squared_", "sq"))
        differ = (classes[:, None] != classes).numpy()[np.triu_indices(100, 1)]
        expected = getattr(scipy.stats, f"{correlation}r")(p, differ).statistic
        measures = {"dissimilarity": dissimilarity, "correlation": correlation}
        assert matrix.rsa(x, y, **measures).item() == pytest.approx(expected, abs=1e-6)
        assert matrix.rsa_matrix([x], [y], **measures).item() == pytest.approx(expected, abs=1e-6)
        for other in (y[:, torch.randperm(10)], 3 * y, y[:, [*range(10), *range(10)]]):
            assert matrix.rsa(y, other, **measures).item() == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("n", [5, 7, 10, 13, 50])
    def test_zero_where_all_dissimilarities_are_equal(self, dtype, n):
        x, y = rows(n, 4).to(dtype), torch.eye(n, dtype=dtype)
        for dissimilarity in ("correlation", "cosine", "euclidean", "squared_euclidean"):
            for correlation in ("spearman", "pearson"):
                assert matrix.rsa(x, y, dissimilarity=dissimilarity, correlation=correlation) == 0
        assert matrix.rsa(x, torch.full_like(x, 0.1), dissimilarity="euclidean", correlation="cosine") == 0

    @pytest.mark.parametrize("dissimilarity", ["euclidean", "squared_euclidean"])
    def test_repeated_distances(self, dissimilarity):
        """Of points of a grid, by whole numbers; some points are equal."""
        x, y = (torch.randint(0, 3, (60, 6), generator=torch.Generator().manual_seed(s)) for s in range(2))
        p, q = (scipy.spatial.distance.pdist(z, "sqeuclidean") for z in (x, y))
        for other in (x.float(), x.double() + 0.1, x * 1e25):
            found = matrix.rsa(other, y.float(), dissimilarity=dissimilarity)
            assert found.item() == pytest.approx(scipy.stats.spearmanr(p, q).statistic, abs=1e-6)

    def test_one_sample_far_away_ties_no_others(self):
        x, y = rows(300, 4), rows(300, 4, seed=1)
        x[0] *= 1e6
        p, q = (scipy.spatial.distance.pdist(z) for z in (x, y))
        found = matrix.rsa(x, y, dissimilarity="euclidean").item()
        assert found == pytest.approx(scipy.stats.spearmanr(p, q).statistic, abs=1e-3)

    def test_errors(self):
        x = rows(5, 3)
        with pytest.raises(MatrixError, match="has 2 rows: a correlation of pairs needs at least 3"):
            matrix.rsa(x[:2], x[:2])
        with pytest.raises(ValueError, match=r"correlation must be .* got 'kendall'"):
            matrix.rsa(x, x, correlation="kendall")
        with pytest.raises(ValueError, match=r"dissimilarity must be .* got 'dot'"):
            matrix.rsa(x, x, dissimilarity="dot")
        with pytest.raises(MatrixError, match="rows of length zero"):
            matrix.rsa(torch.ones(4, 3), x[:4])


class TestDifferenceOfEntropies:
    @pytest.mark.parametrize("alpha", [1.0, 1.01, 2.0])
    def test_definition(self, alpha):
        x, y = pair(8, 3, 3)
        k1, k2 = (matrix.gaussian_kernel(z, width=2.0) for z in (x, y))
        generator = torch.Generator().manual_seed(5)
        orders = [torch.randperm(8, generator=generator) for _ in range(4)]
        shuffled = [matrix.joint_entropy(k1, k2[order][:, order], alpha=alpha).item() for order in orders]
        expected = np.mean(shuffled) - matrix.joint_entropy(k1, k2, alpha=alpha).item()
        options = {"permutations": 4, "generator": torch.Generator().manual_seed(5)}
        found = matrix.difference_of_entropies(k1, k2, alpha=alpha, **options).item()
        assert found == pytest.approx(expected, abs=1e-12)

    def test_of_views_and_of_nothing(self):
        x, y = pair(30, 3, 3)
        generator = torch.Generator().manual_seed(0)
        k1, k2 = (matrix.gaussian_kernel(z, width="median") for z in (x, y))
        assert matrix.difference_of_entropies(k1, k2, generator=generator).item() > 0.1
        identity = torch.eye(30, dtype=torch.float64)  # a width that tells all samples apart
        assert matrix.difference_of_entropies(identity, identity, generator=generator).item() == pytest.approx(0)
        assert matrix.mutual_information(identity, identity).item() == pytest.approx(math.log(30))
        with pytest.raises(ValueError, match="permutations must be an integer, 1 or above, got 0"):
            matrix.difference_of_entropies(k1, k2, permutations=0)

    def test_gradients(self):
        x, y = (z.requires_grad_() for z in pair(5, 2, 2))

        def function(x, y):
            generator = torch.Generator().manual_seed(1)
            grams = (matrix.gaussian_kernel(z, width=1.5) for z in (x, y))
            return matrix.difference_of_entropies(*grams, permutations=2, generator=generator)

        assert quick_gradcheck(function, (x.detach().requires_grad_(), y.detach().requires_grad_()))


@every_one
class TestEveryOne:
    def test_invariances_and_itself(self, name):
        function, (x, y) = BY_FEATURES[name], pair(25, 4, 6)
        value = function(x, y)
        rotated = x @ torch.linalg.qr(rows(4, 4, seed=3))[0]
        if not name.startswith("rsa") and name != "pwcca":
            np.testing.assert_allclose(function(2.5 * rotated - 3, y), value, atol=1e-9)
        np.testing.assert_allclose(function(2.5 * x, 0.1 * y), value, atol=1e-9)
        itself = function(x, x)
        np.testing.assert_allclose(itself, torch.full_like(itself, 0.0 if "distance" in name else 1.0), atol=1e-9)
        if "cca" in name or name == "canonical_correlations":
            linear = y @ rows(6, 6, seed=8)
            if "svcca" not in name:
                np.testing.assert_allclose(function(x, linear), value, atol=1e-9)

    def test_symmetry(self, name):
        function, (x, y) = BY_FEATURES[name], pair(25, 4, 6)
        if name != "pwcca":
            np.testing.assert_allclose(function(x, y), function(y, x), atol=1e-10)

    def test_batches_and_vmap(self, name):
        function = BY_FEATURES[name]
        x, y = rows(36, 3).view(3, 12, 3), rows(36, 4, seed=1).view(3, 12, 4)
        found = function(x, y)
        for a, b, value in zip(x, y, found, strict=True):
            np.testing.assert_allclose(value, function(a, b), atol=1e-11)
        np.testing.assert_allclose(function(x, y[0])[1], function(x[1], y[0]), atol=1e-11)
        np.testing.assert_allclose(torch.func.vmap(function)(x, y), found, atol=1e-11)

    @pytest.mark.parametrize(("n", "d", "e"), [(12, 3, 4), (5, 7, 3)])
    def test_gradients(self, name, n, d, e):
        function = BY_FEATURES[name]
        x, y = (z.requires_grad_() for z in (rows(n, d), rows(n, e, seed=1)))
        if name in ("rsa", "pwcca"):
            with pytest.raises(RuntimeError, match=r"no gradient.*(pearson|svcca)"):
                function(x, y).backward()
            return
        if name in ("cca", "cca squared", "canonical_correlations") and n == 5:
            return  # all correlations are one, their largest value
        assert quick_gradcheck(function, (x, y), atol=1e-5)
        if "cka" in name or name.startswith("rsa"):
            assert quick_gradgradcheck(function, (x, y), atol=1e-4)

    def test_float32_half_precision_and_autocast(self, name):
        """To 1e-5 of the range."""
        function, (x, y) = BY_FEATURES[name], (z.float() for z in pair(60, 8, 16))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = function(x, y)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, function(x.double(), y.double()), atol=3e-4 if name == "rsa" else 1e-5)
        assert torch.equal(function(x.bfloat16(), y.bfloat16()), function(x.bfloat16().float(), y.bfloat16().float()))

    def test_constant_features_are_like_nothing(self, name):
        if name == "rsa" or name == "rsa pearson":
            pytest.skip("a row of equal columns has no direction")
        function = BY_FEATURES[name]
        x = torch.full((12, 3), 0.3, dtype=torch.float64).requires_grad_()
        value = function(x, rows(12, 4))
        np.testing.assert_allclose(value.detach(), 2.0 if "distance" in name else 0.0, atol=1e-12)
        if name != "pwcca":
            (slope,) = torch.autograd.grad(value.sum(), x)
            assert torch.isfinite(slope).all()

    def test_shapes(self, name):
        with pytest.raises(MatrixShapeError, match=r"x and y have the shapes \(6, 3\) and \(7, 3\).*same samples"):
            BY_FEATURES[name](rows(6, 3), rows(7, 3))
        x = rows(6, 3)
        x[1, 2] = math.nan
        with pytest.raises(MatrixError, match=r"'y'.* 1 NaN"):
            BY_FEATURES[name](rows(6, 3), x)


@pytest.mark.parametrize("name", some(BY_FEATURES, "linear_cka", "canonical_correlations"))
@pytest.mark.filterwarnings("ignore")
def test_compiled_without_breaks(name):
    torch._dynamo.reset()
    function, (x, y) = BY_FEATURES[name], pair(12, 3, 4)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(x, y)
    np.testing.assert_allclose(found, function(x, y), atol=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_gradients_where_singular_values_coincide_and_at_deficient_rank(power):
    """Features of a flat spectrum, and of rank two along which they are moved."""
    flat = torch.linalg.qr(rows(9, 4) - rows(9, 4).mean(0))[0]
    y = rows(9, 3, seed=2)
    function = functools.partial(matrix.cca, power=power)
    assert quick_gradcheck(lambda x: function(x, y), flat.requires_grad_())
    basis = rows(2, 4, seed=3)
    assert quick_gradcheck(lambda z: function(z @ basis, y), rows(9, 2, seed=4).requires_grad_())


def test_nothing_is_squared_on_the_larger_side():
    x = rows(400, 3, dtype=torch.float32)
    y = rows(3, 400, dtype=torch.float32)
    for function in (matrix.linear_cka, matrix.cca, matrix.svcca, matrix.procrustes_distance):
        for z in (x, y):
            with LargestTensor() as largest:
                function(z, z + 1)
            assert largest.elements < 400 * 400
