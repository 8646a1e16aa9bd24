"""Entropies, divergences and kernels against SciPy and closed forms, in every dtype and mode of execution."""

import functools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from matrix_ssl import matrix
from matrix_ssl.matrix import (
    covariance,
    cross_covariance,
    joint_entropy,
    matrix_cross_entropy,
    matrix_entropy,
    matrix_kl,
    mutual_information,
    renyi_entropy,
    von_neumann_entropy,
)
from tests.support.matrix_samples import positive, rows, symmetric_part, unit_kernel
from tests.support.quick import some, some_of

ORDERS = [0.0, 0.3, 0.9, 0.999, 1.0, 1.001, 1.1, 2.0, 3.0, 50.0, math.inf]
ONE = {
    "matrix_log": matrix.matrix_log,
    "log1p_ratio": lambda a: matrix.log1p_ratio(a, 0.1),
    "log_det": matrix.log_det,
    "matrix_entropy": matrix_entropy,
    "von_neumann_entropy": von_neumann_entropy,
    "effective_rank": matrix.effective_rank,
    "coding_rate": matrix.coding_rate,
    "spectrum": matrix.spectrum,
    "covariance": covariance,
} | {f"renyi_entropy {alpha}": functools.partial(renyi_entropy, alpha=alpha) for alpha in ORDERS}
TWO = {
    "matrix_kl": matrix_kl,
    "matrix_cross_entropy": matrix_cross_entropy,
    "joint_entropy": joint_entropy,
    "mutual_information": mutual_information,
    "cross_covariance": cross_covariance,
    "joint_entropy 2": functools.partial(joint_entropy, alpha=2.0),
}
ALL = {name: (f, 1) for name, f in ONE.items()} | {name: (f, 2) for name, f in TWO.items()}
COMPILED = ("matrix_log", "effective_rank", "renyi_entropy 0.3", "mutual_information")
every_function = pytest.mark.parametrize(("function", "count"), ALL.values(), ids=ALL)


def samples(count, dtype=torch.float64, condition=1e3, d=8):
    return [positive(np.geomspace(1 / condition, 1, d), seed=s, dtype=dtype) for s in range(count)]


def logm(a, ridge=0.0):
    return scipy.linalg.logm(a.numpy() + ridge * np.eye(len(a)))


