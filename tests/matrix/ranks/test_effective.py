"""Effective rank, coding rate and spectrum against NumPy and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from matrix_ssl import errors
from matrix_ssl.matrix import coding_rate, covariance, effective_rank, of_features, shannon_entropy, spectrum
from matrix_ssl.matrix.numerics import validation
from tests.support.matrix_samples import positive, rows


def rank_by_numpy(x):
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = values / values.sum()
    p = p[p > 1e-14]
    return math.exp(-(p * np.log(p)).sum())


class TestEffectiveRank:
    @pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6), (1, 5), (5, 1)])
    def test_of_any_matrix(self, shape):
        x = rows(*shape) + 0.5
        assert effective_rank(x).item() == pytest.approx(rank_by_numpy(x), rel=1e-10)
        assert effective_rank(1e-20 * x).item() == pytest.approx(rank_by_numpy(x), rel=1e-10)
        assert effective_rank(x.float()).item() == pytest.approx(rank_by_numpy(x.float()), rel=1e-6)

    @pytest.mark.parametrize("rank", [1, 5, 20])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_of_a_deficient_matrix(self, rank, dtype):
        x = rows(300, 64, rank=rank, dtype=dtype)
        expected = rank_by_numpy(rows(300, 64, rank=rank))
        assert effective_rank(x).item() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-10)

    def test_of_a_large_matrix_of_rank_two_without_rounding(self):
        r = np.random.default_rng(0)
        x = torch.from_numpy(r.integers(-9, 10, (300, 2)) @ r.integers(-9, 10, (2, 300)))
        assert effective_rank(x.float()).item() == pytest.approx(rank_by_numpy(x), rel=3e-7)

    def test_float64_sees_small_singular_values(self):
        x = torch.diag(torch.tensor([1.0] + 5 * [1e-8], dtype=torch.float64))
        assert effective_rank(x).item() == pytest.approx(rank_by_numpy(x), rel=1e-12)

    @pytest.mark.parametrize("k", [1, 3, 8])
    def test_of_a_flat_spectrum(self, k):
        flat = torch.cat([torch.full((k,), 2.0), torch.zeros(5)])
        assert effective_rank(torch.diag(flat)).item() == pytest.approx(k, rel=1e-6)
        assert effective_rank(positive(flat)).item() == pytest.approx(k)

    def test_of_a_covariance_is_that_of_its_spectrum(self):
        x = rows(30, 6) * torch.arange(1, 7)
        assert effective_rank(covariance(x)).item() == pytest.approx(of_features.effective_rank(x).item(), rel=1e-10)
        assert effective_rank(covariance(x)).item() == pytest.approx(shannon_entropy(spectrum(x)).exp().item())
        assert effective_rank(x).item() > effective_rank(covariance(x)).item() + 0.5

    def test_of_nothing(self):
        assert effective_rank(torch.zeros(3, 4)).item() == 1

    @pytest.mark.parametrize("scale", [1e-18, 1e18])
    def test_float32_neither_overflows_nor_vanishes(self, scale):
        x = rows(9, 4, dtype=torch.float32)
        assert effective_rank(x * scale).item() == pytest.approx(effective_rank(x).item(), rel=1e-5)


class TestCodingRate:
    @pytest.mark.parametrize(("n", "d"), [(20, 6), (6, 20), (7, 7)])
    @pytest.mark.parametrize("distortion", [0.1, 0.5, 3.0])
    def test_is_the_formula(self, n, d, distortion):
        z = rows(n, d)
        inside = np.eye(d) + d / (n * distortion**2) * (z.mT @ z).numpy()
        expected = np.linalg.slogdet(inside)[1] / 2
        assert coding_rate(z, distortion=distortion).item() == pytest.approx(expected, rel=1e-11)
        assert coding_rate(z.float(), distortion=distortion).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("n", "d"), [(50, 30), (20, 30)])
    def test_of_large_collapsed_features(self, n, d, dtype):
        """Rounding of ZᵀZ is far beyond the I that is added, whose determinant no Cholesky factor then has."""
        scale = 1e4 if dtype == torch.float32 else 1e9
        z = (scale * rows(n, d, rank=1)).to(dtype).requires_grad_()
        largest = np.linalg.norm(z.detach().double().numpy(), 2)
        found = coding_rate(z)
        assert found.dtype == dtype
        assert found.item() == pytest.approx(np.log1p(d / (n * 0.25) * largest**2) / 2, rel=1e-2)
        (gradient,) = torch.autograd.grad(found, z)
        radial = (gradient * z).sum().item()  # the slope along the scale: one for each direction that is there
        assert gradient.isfinite().all() and radial == pytest.approx(1, rel=0.1)
        assert coding_rate(torch.stack([z, torch.eye(n, d, dtype=dtype)])).isfinite().all()
        assert coding_rate(z * torch.nan, validate=False).isnan()

    @pytest.mark.parametrize(("n", "d"), [(50, 30), (20, 30)])
    def test_of_large_collapsed_features_whose_values_are_not_read(self, monkeypatch, n, d):
        """As on a GPU, where reading them would make the device wait, and where as little has a Cholesky factor."""
        z = 1e4 * rows(n, d, rank=1)
        expected, huge = coding_rate(z), coding_rate(1e5 * z)
        monkeypatch.setattr(validation, "looks_at_values", lambda x, validate: bool(validate))
        single = z.float().requires_grad_()
        found = coding_rate(single)
        assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=1e-3)
        (gradient,) = torch.autograd.grad(found, single)
        assert (gradient * single).sum().item() == pytest.approx(1, rel=0.1)
        by_log_det = of_features.log_det(z.float(), ridge=0.25 / d, about="origin") - d * np.log(0.25 / d)
        assert by_log_det.item() / 2 == pytest.approx(expected.item(), rel=1e-3)
        assert coding_rate(1e5 * z, validate=True).item() == pytest.approx(huge.item(), rel=1e-3)

    def test_of_losses_stays_in_float32_where_values_are_not_read(self, monkeypatch):
        """Where float64 takes many times as long; their rows have length one."""
        monkeypatch.setattr(validation, "looks_at_values", lambda x, validate: bool(validate))
        z = rows(20, 30).float()
        monkeypatch.setattr(torch.Tensor, "double", lambda _: pytest.fail("float64"))
        assert coding_rate(z, validate=False).isfinite()
        with pytest.raises(pytest.fail.Exception, match="float64"):
            coding_rate(z)

    def test_of_nothing(self):
        assert coding_rate(torch.zeros(4, 3)).item() == 0

    def test_the_default_distortion(self):
        z = rows(5, 3)
        assert torch.equal(coding_rate(z), coding_rate(z, distortion=0.5))


class TestSpectrum:
    @pytest.mark.parametrize(("n", "d"), [(20, 6), (6, 20), (7, 7)])
    def test_is_that_of_the_covariance(self, n, d):
        x = np.random.default_rng(0).standard_normal((n, d)) * np.arange(1, d + 1) + 5
        expected = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1][: min(n, d)]
        found = spectrum(torch.from_numpy(x))
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-13)
        assert found.sum().item() == pytest.approx(1)

    def test_scale_and_shift_do_not_matter(self):
        x = rows(12, 5)
        np.testing.assert_allclose(spectrum(x * 37 - 4), spectrum(x), atol=1e-12)
        np.testing.assert_allclose(spectrum(x.float() * 1e30), spectrum(x), atol=1e-5)

    @pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
    def test_equal_rows(self, shape):
        assert torch.equal(spectrum(torch.ones(shape)), torch.zeros(4))
        for x in (torch.ones(shape), torch.full(shape, 0.3), torch.linspace(-3, 3, 90).expand(40, 90)):
            assert shannon_entropy(spectrum(x)).item() == pytest.approx(0, abs=1e-3)

    @pytest.mark.parametrize("k", [1, 3, 8])
    def test_entropy_of_a_flat_spectrum(self, k):
        flat = torch.cat([torch.full((k,), 1 / k), torch.zeros(5)])
        assert shannon_entropy(flat).item() == pytest.approx(math.log(k), abs=1e-6)
        assert shannon_entropy(7 * flat).item() == pytest.approx(math.log(k), abs=1e-6)


class TestShannonEntropy:
    @pytest.mark.parametrize("weights", [[0.5, 0.25, 0.25], [3.0, 0, 1, 7], [0.0, 0]])
    def test_with_scipy(self, weights):
        expected = scipy.stats.entropy(weights) if sum(weights) else 0
        assert shannon_entropy(torch.tensor(weights)).item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(
        ("weights", "error", "message"),
        [
            (torch.tensor([0.5, math.nan]), errors.NotFiniteError, "1 NaN and 0 infinite of 2 elements"),
            (torch.tensor([0.5, math.inf]), errors.NotFiniteError, "0 NaN and 1 infinite of 2 elements"),
            (torch.tensor([[1.0, 2], [1.5, -0.5]]), errors.MatrixError, r"has -0\.5 at \(1, 1\)"),
            (torch.tensor([1 + 1j, 2]), errors.MatrixTypeError, "complex"),
            ([0.5, 0.5], errors.MatrixTypeError, "of type builtins.list"),
            (torch.ones(4, 0), errors.EmptyMatrixError, "is empty"),
            (torch.tensor(1.0), errors.MatrixShapeError, "has no dimension"),
        ],
    )
    def test_what_are_no_weights(self, weights, error, message):
        with pytest.raises(error, match=message):
            shannon_entropy(weights)

    def test_values_are_not_read_on_demand(self):
        assert shannon_entropy(torch.tensor([1.0, -0.5]), validate=False).isfinite()
