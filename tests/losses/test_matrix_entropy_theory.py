"""The matrix entropy within matrix information theory: what docs/matrix-entropy.md says, at more points and sizes."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn.functional import normalize

from matrix_ssl.losses import (
    Objective,
    covariance_entropy,
    matrix_ssl_terms,
    matrix_ssl_variant_terms,
    view_entropy,
)
from matrix_ssl.matrix import coding_rate, matrix_cross_entropy, matrix_kl, renyi_entropy, von_neumann_entropy
from tests.support.quick import cross

shapes = pytest.mark.parametrize("shape", [(30, 5), (12, 5), (9, 9), (6, 20)])


def rows(n, d, seed=0):
    return normalize(torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)) + 0.4), dim=1)


def gradient(loss, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def tangential(gradient, x):
    """Without what the unit length of a row cancels."""
    return gradient - x * (gradient * x).sum(1, keepdim=True)


class TestUniformity:
    @pytest.mark.parametrize("n", [12, 40])
    def test_is_the_divergence_to_the_identity_and_log_det_the_one_from_it(self, n):
        z = rows(n, 5)
        c, one = z.mT @ z / n, torch.eye(5, dtype=z.dtype) / 5
        torch.testing.assert_close(view_entropy(z), math.log(5) - matrix_kl(c, one))
        torch.testing.assert_close(-torch.logdet(c) / 5 - math.log(5), matrix_kl(one, c))

    def test_log_det_is_matrix_ssls_with_a_ridge(self):
        """Of rows without a mean, which Matrix-SSL subtracts."""
        z = rows(12, 5)
        z = torch.cat([z, -z])
        c, ridge = z.mT @ z / len(z), 0.1
        terms = matrix_ssl_terms(z, z, z, z, objective=Objective(ridge, uniformity_weight=1.0))
        torch.testing.assert_close(terms.uniformity, -torch.logdet(c + ridge * torch.eye(5, dtype=z.dtype)))

    def test_pull_on_an_eigenvalue(self):
        """By c: 1/c of log det, 1 + log c of the entropy."""
        c = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
        entropies = gradient(lambda p: -von_neumann_entropy(torch.diag(p)), c)
        torch.testing.assert_close(entropies - entropies.mean(), c.log() - c.log().mean())
        torch.testing.assert_close(gradient(lambda p: -torch.logdet(torch.diag(p)), c), -1 / c)


class TestAlignment:
    @pytest.mark.parametrize("d", [2, 7])
    @pytest.mark.parametrize("mu", [1e-3, 0.019, 1.0, 30.0])
    def test_is_a_matrix_cross_entropy_for_each_image(self, d, mu):
        identity = np.eye(d)
        for a, b in zip(rows(5, d).numpy(), rows(5, d, seed=1).numpy(), strict=True):
            p, q = np.outer(a, a) + mu * identity, np.outer(b, b) + mu * identity
            expected = -(1 + d * mu) * math.log(mu) - ((a @ b) ** 2 + mu) * math.log1p(1 / mu)
            assert -np.trace(p @ scipy.linalg.logm(q)) == pytest.approx(expected, rel=1e-9)
            found = matrix_cross_entropy(torch.from_numpy(p), torch.from_numpy(q)) - np.trace(q)
            assert found.item() == pytest.approx(expected, rel=1e-9)

    def test_cosine_is_half_of_its_square_to_first_order_around_agreement(self):
        for angle in (1e-2, 1e-3):
            cosine = math.cos(angle)
            assert (1 - cosine**2) / (2 * (1 - cosine)) == pytest.approx(1, abs=angle**2)


class TestKernel:
    @staticmethod
    def features(x, width, terms):
        """The explicit features of exp((⟨a, b⟩ - 1) / width): all monomials, with multinomial coefficients."""
        columns = []
        for j in range(terms):
            for powers in itertools.product(range(j + 1), repeat=x.shape[1]):
                if sum(powers) == j:
                    count = math.factorial(j) / math.prod(map(math.factorial, powers))
                    weight = math.sqrt(count * math.exp(-1 / width) / (width**j * math.factorial(j)))
                    columns.append(weight * np.prod(x ** np.array(powers), axis=1))
        return np.stack(columns, 1)

    @pytest.mark.parametrize("order", [0.7, 1.0, 2.0, 3.5])
    @pytest.mark.parametrize(("width", "terms"), [(0.5, 18), (2.0, 12)])
    def test_entropy_is_that_of_the_covariance_operator(self, width, terms, order):
        z = rows(7, 3)
        phi = self.features(z.numpy(), width, terms)
        operator = torch.from_numpy(phi.T @ phi / len(phi))
        assert operator.trace().item() == pytest.approx(1, abs=1e-9)
        found = view_entropy(z, order=order, width=width).item()
        assert found == pytest.approx(renyi_entropy(operator, alpha=order).item(), rel=1e-7)

    def test_the_linear_kernel_gives_back_the_covariance(self):
        z = rows(8, 5)
        for order in (0.5, 1.0, 2.0):
            expected = covariance_entropy(z.mT @ z / 8, order=order)
            torch.testing.assert_close(renyi_entropy(z @ z.mT, alpha=order), expected, rtol=1e-7, atol=1e-9)

    def test_log_of_the_kernel_is_the_log_fidelity_of_two_pure_states(self):
        a, b = rows(2, 2).numpy()
        phi = self.features(np.stack([a, b]), 0.5, 18)
        states = [np.outer(x, x) for x in phi]
        fidelity = np.trace(states[0] @ states[1])  # (tr √(√ρ σ √ρ))² where ρ and σ are pure
        assert -math.log(fidelity) == pytest.approx(2 * (1 - a @ b) / 0.5, rel=1e-6)


class TestGradient:
    @shapes
    def test_by_the_rows_is_the_logarithm_of_the_covariance_along_them(self, shape):
        z = rows(*shape)
        left, values, right = np.linalg.svd(z.numpy(), full_matrices=False)
        along = torch.from_numpy(left @ np.diag(values * np.log(values**2 / len(z))) @ right)
        found = gradient(lambda x: -view_entropy(x), z)
        torch.testing.assert_close(found, tangential(2 / len(z) * along, z), rtol=1e-9, atol=1e-12)

    def test_by_the_inner_products_is_the_logarithm_times_the_slope_of_the_kernel(self):
        z, width = rows(9, 5), 0.5
        kernel = ((z @ z.mT - 1) / width).exp().numpy()
        by_products = torch.from_numpy(scipy.linalg.logm(kernel / 9) * kernel / (9 * width))
        found = gradient(lambda x: -view_entropy(x, width=width), z)
        torch.testing.assert_close(found, tangential(2 * by_products @ z, z), rtol=1e-9, atol=1e-12)


class TestLimits:
    @shapes
    def test_order_two_is_the_log_frobenius_norm(self, shape):
        z = rows(*shape)
        expected = -2 * torch.linalg.matrix_norm(z.mT @ z / len(z)).log()
        torch.testing.assert_close(view_entropy(z, order=2.0), expected)
        torch.testing.assert_close(
            gradient(lambda x: view_entropy(x, order=2.0), z),
            gradient(lambda x: -2 * torch.linalg.matrix_norm(normalize(x).mT @ normalize(x) / len(x)).log(), z),
        )

    @pytest.mark.parametrize("width", [0.1, 0.5, 10.0])
    def test_order_two_with_the_kernel_is_uniformity(self, width):
        z = rows(8, 5)
        expected = -(-torch.cdist(z, z).square() / width).exp().mean().log()
        torch.testing.assert_close(view_entropy(z, order=2.0, width=width), expected)

    @pytest.mark.parametrize("order", [1.3, 2.0, 3.0, 6.5])
    def test_a_large_width_makes_orders_above_one_multiples_of_one_quantity(self, order):
        z = rows(8, 5)
        errors = []
        for width in (1e3, 1e5):
            scale = order / (2 * order - 2)
            uniformity = view_entropy(z, order=2.0, width=width)
            ratio = view_entropy(z, order=order, width=width) / (scale * uniformity)
            errors.append(abs(ratio.item() - 1))
            distance = (1 - (z @ z.mT).mean()) / width
            torch.testing.assert_close(uniformity, 2 * distance, rtol=2e-2, atol=0)
        # the power of the small eigenvalues that remains falls with the width
        assert errors[1] < 0.2 and (errors[1] < 1e-6 or errors[1] < errors[0])

    def test_towards_order_zero_comes_the_rank_and_then_log_det(self):
        z = rows(30, 5)
        c = z.mT @ z / 30
        for alpha in (1e-3, 1e-4):
            slope = (view_entropy(z, order=alpha).item() - math.log(5)) / alpha
            limit = torch.logdet(c).item() / 5 + math.log(5)
            assert slope == pytest.approx(limit, rel=5 * alpha)

    def test_log_det_is_the_coding_rate(self):
        z, distortion = rows(30, 5), 0.5
        c = z.mT @ z / 30
        expected = torch.logdet(torch.eye(5, dtype=z.dtype) + 5 / distortion**2 * c) / 2
        torch.testing.assert_close(coding_rate(z, distortion=distortion), expected)


class TestCrowd:
    @pytest.mark.parametrize("s", [0.5, 0.99])
    @pytest.mark.parametrize("m", [2, 8, 32])
    def test_push_out_of_a_crowd(self, m, s):
        """On one of m images that have the similarity s with each other and none with the rest."""
        n = 64
        gram = torch.eye(n, dtype=torch.float64)
        gram[:m, :m] = s + (1 - s) * torch.eye(m, dtype=torch.float64)
        identity = torch.eye(n, dtype=torch.float64)
        push = {
            "log det": (lambda k: -torch.logdet(identity + k) / n, (1 - 1 / m) * (1 / (2 - s) - 1 / (2 - s + m * s))),
            "order 1": (lambda k: -von_neumann_entropy(k), (1 - 1 / m) * math.log1p(m * s / (1 - s))),
            "order 2": (lambda k: k.square().sum() / n, 2 * (m - 1) * s),
        }
        for name, (loss, expected) in push.items():
            assert n * gradient(loss, gram)[0, 1:m].sum().item() == pytest.approx(expected, rel=1e-9), name
        assert push["log det"][1] < 1 / (2 - s)


class TestMatrixSSLVariants:
    """What carries over to Matrix-SSL, from the same parts put together by hand."""

    SETTINGS = Objective(ridge=0.2, uniformity_weight=0.7, alignment_weight=1.5)

    @staticmethod
    def batch(n, d):
        return [rows(n, d, seed) * (seed + 1) for seed in range(4)]

    @pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
    @pytest.mark.parametrize(
        ("uniformity", "alignment"),
        cross(["cross", "own", "entropy"], ["covariances", "images"], row="own", column="covariances"),
    )
    def test_terms_and_gradients(self, uniformity, alignment, shape):
        def expected(z1, z2, p1, p2):
            published = matrix_ssl_terms(z1, z2, p1, p2, objective=self.SETTINGS)
            a, b, c, d = (normalize(x) for x in (z1, z2, p1, p2))
            spread = published.uniformity
            if uniformity == "own":
                centred = [x - x.mean(0) for x in (a, b)]
                ridge = 0.2 * torch.eye(shape[1], dtype=a.dtype)
                spread = -0.7 * sum(torch.logdet(x.mT @ x / len(x) + ridge) for x in centred) / 2
            elif uniformity == "entropy":
                spread = -0.7 * (von_neumann_entropy(a @ a.mT) + von_neumann_entropy(b @ b.mT)) / 2
            agreement = -((a * d).sum(1).mean() + (b * c).sum(1).mean()) / 2
            return spread, published.alignment if alignment == "covariances" else agreement

        inputs = self.batch(*shape)
        found = matrix_ssl_variant_terms(*inputs, uniformity=uniformity, alignment=alignment, objective=self.SETTINGS)
        spread, agreement = expected(*inputs)
        torch.testing.assert_close(found.uniformity, spread, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.alignment, agreement, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.loss, spread + 1.5 * agreement, rtol=1e-7, atol=1e-9)
        if uniformity == "cross" and alignment == "covariances":
            assert found.loss.equal(matrix_ssl_terms(*inputs, objective=self.SETTINGS).loss)

        def loss(*x):
            return matrix_ssl_variant_terms(
                *x, uniformity=uniformity, alignment=alignment, objective=self.SETTINGS
            ).loss

        small = [x[:4, :3].clone().requires_grad_() for x in inputs]
        assert torch.autograd.gradcheck(loss, small)

    def test_names(self):
        for wrong in ({"uniformity": "both", "alignment": "images"}, {"uniformity": "own", "alignment": "image"}):
            with pytest.raises(ValueError, match=r"must be 'c.*' or '(entropy|images)', got '(both|image)'"):
                matrix_ssl_variant_terms(*self.batch(4, 3), **wrong)