class TestDefinitions:
    @pytest.mark.parametrize("ridge", [0.0, 0.2])
    @pytest.mark.parametrize("seed", range(4))
    def test_with_scipy(self, seed, ridge):
        p, q = positive([0.01, 0.2, 0.2, 1.3], seed=seed), positive([0.05, 0.4, 1.0, 2.0], seed=seed + 10)
        log_p, log_q = logm(p, ridge), logm(q, ridge)
        p_, q_ = (x.numpy() + ridge * np.eye(4) for x in (p, q))
        assert matrix_entropy(p, ridge=ridge).item() == pytest.approx(np.trace(p_ - p_ @ log_p), abs=1e-10)
        assert matrix_cross_entropy(p, q, ridge=ridge).item() == pytest.approx(np.trace(q_ - p_ @ log_q), abs=1e-10)
        expected = np.trace(p_ @ log_p - p_ @ log_q - p_ + q_)
        assert matrix_kl(p, q, ridge=ridge).item() == pytest.approx(expected, abs=1e-10)
        rho = p_ / np.trace(p_)
        expected = -np.trace(rho @ scipy.linalg.logm(rho))
        assert von_neumann_entropy(p, ridge=ridge).item() == pytest.approx(expected, abs=1e-10)

    @pytest.mark.parametrize("ridge", [0.0, 0.2])
    @pytest.mark.parametrize("alpha", [0.3, 0.9, 1.1, 2.0, 3.0, 50.0])
    def test_renyi_with_scipy(self, alpha, ridge):
        a = positive([0.01, 0.2, 0.2, 1.3])
        rho = a.numpy() + ridge * np.eye(4)
        rho = rho / np.trace(rho)
        expected = math.log(np.trace(scipy.linalg.fractional_matrix_power(rho, alpha)).real) / (1 - alpha)
        assert renyi_entropy(a, alpha=alpha, ridge=ridge).item() == pytest.approx(expected, abs=1e-10)
        assert renyi_entropy(1e12 * a, alpha=alpha, ridge=1e12 * ridge).item() == pytest.approx(expected, abs=1e-10)

    def test_renyi_of_the_named_orders(self):
        p = np.array([0.0, 0.1, 0.4, 0.5])
        a = positive(7 * p)
        assert renyi_entropy(a, alpha=0).item() == pytest.approx(math.log(3))
        assert renyi_entropy(a, alpha=0, ridge=0.1).item() == pytest.approx(math.log(4))
        assert renyi_entropy(a, alpha=1).item() == pytest.approx(-(p[1:] * np.log(p[1:])).sum(), abs=1e-12)
        assert renyi_entropy(a, alpha=2).item() == pytest.approx(-math.log((p**2).sum()), abs=1e-12)
        assert renyi_entropy(a, alpha=math.inf).item() == pytest.approx(-math.log(0.5), abs=1e-12)

    @pytest.mark.parametrize("alpha", ORDERS)
    def test_renyi_at_its_ends(self, alpha):
        assert renyi_entropy(3 * torch.eye(5), alpha=alpha).item() == pytest.approx(math.log(5), rel=1e-6)
        assert renyi_entropy(positive([0.0, 0.0, 4.0]), alpha=alpha).item() == pytest.approx(0, abs=1e-9)
        assert renyi_entropy(torch.zeros(3, 3), alpha=alpha).item() == 0

    @pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
    @pytest.mark.parametrize("alpha", ORDERS)
    def test_renyi_in_float32_neither_overflows_nor_vanishes(self, alpha, scale):
        a = positive([0.1, 0.4, 0.5], dtype=torch.float32)
        expected = renyi_entropy(a, alpha=alpha).item()
        assert renyi_entropy(a * scale, alpha=alpha).item() == pytest.approx(expected, rel=1e-5)

    def test_zero_eigenvalues(self):
        a = positive([0.0, 0.0, 0.3, 0.7])
        expected = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
        assert von_neumann_entropy(a).item() == pytest.approx(expected, abs=1e-13)
        assert matrix_entropy(a).item() == pytest.approx(expected + 1, abs=1e-13)
        assert matrix_entropy(torch.zeros(3, 3)).item() == 0

    def test_covariances(self):
        x, y = rows(20, 3) + 5, rows(20, 4, seed=1) - 2
        np.testing.assert_allclose(covariance(x), np.cov(x.numpy().T, bias=True), atol=1e-14)
        together = np.cov(x.numpy().T, y.numpy().T, bias=True)
        np.testing.assert_allclose(cross_covariance(x, y), together[:3, 3:], atol=1e-14)

    def test_hadamard_product(self):
        k1, k2 = unit_kernel(6, 3), unit_kernel(6, 4, seed=1)
        p = np.linalg.eigvalsh((k1 * k2).numpy() / 6)
        joint = -(p * np.log(p)).sum()
        assert joint_entropy(k1, k2).item() == pytest.approx(joint, abs=1e-12)
        single = sum(von_neumann_entropy(k).item() for k in (k1, k2))
        assert mutual_information(k1, k2).item() == pytest.approx(single - joint, abs=1e-12)
        assert joint_entropy(k1, k2, alpha=2).item() == pytest.approx(-math.log((p**2).sum()), abs=1e-12)
        assert joint_entropy(3 * k1, 5 * k2).item() == pytest.approx(joint, abs=1e-12)


