"""Gradients of matrix functions against finite differences, where eigenvalues coincide and at every rank."""

import functools
import math

import numpy as np
import pytest
import torch

from matrix_ssl import matrix
from matrix_ssl.matrix import covariance, of_features
from tests.support.matrix_samples import positive, quick_gradgradcheck, rows, symmetric_part, unit_kernel

ORDERS = [0.5, 0.9, 1.0, 1.1, 2.0, 3.0]
ONE = ["matrix_entropy", "von_neumann_entropy", "log_det"]
TWO = ["matrix_kl", "matrix_cross_entropy"]
FEATURES = {
    "generic": rows(7, 4),
    "more columns": rows(3, 5),
    "covariance a multiple of the identity": torch.cat([torch.eye(4), -torch.eye(4)]).double(),
    "rank two": rows(7, 4, rank=2),
    "collapse": torch.full((6, 4), 0.3, dtype=torch.float64),
}
MATRICES = {
    "distinct": [0.1, 0.3, 0.9, 2.0],
    "repeated": [0.2, 0.2, 0.2, 1.5],
    "identity": [1.0, 1.0, 1.0, 1.0],
    "multiple of the identity": [0.25] * 4,
}
every_feature = pytest.mark.parametrize("x", FEATURES.values(), ids=FEATURES)


def check(function, *inputs, **tolerances):
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(function, inputs, **tolerances)


def single_functions(module):
    functions = {name: getattr(module, name) for name in ONE}
    return functions | {f"renyi {alpha}": functools.partial(module.renyi_entropy, alpha=alpha) for alpha in ORDERS}


@pytest.mark.parametrize("function", single_functions(matrix).values(), ids=single_functions(matrix))
class TestOfOneMatrix:
    @pytest.mark.parametrize("eigenvalues", MATRICES.values(), ids=MATRICES)
    def test_at_a_matrix(self, function, eigenvalues):
        check(lambda a: function(symmetric_part(a)), positive(eigenvalues))

    @pytest.mark.parametrize("ridge", [0.01, pytest.param(1.0, marks=pytest.mark.slow)])
    @every_feature
    def test_through_features(self, function, x, ridge):
        check(lambda x: function(covariance(x), ridge=ridge), x, atol=1e-4 * ridge)


@pytest.mark.parametrize("function", single_functions(of_features).values(), ids=single_functions(of_features))
class TestOfFeatures:
    @pytest.mark.parametrize("ridge", [0.01, pytest.param(1.0, marks=pytest.mark.slow)])
    @every_feature
    def test_with_a_ridge(self, function, x, ridge):
        check(lambda x: function(x, ridge=ridge), x, atol=1e-4 * ridge)


class TestOfFeaturesWithoutRidge:
    @pytest.mark.parametrize("name", ["generic", "more columns", "covariance a multiple of the identity", "rank two"])
    @pytest.mark.parametrize("function", [of_features.matrix_entropy, of_features.von_neumann_entropy])
    def test_entropies_at_every_rank(self, function, name):
        check(function, FEATURES[name])

    @pytest.mark.parametrize("function", single_functions(of_features).values(), ids=single_functions(of_features))
    def test_nothing_is_nan_at_collapse(self, function):
        x = FEATURES["collapse"].clone().requires_grad_()
        if function is of_features.log_det:
            pytest.skip("the determinant is zero")
        function(x).backward()
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", TWO)
class TestOfTwo:
    @pytest.mark.parametrize("at", MATRICES)
    def test_at_matrices(self, name, at):
        function = getattr(matrix, name)
        inputs = positive(MATRICES[at]), positive(MATRICES[at], seed=1)
        check(lambda p, q: function(symmetric_part(p), symmetric_part(q)), *inputs)
        check(lambda p, q: function(symmetric_part(p), symmetric_part(q), ridge=0.1), *inputs)

    @pytest.mark.parametrize("at", FEATURES)
    @pytest.mark.parametrize("ridge", [0.01, pytest.param(1.0, marks=pytest.mark.slow)])
    def test_through_features(self, name, at, ridge):
        x = FEATURES[at]
        y = x if at in ("collapse", "covariance a multiple of the identity") else x.flip(0) + rows(*x.shape, rank=1)
        dense, direct = getattr(matrix, name), getattr(of_features, name)
        check(lambda x, y: dense(covariance(x), covariance(y), ridge=ridge), x, y, atol=1e-4)
        check(lambda x, y: direct(x, y, ridge=ridge), x, y, atol=1e-4)

    def test_different_numbers_of_rows(self, name):
        function = functools.partial(getattr(of_features, name), ridge=0.1)
        for n, k in ((3, 6), (6, 3), (8, 9)):
            check(function, rows(n, 5), rows(k, 5, seed=1))


