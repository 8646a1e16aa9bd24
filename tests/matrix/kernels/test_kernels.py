"""Kernels and random features against loops, SciPy and closed forms."""

import functools
import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch

from matrix_ssl import matrix
from matrix_ssl.errors import MatrixError
from tests.support.matrix_samples import quick_gradcheck, quick_gradgradcheck, rows

KERNELS = {
    "linear": matrix.linear_kernel,
    "cosine": matrix.cosine_kernel,
    "polynomial": functools.partial(matrix.polynomial_kernel, degree=3, scale=0.5, offset=2.0),
    "gaussian": functools.partial(matrix.gaussian_kernel, width=1.3),
    "laplace": functools.partial(matrix.laplace_kernel, width=1.3),
    "angular": matrix.angular_kernel,
    "exponential": functools.partial(matrix.exponential_kernel, temperature=0.4),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


PAIRS = {
    "linear": lambda a, b: a @ b,
    "cosine": cosine,
    "polynomial": lambda a, b: (0.5 * (a @ b) + 2) ** 3,
    "gaussian": lambda a, b: math.exp(-((a - b) ** 2).sum() / (2 * 1.3**2)),
    "laplace": lambda a, b: math.exp(-math.sqrt(((a - b) ** 2).sum()) / 1.3),
    "angular": lambda a, b: 1 - math.acos(min(cosine(a, b), 1)) / math.pi,
    "exponential": lambda a, b: math.exp((cosine(a, b) - 1) / 0.4),
}


@every_kernel
class TestEveryKernel:
    def test_by_its_pairs(self, name):
        x = rows(6, 3) + 0.5
        expected = [[PAIRS[name](a, b) for b in x.numpy()] for a in x.numpy()]
        np.testing.assert_allclose(KERNELS[name](x), expected, atol=1e-12)

    def test_is_positive_semidefinite_and_symmetric(self, name):
        gram = KERNELS[name](rows(30, 2))
        np.testing.assert_allclose(gram, gram.mT, rtol=1e-12, atol=1e-14)
        eigenvalues = torch.linalg.eigvalsh(gram)
        assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]

    def test_batches_and_vmap(self, name):
        x = rows(12, 4).view(3, 4, 4)
        found = KERNELS[name](x)
        for a, b in zip(found, x, strict=True):
            np.testing.assert_allclose(a, KERNELS[name](b), atol=1e-13)
        np.testing.assert_allclose(torch.func.vmap(KERNELS[name])(x), found, atol=1e-13)

    def test_gradients(self, name):
        x = (rows(4, 3) + 0.3).requires_grad_()
        assert quick_gradcheck(KERNELS[name], x)
        assert quick_gradgradcheck(KERNELS[name], x)

    def test_float32_half_precision_and_autocast(self, name):
        """To 1e-5 of the largest element; the angle loses half of the digits beside 0 and π."""
        x = rows(20, 8) + 3
        expected = KERNELS[name](x.float().double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = KERNELS[name](x.float())
        assert found.dtype == torch.float32
        error = (found - expected).abs().max() / expected.abs().max()
        assert error <= (1e-3 if name == "angular" else 1e-5)
        half = x.bfloat16()
        assert torch.equal(KERNELS[name](half), KERNELS[name](half.float()))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_diagonal_of_many_columns_is_one(self, name, dtype):
        """Rounding of a cosine of one is no angle, and no temperature enlarges it."""
        if name in ("linear", "polynomial"):
            return
        kernel = functools.partial(matrix.exponential_kernel, temperature=1e-3) if "exp" in name else KERNELS[name]
        gram = kernel(rows(20, 20_000, dtype=dtype))
        assert torch.equal(gram.diagonal(), torch.ones(20, dtype=dtype))
        assert matrix.vendi_score(gram).item() <= 20 + 1e-4

    def test_equal_samples_have_finite_gradients(self, name):
        x = torch.ones(3, 2, dtype=torch.float64).requires_grad_()
        KERNELS[name](x).sum().backward()
        assert torch.isfinite(x.grad).all()


class TestWidths:
    def test_median(self):
        x = rows(9, 3)  # 36 pairs: the lower one in the middle
        distances = np.sort(scipy.spatial.distance.pdist(x))
        assert matrix.kernel_width(x, "median").item() == pytest.approx(distances[17], rel=1e-12)
        expected = matrix.gaussian_kernel(x, width=float(distances[17]))
        np.testing.assert_allclose(matrix.gaussian_kernel(x, width="median"), expected, atol=1e-12)

    def test_silverman_is_that_of_scipy_in_one_dimension(self):
        x = rows(40, 1)
        estimate = scipy.stats.gaussian_kde(x.numpy().T, bw_method="silverman")
        assert matrix.kernel_width(x, "silverman").item() == pytest.approx(estimate.covariance.item() ** 0.5, rel=1e-12)

    def test_one_for_each_matrix_of_a_batch(self):
        x = torch.stack([rows(6, 2), 5 * rows(6, 2, seed=1)])
        for rule in ("median", "silverman"):
            widths = matrix.kernel_width(x, rule)
            assert widths.shape == (2,)
            np.testing.assert_allclose(matrix.laplace_kernel(x, width=rule), matrix.laplace_kernel(x, width=widths))

    def test_a_rule_has_no_gradient(self):
        x = rows(5, 2).requires_grad_()
        width = matrix.kernel_width(x, "median").item()
        found = torch.autograd.grad(matrix.gaussian_kernel(x, width="median").sum(), x)[0]
        expected = torch.autograd.grad(matrix.gaussian_kernel(x, width=width).sum(), x)[0]
        np.testing.assert_allclose(found, expected, atol=1e-12)

    @pytest.mark.parametrize("kernel", [matrix.gaussian_kernel, matrix.laplace_kernel])
    def test_a_width_whose_square_vanishes_tells_all_samples_apart(self, kernel):
        for width in (1e-24, torch.tensor(1e-24)):
            assert torch.equal(kernel(rows(4, 2, dtype=torch.float32), width=width), torch.eye(4))

    def test_a_rule_that_is_none(self):
        x = rows(5, 2)
        for rule in ("scott", 1.0, torch.tensor(1.0)):
            with pytest.raises(ValueError, match="rule must be 'median' or 'silverman', got"):
                matrix.kernel_width(x, rule)
        for rule in ("median", "silverman"):
            with pytest.raises(MatrixError, match=r"beyond torch.float32: divide"):
                matrix.kernel_width(1e25 * x.float(), rule)

    def test_a_width_can_be_learnt(self):
        width = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        x = rows(5, 2)
        assert quick_gradcheck(lambda w: matrix.gaussian_kernel(x, width=w), width)

    def test_an_offset_costs_no_digits(self):
        x = rows(10, 3)
        found = matrix.gaussian_kernel(x + 1e6, width=1.0)
        np.testing.assert_allclose(found, matrix.gaussian_kernel(x, width=1.0), atol=1e-8)


class TestGrams:
    def test_normalised(self):
        gram = matrix.normalised_gram(matrix.linear_kernel(rows(5, 3)))
        assert gram.trace().item() == pytest.approx(1)

    def test_unit_diagonal_is_the_cosine(self):
        x = rows(5, 3)
        np.testing.assert_allclose(matrix.unit_diagonal(matrix.linear_kernel(x)), matrix.cosine_kernel(x), atol=1e-14)

    def test_centred_is_the_kernel_of_centred_samples(self):
        x = rows(6, 3) + 2
        expected = matrix.linear_kernel(x - x.mean(0))
        np.testing.assert_allclose(matrix.centred_gram(matrix.linear_kernel(x)), expected, atol=1e-13)

    def test_second_moment(self):
        x = rows(6, 3) + 2
        np.testing.assert_allclose(matrix.second_moment(x), x.mT @ x / 6, atol=1e-13)


class TestRandomFeatures:
    @pytest.mark.parametrize("name", ["gaussian", "laplace"])
    def test_error_is_what_is_stated(self, name):
        """Mean and standard deviation over 400 draws of 8 features."""
        x, kernel = rows(4, 3), getattr(matrix, f"{name}_kernel")
        exact = kernel(x, width=1.5)
        generator = torch.Generator().manual_seed(0)
        draws = torch.stack([
            matrix.linear_kernel(
                matrix.random_fourier_features(x, count=8, width=1.5, kernel=name, generator=generator)
            )
            for _ in range(400)
        ])  # fmt: skip
        stated = matrix.random_feature_error(exact, count=8, kernel=name)
        for wrong, message in ((exact.tolist(), "of type"), (exact + 0j, "complex"), (exact / 0, "not finite")):
            with pytest.raises(MatrixError, match=message):
                matrix.random_feature_error(wrong, count=8, kernel=name)
        assert ((draws.mean(0) - exact).abs() <= 4 * stated / 20 + 1e-12).all()
        off = ~torch.eye(4, dtype=torch.bool)
        np.testing.assert_allclose(draws.std(0)[off], stated[off], rtol=0.15)
        np.testing.assert_allclose(draws.diagonal(dim1=-2, dim2=-1), 1, atol=1e-12)

    def test_entropy_of_many_samples(self):
        x = rows(200, 2)
        exact = matrix.von_neumann_entropy(matrix.gaussian_kernel(x, width=2.0))
        features = matrix.random_fourier_features(x, count=2000, width=2.0, generator=torch.Generator().manual_seed(1))
        found = matrix.of_features.gram_entropy(features)
        assert found.item() == pytest.approx(exact.item(), abs=0.05)

    def test_the_same_seed_gives_the_same(self):
        first, second = (
            matrix.random_fourier_features(rows(3, 2), count=6, width=1.0, generator=torch.Generator().manual_seed(3))
            for _ in range(2)
        )
        assert torch.equal(first, second)


class TestErrors:
    def test_a_row_of_zeros_has_no_direction(self):
        x = torch.ones(4, 3)
        x[2] = 0
        for function in (matrix.cosine_kernel, matrix.angular_kernel, matrix.of_features.vendi_score):
            with pytest.raises(MatrixError, match=r"'x'.* has 1 rows of length zero, the first at \(2,\).*Remove"):
                function(x)

    def test_widths(self):
        for width in (0.0, -1.0, math.inf):
            with pytest.raises(ValueError, match="width must be a finite number above zero"):
                matrix.gaussian_kernel(rows(3, 2), width=width)
        with pytest.raises(ValueError, match="width must be finite numbers above zero, got"):
            matrix.gaussian_kernel(rows(3, 2), width=torch.tensor(-1.0))
        with pytest.raises(ValueError, match="'median' or 'silverman', got 'scott'"):
            matrix.gaussian_kernel(rows(3, 2), width="scott")
        with pytest.raises(MatrixError, match="rule 'median' is zero"):
            matrix.laplace_kernel(torch.ones(3, 2), width="median")
        with pytest.raises(MatrixError, match="has 1 rows: the width by the rule 'median' needs at least 2"):
            matrix.kernel_width(rows(1, 2), "median")

    def test_numbers(self):
        x = rows(3, 2)
        with pytest.raises(ValueError, match="degree must be a whole number, 1 or above, got 0"):
            matrix.polynomial_kernel(x, degree=0)
        with pytest.raises(ValueError, match="temperature must be"):
            matrix.exponential_kernel(x, temperature=0.0)
        with pytest.raises(ValueError, match="count must be an even number of features, 2 or above, got 3"):
            matrix.random_fourier_features(x, count=3, width=1.0)
        with pytest.raises(ValueError, match="kernel must be 'gaussian' or 'laplace'"):
            matrix.random_fourier_features(x, count=4, width=1.0, kernel="linear")

    def test_grams(self):
        with pytest.raises(MatrixError, match=r"'gram'.* has the trace 0: it cannot be scaled to trace one"):
            matrix.normalised_gram(torch.zeros(2, 2))
        with pytest.raises(MatrixError, match=r"'gram'.* has 0 on its diagonal at \(1,\)"):
            matrix.unit_diagonal(torch.diag(torch.tensor([1.0, 0.0])))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cosine", "angular", "gaussian"])
def test_compiled_without_breaks(name):
    torch._dynamo.reset()
    x = rows(4, 3).requires_grad_()
    function = KERNELS[name] if name != "gaussian" else functools.partial(matrix.gaussian_kernel, width="median")
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    gradient = torch.autograd.grad(found.sum(), x)[0]
    np.testing.assert_allclose(gradient, torch.autograd.grad(function(x).sum(), x)[0], atol=1e-12)