class TestSupport:
    """The divergence is infinite where the support of P is not inside that of Q, and only there."""

    inside = positive([0.0, 0.0, 0.3, 1.2])
    full = positive([0.1, 0.2, 0.3, 1.2], seed=1)

    @pytest.mark.parametrize("function", [matrix_kl, matrix_cross_entropy])
    def test_infinite(self, function):
        assert function(self.full, self.inside).item() == math.inf
        assert math.isfinite(function(self.full, self.inside, ridge=1e-3).item())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("seed", range(5))
    def test_finite_inside(self, seed, dtype):
        basis = rows(30, 30, seed=seed).to(dtype)[:, :7]
        p, q = (basis @ positive(np.linspace(0.1, 1, 7), seed=s, dtype=dtype) @ basis.mT for s in (1, 2))
        p, q = symmetric_part(p) / 30, symmetric_part(q) / 30
        orthogonal = torch.linalg.qr(basis.double())[0]
        small = [symmetric_part(orthogonal.mT @ x.double() @ orthogonal) for x in (p, q)]
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        assert matrix_kl(p, q).item() == pytest.approx(matrix_kl(*small).item(), rel=tolerance, abs=tolerance)
        assert matrix_kl(p, p).item() == pytest.approx(0, abs=tolerance)
        assert matrix_kl(p + 1e-2 * torch.eye(30), q).item() == math.inf

    def test_tolerance(self):
        for size, expected in ((2e-16, False), (1e-13, True)):
            p = torch.diag(torch.tensor([size, 1.0], dtype=torch.float64))
            q = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
            assert (matrix_cross_entropy(p, q).item() == math.inf) == expected
            assert (matrix_cross_entropy(torch.eye(2, dtype=torch.float64), p).item() == math.inf) != expected

    def test_gradients_are_finite(self):
        p, q = self.inside.clone().requires_grad_(), self.inside.clone().requires_grad_()
        matrix_kl(p, q).backward()
        np.testing.assert_allclose(p.grad, 0, atol=1e-12)
        projection = positive([1.0, 1.0, 0.0, 0.0])  # onto the null space: growing there, Q costs its trace
        np.testing.assert_allclose(q.grad, projection, atol=1e-12)
        p, q = self.full.clone().requires_grad_(), self.inside.clone().requires_grad_()
        matrix_kl(p, q).backward()
        assert torch.isfinite(p.grad).all()
        assert torch.isfinite(q.grad).all()


