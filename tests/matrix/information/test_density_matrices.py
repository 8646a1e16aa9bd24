"""Further entropies of one matrix, and divergences of several states, against their definitions in NumPy and SciPy."""

import functools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from matrix_ssl import matrix
from matrix_ssl.errors import MatrixError, MatrixShapeError
from matrix_ssl.matrix import covariance, of_features, second_moment
from tests.support.matrix_samples import positive, quick_gradcheck, quick_gradgradcheck, rows, symmetric_part

P = np.array([0.0, 0.1, 0.4, 0.5])


class TestEntropies:
    @pytest.mark.parametrize("alpha", [0.3, 0.9, 1.001, 1.1, 2.0, 3.0, 20.0])
    @pytest.mark.parametrize("ridge", [0.0, 0.2])
    def test_tsallis_with_scipy(self, alpha, ridge):
        a = positive([0.01, 0.2, 0.2, 1.3])
        rho = a.numpy() + ridge * np.eye(4)
        rho = rho / np.trace(rho)
        expected = (np.trace(scipy.linalg.fractional_matrix_power(rho, alpha)).real - 1) / (1 - alpha)
        assert matrix.tsallis_entropy(a, alpha=alpha, ridge=ridge).item() == pytest.approx(expected, abs=1e-10)

    def test_named_orders(self):
        a = positive(7 * P)
        entropy = -(P[1:] * np.log(P[1:])).sum()
        assert matrix.tsallis_entropy(a, alpha=0).item() == pytest.approx(2, abs=1e-12)
        assert matrix.tsallis_entropy(a, alpha=1).item() == pytest.approx(entropy, abs=1e-12)
        assert matrix.tsallis_entropy(a, alpha=2).item() == pytest.approx(1 - (P**2).sum(), abs=1e-12)
        assert matrix.min_entropy(a).item() == pytest.approx(math.log(2), abs=1e-12)

    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    def test_truncated(self, k):
        expected = sum(-p * math.log(p) for p in (0.5, 0.4, 0.1)[:k])
        assert matrix.truncated_entropy(positive(7 * P), k=k).item() == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("alpha", [0.5, 1.0, 1.1, 2.0])
    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_low_rank(self, k, alpha):
        p = np.array([0.5, 0.3, 0.15, 0.05])
        flat = np.concatenate([p[:k], np.full(4 - k, (1 - p[:k].sum()) / max(4 - k, 1))])
        expected = matrix.renyi_entropy(positive(flat), alpha=alpha).item()
        found = matrix.low_rank_entropy(positive(3 * p), k=k, alpha=alpha).item()
        assert found == pytest.approx(expected, abs=1e-12)
        assert found >= matrix.renyi_entropy(positive(p), alpha=alpha).item() - 1e-12
        assert matrix.low_rank_entropy(torch.zeros(4, 4), k=k, alpha=alpha).item() == 0

    @pytest.mark.parametrize("about", ["mean", "origin"])
    @pytest.mark.parametrize("shape", [(20, 6), (4, 7)])
    def test_of_features(self, shape, about):
        x = rows(*shape) + 0.5
        dense = covariance(x) if about == "mean" else second_moment(x)
        pairs = {
            "tsallis_entropy": {"alpha": 1.5, "ridge": 0.1},
            "min_entropy": {"ridge": 0.1},
            "truncated_entropy": {"k": 3},
            "low_rank_entropy": {"k": 3, "alpha": 2.0},
            "von_neumann_entropy": {"ridge": 0.1},
            "matrix_entropy": {"ridge": 0.1},
            "renyi_entropy": {"alpha": 2.0},
            "log_det": {"ridge": 0.1},
        }
        for name, options in pairs.items():
            expected = getattr(matrix, name)(dense, **options).item()
            found = getattr(of_features, name)(x, about=about, **options).item()
            assert found == pytest.approx(expected, abs=1e-10), name
        for name in ("matrix_kl", "matrix_cross_entropy"):
            other = rows(*shape, seed=1)
            dense_other = covariance(other) if about == "mean" else second_moment(other)
            expected = getattr(matrix, name)(dense, dense_other, ridge=0.1).item()
            assert getattr(of_features, name)(x, other, ridge=0.1, about=about).item() == pytest.approx(expected)

    def test_gradients(self):
        a = positive([0.1, 0.4, 0.4, 0.9])
        for function in (
            functools.partial(matrix.truncated_entropy, k=1),
            functools.partial(matrix.low_rank_entropy, k=3, alpha=1.5),
            functools.partial(matrix.tsallis_entropy, alpha=1.5),
        ):
            assert quick_gradcheck(lambda x, f=function: f(symmetric_part(x)), a.clone().requires_grad_())

    @pytest.mark.parametrize("k", [3, 4])
    def test_truncated_gradient_at_a_deficient_rank(self, k):
        """Zero eigenvalues contribute none: on the support it is that of the von Neumann entropy, at every scale."""
        for values in (7 * P, [0.0, 0.0, 1.0, 1.0], [0.0] * 4):
            a = torch.diag(torch.tensor(values, dtype=torch.float64)).requires_grad_()
            (found,) = torch.autograd.grad(matrix.truncated_entropy(a, k=k), a)
            (expected,) = torch.autograd.grad(matrix.von_neumann_entropy(a), a)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        for x in (rows(4, 6), rows(9, 6, rank=2), torch.full((5, 6), 0.3, dtype=torch.float64)):
            x.requires_grad_()
            (found,) = torch.autograd.grad(of_features.truncated_entropy(x, k=k + 2), x)
            (expected,) = torch.autograd.grad(of_features.von_neumann_entropy(x), x)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    def test_numbers(self):
        a = positive(P)
        for k in (0, 5):
            for function in (matrix.truncated_entropy, functools.partial(matrix.low_rank_entropy, alpha=2.0)):
                with pytest.raises(ValueError, match=f"k must be a number of eigenvalues between 1 and 4, got {k}"):
                    function(a, k=k)
        with pytest.raises(ValueError, match=r"alpha must be finite for a Tsallis entropy.*min_entropy"):
            matrix.tsallis_entropy(a, alpha=math.inf)
        with pytest.raises(ValueError, match="about must be 'mean' or 'origin', got 'zero'"):
            of_features.min_entropy(rows(3, 2), about="zero")


