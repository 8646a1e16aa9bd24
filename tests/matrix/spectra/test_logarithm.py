"""Logarithms of matrices against SciPy, finite differences and quadrature."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings

from matrix_ssl.matrix import log1p_ratio, log_det, matrix_kl, matrix_log
from tests.support.matrix_samples import DEFICIENT, SPECTRA, eigenvalue_lists, positive, rows, symmetric_part


class TestLogarithm:
    @pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA)
    def test_is_scipys(self, eigenvalues):
        a = positive(eigenvalues)
        np.testing.assert_allclose(matrix_log(a), scipy.linalg.logm(a.numpy()), atol=1e-10)

    @given(eigenvalue_lists)
    @settings(max_examples=50, deadline=None)
    def test_is_the_inverse_of_the_exponential(self, eigenvalues):
        a = positive(eigenvalues)
        np.testing.assert_allclose(scipy.linalg.expm(matrix_log(a).numpy()), a, atol=1e-10)

    @pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA)
    def test_gradient(self, eigenvalues):
        a = positive(eigenvalues).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x: matrix_log(symmetric_part(x)), a, eps=min(eigenvalues) * 1e-4, atol=1e-4
        )

    def test_gradient_satisfies_the_identity_of_frechet(self):
        q, p = positive([0.3, 0.3, 0.7, 2.0]).requires_grad_(), positive([0.1, 0.5, 0.9, 1.1], seed=1)
        (matrix_log(q) * p).sum().backward()
        assert (q.grad * q).sum().item() == pytest.approx(p.trace().item(), rel=1e-12)

    def test_batches_and_half_precision(self):
        stack = torch.stack([positive([0.5, 1.0, 2.0], seed=s) for s in range(4)]).view(2, 2, 3, 3)
        np.testing.assert_allclose(matrix_log(stack)[1, 0], scipy.linalg.logm(stack[1, 0].numpy()), atol=1e-12)
        half = stack.to(torch.bfloat16)
        assert torch.equal(matrix_log(half), matrix_log(half.float()))
        single = matrix_log(stack.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(matrix_log(stack.float()), single)

    def test_rounding_is_averaged_over_both_triangles(self):
        a = positive([0.5, 1.0, 2.0])
        skew = 1e-14 * torch.tensor([[0.0, 1.0, -2.0], [-1.0, 0.0, 0.5], [2.0, -0.5, 0.0]], dtype=torch.float64)
        assert torch.equal(matrix_log(a + skew), matrix_log((a + skew).mT))

    @pytest.mark.parametrize("ridge", [1e-3, 1e-10, 1e-16, 1e-18, 1e-30])
    def test_gradient_between_eigenvalues_that_are_far_apart(self, ridge):
        """At diag(1, 0) + ridge·I the derivative of element 01 by itself is (log(1 + μ) - log μ) / 1."""
        expected = math.log1p(ridge) - math.log(ridge)
        a = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)).requires_grad_()
        matrix_log(a, ridge=ridge)[0, 1].backward()
        assert 2 * a.grad[0, 1].item() == pytest.approx(expected, rel=1e-13)
        q = a.detach().clone().requires_grad_()
        p = torch.tensor([[0.5, 0.2], [0.2, 0.5]], dtype=torch.float64)
        matrix_kl(p, q, ridge=ridge).backward()
        assert q.grad[0, 1].item() == pytest.approx(-0.2 * expected, rel=1e-13)

    def test_ridge(self):
        a = positive([0.0, 0.0, 0.3, 1.2])
        shifted = a.numpy() + 0.1 * np.eye(4)
        np.testing.assert_allclose(matrix_log(a, ridge=0.1), scipy.linalg.logm(shifted), atol=1e-12)

    def test_unchecked_it_is_not_finite_outside_the_cone(self):
        assert not torch.isfinite(matrix_log(positive([-0.1, 1.0]), validate=False)).all()
        assert not torch.isfinite(matrix_log(torch.zeros(2, 2), validate=False)).all()


class TestLog1pRatio:
    scales = pytest.mark.parametrize("scale", [1e-2, 0.5, 3.0, 100.0])

    @scales
    @pytest.mark.parametrize("eigenvalues", (SPECTRA | DEFICIENT).values(), ids=SPECTRA | DEFICIENT)
    def test_gradient(self, eigenvalues, scale):
        a = positive(eigenvalues, seed=3).requires_grad_()
        # scale² brings the derivative, about 1/scale², to order one
        function = lambda x: scale**2 * log1p_ratio(symmetric_part(x) + 2e-6 * scale * torch.eye(4), scale)  # noqa: E731
        assert torch.autograd.gradcheck(function, a, eps=1e-6 * scale, atol=1e-6, rtol=1e-4)

    @scales
    @pytest.mark.parametrize(("n", "d"), [(4, 9), (9, 4)])
    def test_carries_the_logarithm_to_the_other_side(self, n, d, scale):
        b = torch.from_numpy(np.random.default_rng(0).standard_normal((n, d)) / 3)
        expected = scipy.linalg.logm((b.mT @ b).numpy() + scale * np.eye(d))
        found = math.log(scale) * np.eye(d) + (b.mT @ log1p_ratio(b @ b.mT, scale) @ b).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-11)

    @scales
    def test_at_zero(self, scale):
        a = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        value = log1p_ratio(a, scale)
        np.testing.assert_allclose(value.detach(), np.eye(3) / scale, rtol=1e-15)
        value.trace().backward()
        np.testing.assert_allclose(a.grad, -np.eye(3) / (2 * scale**2), rtol=1e-14)  # ψ(x) = 1/s - x/(2s²) + ...

    @pytest.mark.parametrize("scale", [1e-2, 0.1, 1.0])
    def test_float32_keeps_its_digits_at_rank_deficiency(self, scale):
        rows = torch.from_numpy(np.random.default_rng(0).standard_normal((24, 6)))
        gram = rows @ rows.mT / 100  # rank 6 of 24, eigenvalues from 0 to about 0.5
        weights = positive(np.linspace(0, 1, 24), seed=2)
        found = []
        for dtype in (torch.float32, torch.float64):
            a = gram.float().to(dtype).requires_grad_()
            value = log1p_ratio(a, scale, validate=False)  # rounding of float32, told as float64
            (value * weights.to(dtype)).sum().backward()
            found.append((value.detach().double(), a.grad.double()))
        for single, double in zip(*found, strict=True):
            assert (single - double).norm() < 1e-5 * double.norm()

    @pytest.mark.parametrize("v", [1e-12, 1e-6, 0.01, 0.0499, 0.05, 0.06, 0.2, 0.45, 1.0, 50.0])
    @pytest.mark.parametrize("part", [0.0, 0.3, 0.999999, 1.0])
    def test_derivative_at_every_pair_of_eigenvalues(self, v, part):
        """The 2 x 2 derivative against Gauss-Legendre quadrature of ψ[a, b] = ∫ ψ'(a + t(b - a)) dt."""
        scale = 0.3
        a, b = part * v * scale, v * scale
        nodes, quadrature = np.polynomial.legendre.leggauss(40)
        x = (a + (nodes + 1) / 2 * (b - a)) / scale
        series = sum((-1) ** k * k / (k + 1) * x ** (k - 1) for k in range(1, 12))
        with np.errstate(divide="ignore", invalid="ignore"):
            direct = (x / (1 + x) - np.log1p(x)) / x**2
        expected = (quadrature / 2 * np.where(x < 1e-2, series, direct)).sum() / scale**2
        diagonal = torch.diag(torch.tensor([a, b], dtype=torch.float64)).requires_grad_()
        log1p_ratio(diagonal, scale)[0, 1].backward()
        assert diagonal.grad[0, 1].item() == pytest.approx(expected / 2, rel=1e-9)


