"""The algorithms behind the losses: equal to dense references, as exact as their bounds say, on either side."""

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from matrix_ssl.losses import Objective, matrix_ssl_order_terms
from matrix_ssl.losses.logarithm import plan as plans
from matrix_ssl.losses.logarithm import quadrature
from matrix_ssl.losses.logarithm import series as polynomials
from matrix_ssl.losses.logarithm.trace import log_det_one_plus, trace_polynomial
from matrix_ssl.losses.rows import add_symmetric_product, symmetric_product
from tests.losses.test_losses import covariance, rows_of
from tests.support.quick import cross

ALGORITHMS = ("eigh", "quadrature", "polynomial", "auto")
SPECTRA = {
    "flat": lambda k: np.ones(k),
    "1/k": lambda k: 1 / np.arange(1, k + 1),
    "1/k²": lambda k: 1 / np.arange(1, k + 1) ** 2,
    "one direction": lambda k: np.eye(k)[0] + 1e-9,
    "two values": lambda k: np.where(np.arange(k) < k // 2, 1.0, 0.01),
}


def pair(n, d, spectrum="1/k", *, noise=0.5, seed=0, dtype=torch.float64):
    """Teacher and student rows whose columns have standard deviations of the square root of a spectrum."""
    r = np.random.default_rng(seed)
    scale = np.sqrt(SPECTRA[spectrum](d))
    base = r.standard_normal((n, d))
    return [torch.from_numpy((base + noise * r.standard_normal((n, d))) * scale).to(dtype) for _ in range(2)]


def dense(p, z, *, ridge, log):
    """Uniformity of weight one and alignment from d x d matrices, with a logarithm given as a function of a matrix."""
    a, b = rows_of(p), rows_of(z)
    identity = ridge * np.eye(a.shape[1])
    uniformity = -np.trace(log(covariance(a, b) + identity)).real
    alignment = -np.trace((covariance(a, a) + identity) @ log(covariance(b, b) + identity)).real
    return uniformity, alignment


def taylor_log(order):
    def log(x):
        e = x - np.eye(len(x))
        return sum((-1) ** (k + 1) / k * np.linalg.matrix_power(e, k) for k in range(1, order + 1))

    return log


def value_and_gradients(p, z, side="auto", **constants):
    p, z = p.clone().requires_grad_(), z.clone().requires_grad_()
    terms = matrix_ssl_order_terms(p, z, objective=Objective(**constants), side=side)
    return terms, *torch.autograd.grad(terms.loss, (p, z))


class TestExact:
    @pytest.mark.parametrize(("spectrum", "ridge"), cross(SPECTRA, [0.01, 0.1, 1.0, 10.0], row="1/k", column=0.1))
    @pytest.mark.parametrize("side", ["samples", "features"])
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_is_scipys_logarithm(self, algorithm, side, ridge, spectrum):
        for n, d in ((7, 12), (12, 7)):
            p, z = pair(n, d, spectrum, noise=0.05)
            expected = dense(p, z, ridge=ridge, log=scipy.linalg.logm)
            objective = Objective(ridge=ridge, uniformity_weight=1.0, algorithm=algorithm)
            terms = matrix_ssl_order_terms(p, z, objective=objective, side=side)
            np.testing.assert_allclose([terms.uniformity, terms.alignment], expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("ridge", [0.01, 0.1, 1.0])
    @pytest.mark.parametrize(("n", "d"), [(30, 50), (50, 30)])
    def test_all_algorithms_and_sides_have_one_gradient(self, n, d, ridge):
        p, z = pair(n, d)
        _, by_p, by_z = value_and_gradients(p, z, ridge=ridge, algorithm="eigh")
        for algorithm, side in itertools.product(ALGORITHMS, ("samples", "features")):
            _, p_gradient, z_gradient = value_and_gradients(p, z, ridge=ridge, algorithm=algorithm, side=side)
            torch.testing.assert_close(p_gradient, by_p, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(z_gradient, by_z, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("side", ["samples", "features"])
    def test_gradient_is_that_of_finite_differences(self, algorithm, side):
        for n, d in ((3, 5), (6, 3)):
            inputs = [x.requires_grad_() for x in pair(n, d)]
            objective = Objective(ridge=0.3, uniformity_weight=0.4, algorithm=algorithm)
            loss = functools.partial(matrix_ssl_order_terms, objective=objective, side=side)
            assert torch.autograd.gradcheck(lambda *x: loss(*x).loss, inputs)  # noqa: B023

    # condition numbers up to 100
    @pytest.mark.parametrize(("spectrum", "ridge"), cross(SPECTRA, [1e-2, 0.1, 1.0], row="1/k", column=1e-2))
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_float32_keeps_five_digits(self, algorithm, ridge, spectrum):
        for n, d in ((96, 160), (160, 96), (64, 64)):
            p, z = pair(n, d, spectrum, dtype=torch.float32, noise=0.1)
            found, _, gradient = value_and_gradients(p, z, ridge=ridge, algorithm=algorithm)
            exact, _, expected = value_and_gradients(p.double(), z.double(), ridge=ridge, algorithm="eigh")
            assert found.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)
            if spectrum != "one direction":  # there the gradient by rows is a small rest of larger parts that cancel
                assert (gradient - expected).norm() < 1e-5 * expected.norm()

    def test_zero_covariances(self):
        p = torch.ones(6, 4, dtype=torch.float64)
        for algorithm, side in itertools.product(ALGORITHMS, ("samples", "features")):
            terms, _, gradient = value_and_gradients(p, p, ridge=0.1, algorithm=algorithm, side=side)
            expected = -0.1 * 4 * math.log(0.1) - 0.4 * math.log(0.1)
            assert terms.loss.item() == pytest.approx(expected, rel=1e-12)
            assert gradient.abs().max() < 1e-12


class TestTaylor:
    @pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 7, 10, 16])
    @pytest.mark.parametrize("ridge", [0.1, 0.5, 1.0, 1.7])
    @pytest.mark.parametrize("side", ["samples", "features"])
    def test_any_order_is_the_dense_series(self, side, ridge, order):
        for n, d in ((6, 9), (9, 6)):
            p, z = pair(n, d)
            expected = dense(p, z, ridge=ridge, log=taylor_log(order))
            objective = Objective(ridge=ridge, uniformity_weight=1.0, logarithm="taylor", order=order)
            terms = matrix_ssl_order_terms(p, z, objective=objective, side=side)
            np.testing.assert_allclose([terms.uniformity, terms.alignment], expected, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("order", [1, 2, 3, 4, 6, 9])
    @pytest.mark.parametrize("side", ["samples", "features"])
    def test_gradient(self, side, order):
        for n, d in ((3, 5), (6, 3)):
            inputs = [x.requires_grad_() for x in pair(n, d)]
            objective = Objective(ridge=0.6, uniformity_weight=0.5, logarithm="taylor", order=order)
            loss = functools.partial(matrix_ssl_order_terms, objective=objective, side=side)
            assert torch.autograd.gradcheck(lambda *x: loss(*x).loss, inputs)  # noqa: B023


class TestBounds:
    """On scalars, where the error of the derivative can be measured directly."""

    points = pytest.mark.parametrize(
        ("ridge", "largest"), [(r, x) for r in (1e-3, 1e-2, 0.1, 1.0, 30.0) for x in (1e-4, 0.01, 0.1, 1.0)]
    )

    @staticmethod
    def slope_error(slope, ridge, largest):
        x = largest * (1 - np.cos(np.linspace(0, np.pi, 4001))) / 2
        return np.abs(slope(x) * (x + ridge) - 1).max()

    @points
    @pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
    def test_polynomial(self, ridge, largest, tolerance):
        degree = polynomials.chebyshev_degree(ridge, largest, tolerance)
        series = polynomials.chebyshev_log(ridge, largest, degree)

        def slope(x):
            derivative = np.polynomial.Chebyshev(series.coefficients).deriv()
            return series.scale * derivative(series.scale * x + series.shift)

        condition = (ridge + largest) / ridge
        assert self.slope_error(slope, ridge, largest) <= tolerance * 1.001 + 1e-13 * condition
        assert np.polynomial.chebyshev.chebval(series.shift, series.coefficients) == pytest.approx(0, abs=1e-13)
        assert series.at_zero == math.log(ridge)

    def test_the_degree_is_not_wasteful(self):
        """One term fewer would not do."""
        for ridge, largest in ((0.1, 1.0), (0.1, 0.1), (1.0, 1.0)):
            degree = polynomials.chebyshev_degree(ridge, largest, 1e-6) - 1
            series = polynomials.chebyshev_log(ridge, largest, degree)
            derivative = np.polynomial.Chebyshev(series.coefficients).deriv()
            error = self.slope_error(lambda x: series.scale * derivative(series.scale * x - 1), ridge, largest)  # noqa: B023
            assert error > 1e-6

    @points
    @pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-12])
    def test_quadrature(self, ridge, largest, tolerance):
        count = quadrature.node_count(ridge, largest, tolerance)

        def slope(count):
            weights, shifts = (np.array(v)[:, None] for v in quadrature.nodes(ridge, largest, count))
            return lambda x: (weights * shifts / (shifts + x) ** 2).sum(0)

        assert self.slope_error(slope(count), ridge, largest) <= max(tolerance, 1e-14) * 1.001 + 4e-15
        if count > 1:
            assert self.slope_error(slope(count - 1), ridge, largest) > max(tolerance, 1e-14) * 0.999

    def test_ratio_is_the_series_over_x(self):
        for series in (polynomials.taylor(0.4, 6), polynomials.chebyshev_log(0.1, 0.7, 9)):
            for x in (1e-3, 0.2, 0.7):
                y = series.scale * x + series.shift
                whole = np.polynomial.chebyshev.chebval(y, series.coefficients)
                ratio = np.polynomial.chebyshev.chebval(y, series.over_x())
                assert ratio == pytest.approx(whole / x, rel=1e-10)

    def test_plans(self):
        """Cheap polynomials where the ridge is large, eigen-decomposition where it is tiny, and nothing but by name."""
        plan = plans.plan(0.1, 0.1, 1.5e-5, "auto", may_decompose=True)
        assert plan.algorithm == "polynomial" and plan.size < 10
        assert plans.plan(1e-4, 1.0, 1.5e-5, "auto", may_decompose=True).algorithm == "eigh"
        device = plans.plan(1e-4, 1.0, 1.5e-5, "auto", may_decompose=False)
        assert device.algorithm == "quadrature" and 20 < device.size < 60
        assert plans.plan(0.1, 1.0, 1.5e-5, "auto", may_decompose=False).algorithm == "polynomial"
        for name in ("eigh", "quadrature", "polynomial"):
            assert plans.plan(0.1, 0.1, 1.5e-5, name, may_decompose=True).algorithm == name

    def test_the_interval_holds_the_spectrum(self):
        for spectrum in SPECTRA:
            z = rows_of(pair(20, 30, spectrum)[1])
            z = (z - z.mean(0)) / math.sqrt(20)
            gram = torch.from_numpy(z @ z.T)
            largest = np.linalg.eigvalsh(gram.numpy())[-1]
            bound = plans.choose(gram @ gram, 0.1).largest
            assert largest <= bound * (1 + 1e-12) and bound <= max(1.0, 2 * largest)


