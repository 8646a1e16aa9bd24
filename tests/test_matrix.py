"""Matrix functions against SciPy, finite differences and the identities of the theory."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_ssl.matrix import (
    effective_rank,
    log1p_ratio,
    matrix_cross_entropy,
    matrix_entropy,
    matrix_kl,
    matrix_log,
    spectrum,
)


def positive(eigenvalues, *, seed=0, dtype=torch.float64):
    """A symmetric matrix with these eigenvalues in a random basis."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    basis = torch.from_numpy(basis)
    a = (basis * values) @ basis.mT
    return ((a + a.mT) / 2).to(dtype)


eigenvalue_lists = st.lists(st.floats(1e-3, 5.0), min_size=1, max_size=6)
pairs = st.integers(1, 6).flatmap(
    lambda d: st.tuples(*[st.lists(st.floats(1e-3, 5.0), min_size=d, max_size=d) for _ in range(2)])
)
SPECTRA = {
    "distinct": [0.01, 0.3, 0.9, 2.0],
    "repeated": [0.2, 0.2, 0.2, 1.5],
    "nearly repeated": [0.2, 0.2 + 1e-9, 0.2 + 1e-7, 1.5],
    "identity": [1.0, 1.0, 1.0, 1.0],
    "multiple of the identity": [0.05] * 4,
    "wide": [1e-4, 1e-2, 1.0, 10.0],
}
DEFICIENT = {"rank two": [0.0, 0.0, 0.3, 1.2], "zero": [0.0] * 4, "tiny": [1e-14, 1e-9, 1e-3, 0.4]}


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
        assert torch.autograd.gradcheck(lambda x: matrix_log((x + x.mT) / 2), a, eps=min(eigenvalues) * 1e-4, atol=1e-4)

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

    def test_only_the_symmetric_part_matters(self):
        a = positive([0.5, 1.0, 2.0])
        skew = torch.tensor([[0.0, 1.0, -2.0], [-1.0, 0.0, 0.5], [2.0, -0.5, 0.0]], dtype=torch.float64)
        np.testing.assert_allclose(matrix_log(a + skew), matrix_log(a), atol=1e-14)

    def test_is_not_finite_outside_the_cone(self):
        assert not torch.isfinite(matrix_log(positive([-0.1, 1.0]))).all()
        assert not torch.isfinite(matrix_log(torch.zeros(2, 2))).all()

    @pytest.mark.parametrize("shape", [(2, 3), (3,), (0, 0), ()])
    def test_shapes(self, shape):
        with pytest.raises(ValueError, match="square matrix"):
            matrix_log(torch.zeros(shape))


class TestLog1pRatio:
    scales = pytest.mark.parametrize("scale", [1e-2, 0.5, 3.0, 100.0])

    @scales
    @pytest.mark.parametrize("eigenvalues", (SPECTRA | DEFICIENT).values(), ids=SPECTRA | DEFICIENT)
    def test_gradient(self, eigenvalues, scale):
        a = positive(eigenvalues, seed=3).requires_grad_()
        # scale² brings the derivative, about 1/scale², to order one
        function = lambda x: scale**2 * log1p_ratio((x + x.mT) / 2 + 2e-6 * scale * torch.eye(4), scale)  # noqa: E731
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
            value = log1p_ratio(a, scale)
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