STATES = [positive([0.1, 0.2, 0.7], seed=s) * (s + 1) for s in range(3)]


def entropy_by_scipy(rho, alpha):
    if alpha == 1:
        return -np.trace(rho @ scipy.linalg.logm(rho)).real
    return math.log(np.trace(scipy.linalg.fractional_matrix_power(rho, alpha)).real) / (1 - alpha)


class TestJensenRenyi:
    @pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
    @pytest.mark.parametrize("alpha", [0.5, 1.0, 1.01, 2.0, 3.0])
    def test_definition(self, alpha, weights):
        w = np.full(3, 1 / 3) if weights is None else np.array(weights) / 8
        rho = [state.numpy() / state.trace().item() for state in STATES]
        mixture = entropy_by_scipy(sum(a * b for a, b in zip(w, rho, strict=True)), alpha)
        expected = mixture - sum(a * entropy_by_scipy(b, alpha) for a, b in zip(w, rho, strict=True))
        found = matrix.jensen_renyi_divergence(*STATES, alpha=alpha, weights=weights).item()
        assert found == pytest.approx(expected, abs=1e-10)
        if alpha == 1:
            assert matrix.holevo_information(*STATES, weights=weights).item() == pytest.approx(expected, abs=1e-10)

    def test_equal_and_orthogonal_states(self):
        assert matrix.jensen_renyi_divergence(STATES[0], 3 * STATES[0], alpha=2.0).item() == pytest.approx(0, abs=1e-12)
        orthogonal = [torch.diag(torch.tensor(v)).double() for v in ([1.0, 1, 0, 0], [0, 0, 1.0, 3])]
        expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
        assert matrix.holevo_information(*orthogonal, weights=[1, 3]).item() == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("sizes", [(20, 30), (3, 2), (3, 20)])
    def test_of_features(self, sizes, alpha):
        features = [rows(n, 6, seed=s) + s for s, n in enumerate(sizes)]
        expected = matrix.jensen_renyi_divergence(*map(covariance, features), alpha=alpha, weights=[1, 2]).item()
        found = of_features.jensen_renyi_divergence(*features, alpha=alpha, weights=[1, 2]).item()
        assert found == pytest.approx(expected, abs=1e-9)
        expected = matrix.holevo_information(*map(second_moment, features)).item()
        assert of_features.holevo_information(*features, about="origin").item() == pytest.approx(expected, abs=1e-9)

    def test_gradients(self):
        states = [state.clone().requires_grad_() for state in STATES[:2]]
        divergence = functools.partial(matrix.jensen_renyi_divergence, alpha=1.0)
        assert quick_gradcheck(lambda *a: divergence(*map(symmetric_part, a)), states)
        assert quick_gradgradcheck(lambda *a: divergence(*map(symmetric_part, a)), states, atol=1e-4)

    def test_batches_and_float32(self):
        stack = torch.stack(STATES)
        found = matrix.holevo_information(stack, STATES[0])
        for a, value in zip(STATES, found, strict=True):
            assert value.item() == pytest.approx(matrix.holevo_information(a, STATES[0]).item(), abs=1e-12)
        np.testing.assert_allclose(matrix.holevo_information(stack.float(), STATES[0].float()), found, atol=1e-5)

    def test_errors(self):
        with pytest.raises(MatrixError, match=r"'state 2'.* has the trace 0"):
            matrix.holevo_information(torch.eye(3), torch.zeros(3, 3))
        with pytest.raises(ValueError, match="At least 2 states"):
            matrix.holevo_information(torch.eye(3))
        with pytest.raises(MatrixShapeError, match="state 1 and state 2"):
            matrix.holevo_information(torch.eye(3), torch.eye(2))
        for weights in ([1.0], [1.0, -1.0], [0.0, 0.0]):
            with pytest.raises(ValueError, match="weights must be 2 numbers, zero or above and not all zero"):
                matrix.holevo_information(torch.eye(3), torch.eye(3), weights=weights)
        with pytest.raises(ValueError, match=r"At least 2 sets"):
            of_features.holevo_information(rows(4, 2))