class TestKernels:
    @pytest.mark.parametrize("alpha", ORDERS)
    @pytest.mark.parametrize("name", ["joint_entropy", "mutual_information"])
    def test_kernels(self, name, alpha):
        function = getattr(matrix, name)
        kernels = unit_kernel(4, 6), unit_kernel(4, 7, seed=1)
        check(lambda a, b: function(symmetric_part(a), symmetric_part(b), alpha=alpha), *kernels)

    @pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((9, 2), (9, 3))])
    @pytest.mark.parametrize("alpha", [1.0, 1.1, 2.0, 3.0])
    @pytest.mark.parametrize("name", ["joint_entropy", "mutual_information"])
    def test_features(self, name, alpha, shapes):
        function = functools.partial(getattr(of_features, name), alpha=alpha)
        check(function, *(rows(*shape, seed=s) for s, shape in enumerate(shapes)))


class TestRank:
    @pytest.mark.parametrize("x", [rows(5, 3), rows(3, 5), torch.eye(4).double() * 0.3], ids=["tall", "wide", "flat"])
    def test_effective_rank(self, x):
        check(matrix.effective_rank, x)

    def test_effective_rank_in_float32(self):
        x = rows(6, 4).requires_grad_()
        matrix.effective_rank(x).backward()
        single = x.detach().float().requires_grad_()
        matrix.effective_rank(single).backward()
        np.testing.assert_allclose(single.grad, x.grad, atol=1e-5 * x.grad.abs().max())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.ones(5, 3)], ids=["zero", "rank one"])
    def test_effective_rank_of_deficient_matrices_has_no_nan(self, x, dtype):
        x = x.detach().clone().to(dtype).requires_grad_()
        matrix.effective_rank(x).backward()
        np.testing.assert_allclose(x.grad, 0, atol=1e-6)  # at rank one scale alone could change it, and does not

    @pytest.mark.parametrize("x", [rows(5, 3), rows(3, 5), rows(5, 4, rank=2), torch.zeros(3, 2).double()])
    def test_coding_rate(self, x):
        check(matrix.coding_rate, x)


class TestZeroEigenvalues:
    """Without a ridge a zero eigenvalue contributes no gradient where the true one is infinite."""

    deficient = positive([0.0, 0.0, 0.3, 1.2])  # with zeros of 1e-17 and either sign
    support = positive([0.0, 0.0, 1.0, 1.0])

    def test_matrix_entropy(self):
        a = self.deficient.clone().requires_grad_()
        matrix.matrix_entropy(a).backward()
        expected = positive([0.0, 0.0, -math.log(0.3), -math.log(1.2)])
        np.testing.assert_allclose(a.grad, expected, atol=1e-12)

    @pytest.mark.parametrize("alpha", [0.5, 0.9, 1.0])
    def test_entropies_of_low_order(self, alpha):
        a = self.deficient.clone().requires_grad_()
        matrix.renyi_entropy(a, alpha=alpha).backward()
        np.testing.assert_allclose(a.grad, self.support @ a.grad @ self.support, atol=1e-12)
        assert a.grad.abs().max() > 0.1

    @pytest.mark.parametrize("alpha", [1.1, 2.0, 3.0, 7.0])
    def test_entropies_of_high_order_are_differentiable_there(self, alpha):
        """Moving into the null space changes Σ p^alpha through the trace alone."""
        a = torch.diag(torch.tensor([0.0, 0.0, 0.3, 1.2], dtype=torch.float64)).requires_grad_()
        matrix.renyi_entropy(a, alpha=alpha).backward()
        expected = alpha / (alpha - 1) / 1.5
        np.testing.assert_allclose(a.grad.diagonal()[:2], expected, rtol=1e-9)

    def test_zero_matrix(self):
        for alpha in (0.5, 1.0, 1.1, 2.0, 3.0, math.inf):
            a = torch.zeros(3, 3, requires_grad=True)
            matrix.renyi_entropy(a, alpha=alpha).backward()
            assert torch.equal(a.grad, torch.zeros(3, 3))

    def test_largest_eigenvalue(self):
        a = positive([0.1, 0.4, 0.5])
        check(lambda x: matrix.renyi_entropy(symmetric_part(x), alpha=math.inf), a)