class TestExecution:
    @every_function
    def test_batches(self, function, count):
        arguments = [torch.stack([positive([0.2, 0.5, 0.9], seed=5 * i + s) for s in range(6)]) for i in range(count)]
        found = function(*(x.view(2, 3, 3, 3) for x in arguments))
        single = function(*(x[4] for x in arguments))
        assert found.shape == (2, 3, *single.shape)
        np.testing.assert_allclose(found[1, 1], single, rtol=1e-12, atol=1e-12)
        assert function(*(x[:0] for x in arguments)).shape == (0, *single.shape)

    @pytest.mark.parametrize("function", [matrix_kl, matrix_cross_entropy, joint_entropy, mutual_information])
    def test_one_against_many(self, function):
        many, one = torch.stack([unit_kernel(5, 7, seed=s) for s in range(3)]), unit_kernel(5, 7, seed=9)
        for a, b in ((many, one), (one, many)):
            a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
            found = function(a, b)
            apart = [function(x, b) for x in a] if a.ndim == 3 else [function(a, x) for x in b]
            np.testing.assert_allclose(found.detach(), torch.stack(apart).detach(), rtol=1e-12, atol=1e-12)
            gradients = torch.autograd.grad(found.sum(), (a, b))
            for x, y in zip(gradients, torch.autograd.grad(sum(apart), (a, b)), strict=True):
                np.testing.assert_allclose(x, y, atol=1e-12)

    @every_function
    @pytest.mark.parametrize("half", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
    def test_half_precision_is_computed_in_float32(self, function, count, half):
        arguments = [x.to(half) for x in samples(count, condition=5, d=4)]
        found = function(*arguments)
        assert found.dtype == torch.float32
        assert torch.equal(found, function(*(x.float() for x in arguments)))

    @every_function
    @pytest.mark.parametrize(
        "dtype", [torch.bfloat16, torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
    )
    def test_autocast_changes_nothing(self, function, count, dtype):
        results = []
        for enabled in (False, True):
            arguments = [x.to(dtype).requires_grad_() for x in samples(count, condition=5)]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                value = function(*arguments)
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            if value.requires_grad:
                value.sum().backward()
            results.append([value, *(x.grad for x in arguments if x.grad is not None)])
        assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))

    @every_function
    @pytest.mark.parametrize("d", [4, pytest.param(32, marks=pytest.mark.slow), 200])
    def test_float32(self, function, count, d):
        """To 1e-5 of the sum of the sizes of the terms, at condition 1e3."""
        arguments = samples(count, torch.float32, d=d)
        found, expected = function(*arguments), function(*(x.double() for x in arguments))
        assert found.dtype == torch.float32
        size = torch.linalg.vector_norm(expected).item()
        if function is mutual_information:  # a difference of these
            size = sum(von_neumann_entropy(x.double()).item() for x in arguments)
        assert torch.linalg.vector_norm(found - expected).item() <= 1e-5 * size

    def test_float32_of_a_logarithm_with_many_small_eigenvalues(self):
        a = positive([1e-3] * 50 + [1.0] * 50, dtype=torch.float32)
        found, expected = matrix.matrix_log(a), matrix.matrix_log(a.double())
        assert torch.linalg.matrix_norm(found - expected) <= 1e-6 * torch.linalg.matrix_norm(expected)

    @pytest.mark.parametrize("function", [matrix_kl, matrix_cross_entropy])
    def test_float32_where_p_lies_in_the_smallest_direction_of_q(self, function):
        q = positive([1e-3, 0.3, 0.9, 1.0], dtype=torch.float32)
        p = positive([1.0, 0.0, 0.0, 0.0], dtype=torch.float32)
        expected = function(p.double(), q.double(), validate=False).item()
        assert function(p, q).item() == pytest.approx(expected, abs=1e-5)

    @every_function
    def test_without_gradient(self, function, count):
        arguments = samples(count)
        expected = function(*arguments)
        for x in arguments:
            x.requires_grad_()
        with torch.no_grad():
            assert torch.equal(function(*arguments), expected) or torch.allclose(function(*arguments), expected)
            assert not function(*arguments).requires_grad
        with torch.inference_mode():
            assert torch.allclose(function(*arguments), expected)

    @pytest.mark.parametrize(("function", "count"), some_of(ALL, *COMPILED))
    @pytest.mark.filterwarnings("ignore")
    def test_compiled_without_breaks(self, function, count):
        torch._dynamo.reset()
        results = []
        for f in (function, torch.compile(function, fullgraph=True, backend="eager")):
            arguments = [x.requires_grad_() for x in samples(count, condition=10, d=4)]
            value = f(*arguments)
            if value.requires_grad:
                value.sum().backward()
            results.append([value.detach(), *(x.grad for x in arguments if x.grad is not None)])
        for x, y in zip(*results, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)

    @pytest.mark.parametrize(
        "name",
        some(["matrix_log", "log_det", "matrix_entropy", "matrix_kl", "effective_rank"], "matrix_log", "matrix_kl"),
    )
    @pytest.mark.filterwarnings("ignore")
    def test_compiled_ahead_of_time(self, name):
        torch._dynamo.reset()
        function, count = ALL[name]
        arguments = [x.requires_grad_() for x in samples(count, condition=10, d=4)]
        value = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
        gradients = torch.autograd.grad(value.sum(), arguments)
        expected = torch.autograd.grad(function(*arguments).sum(), arguments)
        for x, y in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("name", ["matrix_log", "matrix_kl", "effective_rank"])
    def test_compiled_by_inductor(self, name):
        torch._dynamo.reset()
        function, count = ALL[name]
        arguments = [x.requires_grad_() for x in samples(count, condition=10, d=4)]
        value = torch.compile(function, fullgraph=True)(*arguments)
        gradients = torch.autograd.grad(value.sum(), arguments)
        expected = torch.autograd.grad(function(*arguments).sum(), arguments)
        for x, y in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-10)

    @every_function
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu(self, function, count):
        arguments = samples(count)
        found = function(*(x.cuda() for x in arguments))
        assert found.device.type == "cuda"
        np.testing.assert_allclose(found.cpu(), function(*arguments), rtol=1e-9, atol=1e-9)