class TestSchatten:
    @pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 3.0, math.inf])
    def test_definition(self, order):
        rho, sigma = (state.numpy() / state.trace().item() for state in STATES[:2])
        values = np.linalg.svd(rho - sigma, compute_uv=False)
        found = matrix.schatten_divergence(*STATES[:2], order=order).item()
        assert found == pytest.approx(np.linalg.norm(values, order), abs=1e-12)

    def test_ends(self):
        pure = [torch.diag(torch.eye(3)[i]).double() for i in range(2)]
        for order in (1.0, 2.0, 4.0):
            assert matrix.schatten_divergence(*pure, order=order).item() == pytest.approx(2 ** (1 / order), rel=1e-12)
        same = STATES[0].clone().requires_grad_()
        for order in (1.0, 2.0, 3.0):
            value = matrix.schatten_divergence(same, STATES[0], order=order)
            assert value.item() == 0
            assert torch.equal(torch.autograd.grad(value, same)[0], torch.zeros(3, 3).double())

    def test_of_features_and_gradients(self):
        x, y = rows(9, 3), rows(7, 3, seed=1)
        expected = matrix.schatten_divergence(covariance(x), covariance(y), order=3).item()
        assert of_features.schatten_divergence(x, y, order=3).item() == pytest.approx(expected, abs=1e-12)
        for order in (1.0, 2.0, 3.0):
            function = functools.partial(of_features.schatten_divergence, order=order)
            assert quick_gradcheck(function, (x.clone().requires_grad_(), y.clone().requires_grad_()))

    def test_numbers(self):
        with pytest.raises(ValueError, match=r"order must be 1 or above, got 0\.5"):
            matrix.schatten_divergence(*STATES[:2], order=0.5)


class TestGramKL:
    @pytest.mark.parametrize(("n", "d", "e"), [(6, 3, 9), (6, 9, 3), (8, 2, 3), (5, 7, 7)])
    def test_is_that_of_the_kernels(self, n, d, e):
        x, y = rows(n, d), rows(n, e, seed=1)
        grams = [matrix.normalised_gram(matrix.cosine_kernel(z)) for z in (x, y)]
        expected = matrix.matrix_kl(*grams, ridge=0.05).item()
        assert of_features.gram_kl(x, y, ridge=0.05).item() == pytest.approx(expected, abs=1e-10)
        assert of_features.gram_kl(x, 3 * x, ridge=0.05).item() == pytest.approx(0, abs=1e-12)
        assert quick_gradcheck(
            functools.partial(of_features.gram_kl, ridge=0.05), (x.requires_grad_(), y.requires_grad_()), atol=1e-4
        )

    def test_without_a_ridge(self):
        assert of_features.gram_kl(rows(6, 9), rows(6, 3, seed=1)).item() == math.inf
        assert math.isfinite(of_features.gram_kl(rows(6, 3), rows(6, 9, seed=1)).item())