ONCE = {
    "matrix_log": matrix.matrix_log,
    "matrix_cross_entropy": lambda a: matrix.matrix_cross_entropy(a, a + torch.eye(3, dtype=a.dtype)),
    "matrix_kl of features": lambda a: of_features.matrix_kl(a, 2 * a, ridge=0.1),
    "procrustes_distance": lambda a: matrix.procrustes_distance(a, rows(3, 2)),
    "cca": lambda a: matrix.cca(a[:, :1], rows(3, 1)),
}


@pytest.mark.parametrize("function", ONCE.values(), ids=ONCE)
def test_a_second_derivative_is_an_error_and_not_zero(function):
    a = torch.diag(torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)).requires_grad_()
    (slope,) = torch.autograd.grad(function(a).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        slope.sum().backward()
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.functional.hessian(lambda x: function(x).sum(), a.detach())
    found = torch.func.grad(lambda x: function(x).sum())(a.detach())
    np.testing.assert_allclose(found, slope.detach(), atol=1e-12)


TWICE = single_functions(matrix) | {
    "renyi 1.5": functools.partial(matrix.renyi_entropy, alpha=1.5),
    "tsallis 0.5": functools.partial(matrix.tsallis_entropy, alpha=0.5),
    "tsallis 3": functools.partial(matrix.tsallis_entropy, alpha=3.0),
}


class TestTwice:
    """Second derivatives against finite differences of first ones, where eigenvalues coincide, too."""

    @pytest.mark.parametrize("eigenvalues", MATRICES.values(), ids=MATRICES)
    @pytest.mark.parametrize("function", TWICE.values(), ids=TWICE)
    def test_at_a_matrix(self, function, eigenvalues):
        a = positive(eigenvalues).requires_grad_()
        assert quick_gradgradcheck(lambda x: function(symmetric_part(x)), a, atol=1e-4)

    @pytest.mark.parametrize("name", ["generic", "more columns", "rank two", "covariance a multiple of the identity"])
    @pytest.mark.parametrize("function", [of_features.von_neumann_entropy, of_features.log_det])
    def test_of_features_with_a_ridge(self, function, name):
        x = FEATURES[name].clone().requires_grad_()
        assert quick_gradgradcheck(lambda x: function(x, ridge=0.1), x, atol=1e-4)

    def test_of_the_identity_it_is_that_of_a_sum(self):
        """S(I/d + t H) = log d - d t² ‖H‖²/2 + ... for a traceless H, though all eigenvalues coincide."""
        d, h = 4, positive([1.0, 1.0, -2.0, 0.0])
        flat = torch.eye(d, dtype=torch.float64) / d
        curvature = torch.autograd.functional.hvp(lambda a: matrix.von_neumann_entropy(symmetric_part(a)), flat, h)[1]
        assert (curvature * h).sum().item() == pytest.approx(-d * h.square().sum().item(), rel=1e-10)

    @pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # of PyTorch about itself
    def test_forward_mode(self):
        a, h = positive(MATRICES["repeated"]), positive([0.3, -1.0, 0.2, 0.5], seed=4)
        for function in (matrix.von_neumann_entropy, functools.partial(matrix.renyi_entropy, alpha=3.0)):
            x = a.clone().requires_grad_()
            expected = (torch.autograd.grad(function(x), x)[0] * h).sum()
            assert torch.func.jvp(function, (a,), (h,))[1].item() == pytest.approx(expected.item(), rel=1e-10)

    @pytest.mark.parametrize("order", [0.5, 1.0, 1.5, 3.0])
    def test_a_third_derivative_is_an_error(self, order):
        a = positive([0.1, 0.4, 0.5]).requires_grad_()
        (first,) = torch.autograd.grad(matrix.renyi_entropy(a, alpha=order), a, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), a, create_graph=True)
        with pytest.raises(RuntimeError, match="can be differentiated once"):
            second.sum().backward()

    def test_over_a_batch(self):
        stack = torch.stack([positive([0.2, 0.2, 0.9], seed=s) for s in range(3)])
        slopes = torch.func.vmap(torch.func.grad(matrix.von_neumann_entropy))(stack)
        hessians = torch.func.vmap(torch.func.jacrev(torch.func.grad(matrix.von_neumann_entropy)))(stack)
        for a, slope, hessian in zip(stack, slopes, hessians, strict=True):
            np.testing.assert_allclose(slope, torch.func.grad(matrix.von_neumann_entropy)(a), atol=1e-12)
            expected = torch.autograd.functional.hessian(matrix.von_neumann_entropy, a)
            np.testing.assert_allclose(hessian, expected, atol=1e-12)