class TestInformation:
    @given(pairs, st.integers(0, 10))
    @settings(max_examples=60, deadline=None)
    def test_divergence_is_not_negative_and_closes_the_cross_entropy(self, eigenvalues, seed):
        p, q = positive(eigenvalues[0], seed=seed), positive(eigenvalues[1], seed=seed + 1)
        divergence = matrix_kl(p, q).item()
        assert divergence > -1e-10
        assert matrix_cross_entropy(p, q).item() == pytest.approx(divergence + matrix_entropy(p).item(), abs=1e-10)
        assert matrix_kl(p, p).item() == pytest.approx(0, abs=1e-10)
        if torch.linalg.matrix_norm(p - q) > 1e-2:
            assert divergence > 1e-7

    @given(pairs)
    @settings(max_examples=40, deadline=None)
    @pytest.mark.filterwarnings("ignore:logm result may be inaccurate:RuntimeWarning")  # by 4e-13
    def test_definitions_with_scipy(self, eigenvalues):
        p, q = positive(eigenvalues[0]), positive(eigenvalues[1], seed=1)
        log_p, log_q = scipy.linalg.logm(p.numpy()), scipy.linalg.logm(q.numpy())
        p_, q_ = p.numpy(), q.numpy()
        assert matrix_entropy(p).item() == pytest.approx(np.trace(p_ - p_ @ log_p), abs=1e-9)
        assert matrix_cross_entropy(p, q).item() == pytest.approx(np.trace(q_ - p_ @ log_q), abs=1e-9)
        assert matrix_kl(p, q).item() == pytest.approx(np.trace(p_ @ log_p - p_ @ log_q - p_ + q_), abs=1e-9)

    @given(eigenvalue_lists, st.integers(0, 10))
    @settings(max_examples=40, deadline=None)
    def test_entropy_of_trace_one_lies_between_rank_one_and_uniform(self, eigenvalues, seed):
        d = len(eigenvalues)
        a = positive(np.array(eigenvalues) / sum(eigenvalues), seed=seed)
        uniform = matrix_entropy(torch.eye(d, dtype=torch.float64) / d).item()
        assert uniform == pytest.approx(math.log(d) + 1, abs=1e-12)
        assert 1 - 1e-10 <= matrix_entropy(a).item() <= uniform + 1e-10
        assert matrix_entropy(positive([1.0] + [0.0] * (d - 1))).item() == pytest.approx(1, abs=1e-10)

    @pytest.mark.parametrize("function", [matrix_cross_entropy, matrix_kl])
    @pytest.mark.parametrize("at", ["distinct", "repeated", "multiple of the identity"])
    def test_gradients(self, function, at):
        inputs = [positive(SPECTRA[at]).requires_grad_(), positive(SPECTRA[at], seed=1).requires_grad_()]
        assert torch.autograd.gradcheck(lambda p, q: function((p + p.mT) / 2, (q + q.mT) / 2), inputs, eps=1e-7)

    def test_gradient_of_entropy_vanishes_at_the_identity(self):
        a = torch.eye(3, dtype=torch.float64, requires_grad=True)
        matrix_entropy(a).backward()
        np.testing.assert_allclose(a.grad, 0, atol=1e-15)  # d ME / dA = -log A

    def test_batches(self):
        p = torch.stack([positive([0.2, 0.8], seed=s) for s in range(3)])
        q = torch.stack([positive([0.4, 0.6], seed=s) for s in range(3, 6)])
        for function in (matrix_cross_entropy, matrix_kl):
            assert function(p, q).shape == (3,)
            assert function(p, q)[1].item() == pytest.approx(function(p[1], q[1]).item(), rel=1e-12)


class TestSpectrum:
    @pytest.mark.parametrize(("n", "d"), [(20, 6), (6, 20), (7, 7)])
    def test_is_that_of_the_covariance(self, n, d):
        rows = np.random.default_rng(0).standard_normal((n, d)) * np.arange(1, d + 1) + 5
        expected = np.sort(np.linalg.eigvalsh(np.cov(rows.T)))[::-1][: min(n, d)]
        found = spectrum(torch.from_numpy(rows))
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-13)
        assert found.sum().item() == pytest.approx(1)

    def test_scale_and_shift_do_not_matter(self):
        rows = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 5)))
        np.testing.assert_allclose(spectrum(rows * 37 - 4), spectrum(rows), atol=1e-12)

    @pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
    def test_equal_rows(self, shape):
        assert torch.equal(spectrum(torch.ones(shape)), torch.zeros(4))
        for rows in (torch.ones(shape), torch.full(shape, 0.3), torch.linspace(-3, 3, 90).expand(40, 90)):
            assert effective_rank(spectrum(rows)).item() == pytest.approx(1, abs=1e-3)

    def test_half_precision_under_autocast(self):
        rows = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 5))).to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(spectrum(rows), spectrum(rows.float()))

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda v: sum(v) > 0.1))
    @settings(max_examples=50, deadline=None)
    def test_effective_rank_counts_directions(self, values):
        p = torch.tensor(values, dtype=torch.float64) / sum(values)
        assert 1 - 1e-12 <= effective_rank(p).item() <= int((p > 0).sum()) + 1e-9

    @pytest.mark.parametrize("k", [1, 3, 8])
    def test_effective_rank_of_a_flat_spectrum(self, k):
        flat = torch.cat([torch.full((k,), 1 / k, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)])
        assert effective_rank(flat).item() == pytest.approx(k)
        a = positive(flat)
        assert effective_rank(flat).item() == pytest.approx(math.exp(matrix_entropy(a).item() - 1))