class TestLogDeterminant:
    @pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA)
    @pytest.mark.parametrize("ridge", [0.0, 0.3])
    def test_is_the_sum_of_logarithms(self, eigenvalues, ridge):
        a = positive(eigenvalues)
        assert log_det(a, ridge=ridge).item() == pytest.approx(sum(math.log(v + ridge) for v in eigenvalues), abs=1e-11)
        shifted = a + ridge * torch.eye(4, dtype=torch.float64)
        assert log_det(a, ridge=ridge).item() == pytest.approx(matrix_log(shifted).trace().item(), abs=1e-10)

    @pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA)
    def test_gradient_is_the_inverse(self, eigenvalues):
        a = positive(eigenvalues).requires_grad_()
        log_det(a, ridge=0.01).backward()
        expected = np.linalg.inv(a.detach().numpy() + 0.01 * np.eye(4))
        np.testing.assert_allclose(a.grad, expected, rtol=1e-9, atol=1e-9)

    def test_gradcheck(self):
        a = torch.stack([positive([0.5, 0.5, 2.0], seed=s) for s in range(2)]).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: log_det(symmetric_part(x)), a)

    def test_unchecked_it_is_nan_where_it_is_not_defined(self):
        stack = torch.stack([positive([-0.1, 1.0]), positive([0.5, 1.0])])
        found = log_det(stack, validate=False)
        assert found[0].isnan()
        assert found[1].item() == pytest.approx(math.log(0.5))

    def test_a_large_matrix_does_not_overflow(self):
        a = rows(600, 300, dtype=torch.float32)
        a = a.mT @ a  # determinant about 600^300
        expected = np.linalg.slogdet(a.double().numpy())[1]
        assert log_det(a).item() == pytest.approx(expected, rel=1e-5)