class TestParts:
    @pytest.mark.parametrize("degree", range(15))
    def test_symmetric_polynomial(self, degree):
        r = np.random.default_rng(degree)
        y, w = (torch.from_numpy(x + x.T) / 8 for x in r.standard_normal((2, 6, 6)))
        coefficients = tuple(r.standard_normal(degree + 1).tolist())
        powers = [np.linalg.matrix_power(y.numpy(), k) for k in range(degree + 1)]
        in_powers = np.polynomial.chebyshev.cheb2poly(coefficients)
        value = sum(c * p for c, p in zip(in_powers, powers, strict=True))
        derivative = np.zeros((6, 6))
        for k in range(1, degree + 1):
            for i in range(k):
                derivative += in_powers[k] * powers[i] @ w.numpy() @ powers[k - 1 - i]
        found = polynomials.symmetric_polynomial(y, y @ y, w, coefficients)
        # the reference's powers have large coefficients that cancel
        np.testing.assert_allclose(found[0], value, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found[1], derivative, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("degree", range(1, 12))
    def test_trace_polynomial(self, degree):
        r = np.random.default_rng(degree)
        x = torch.from_numpy(r.standard_normal((5, 5)) / 3).requires_grad_()
        coefficients = tuple(r.standard_normal(degree + 1).tolist())
        expected = sum(c * torch.linalg.matrix_power(x, k).trace() for k, c in enumerate(coefficients))
        (gradient,) = torch.autograd.grad(expected, x)
        value, found = trace_polynomial(x.detach(), coefficients)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(found, gradient)

    @pytest.mark.parametrize("n", [1, 2, 5, 8])
    def test_log_det_one_plus(self, n):
        signs = set()
        for seed in range(12):
            x = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, n)) * 1.5).requires_grad_()
            sign, expected = torch.linalg.slogdet(torch.eye(n, dtype=x.dtype) + x)
            (gradient,) = torch.autograd.grad(expected, x)
            value, found, negative = log_det_one_plus(x.detach())
            torch.testing.assert_close(value, expected.detach())
            torch.testing.assert_close(found, gradient)
            assert negative == (sign < 0)
            signs.add(sign.item())
        assert signs == {-1.0, 1.0}

    @pytest.mark.parametrize("n", [3, 511, 512, 700, 1025])
    def test_symmetric_product(self, n):
        g = torch.Generator().manual_seed(0)
        x, a = (torch.randn(n, 7, generator=g, dtype=torch.float64) for _ in range(2))
        torch.testing.assert_close(symmetric_product(x, x), x @ x.mT)
        total = symmetric_product(a, a)
        expected = 0.5 * total - 2 * (x @ a.mT + a @ x.mT)
        found = add_symmetric_product(total, (x, a), (a, x), alpha=-2.0, beta=0.5)
        assert found is total
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(symmetric_product(x.mT.contiguous().mT, x), x @ x.mT)

    def test_blocks_are_used_in_the_losses_at_large_sizes(self):
        """The same values with and without blocks: 520 rows take the blocks, their covariance of 9 columns does not."""
        p, z = pair(520, 9)
        few = value_and_gradients(p, z, side="features")
        many = value_and_gradients(p, z, side="samples", algorithm="polynomial")
        torch.testing.assert_close(many[2], few[2], rtol=1e-9, atol=1e-12)
