"""``matrix_ssl.matrix.of_features`` against the dense functions of covariances and kernels."""

import functools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from matrix_ssl import matrix
from matrix_ssl.errors import MatrixError, MatrixShapeError, NotPositiveDefiniteError
from matrix_ssl.matrix import covariance, of_features
from tests.support.matrix_samples import positive, rows
from tests.support.quick import cross

ORDERS = [0.0, 0.5, 0.9, 1.0, 1.1, 2.0, 3.0, math.inf]
SINGLE = {name: getattr(of_features, name) for name in ("matrix_entropy", "von_neumann_entropy", "log_det")}
DENSE = {name: getattr(matrix, name) for name in SINGLE}
for order in ORDERS:
    SINGLE[f"renyi {order}"] = functools.partial(of_features.renyi_entropy, alpha=order)
    DENSE[f"renyi {order}"] = functools.partial(matrix.renyi_entropy, alpha=order)
TWO = ["matrix_kl", "matrix_cross_entropy"]
SHAPES = [(20, 6), (6, 20), (7, 7), (2, 3), (5, 1)]


def linear_kernel(x):
    unit = x / x.norm(dim=-1, keepdim=True)
    return unit @ unit.mT


@pytest.mark.parametrize("name", SINGLE)
class TestOfOne:
    @pytest.mark.parametrize(("shape", "ridge"), cross(SHAPES, [0.0, 1e-3, 0.5], row=(20, 6), column=0.0))
    def test_is_that_of_the_covariance(self, name, shape, ridge):
        x = rows(*shape) + 3
        if name == "log_det" and ridge == 0 and shape[0] <= shape[1]:
            pytest.skip("the determinant is zero")
        expected = DENSE[name](covariance(x), ridge=ridge).item()
        assert SINGLE[name](x, ridge=ridge).item() == pytest.approx(expected, abs=1e-10)

    def test_batches(self, name):
        x = torch.stack([rows(6, 4, seed=s) for s in range(6)])
        found = SINGLE[name](x.view(2, 3, 6, 4), ridge=0.1)
        assert found.shape == (2, 3)
        assert found[1, 2].item() == pytest.approx(SINGLE[name](x[5], ridge=0.1).item(), abs=1e-12)

    @pytest.mark.parametrize(
        ("dtype", "shape"),
        cross(
            [torch.bfloat16, torch.float16, torch.float32], [(64, 16), (16, 64), (300, 100)],
            row=torch.float32, column=(16, 64),
        ),
    )  # fmt: skip
    def test_float32_half_precision_and_autocast(self, name, dtype, shape):
        """To 1e-5 at a ridge that makes the condition number 1e3."""
        x = rows(*shape).to(dtype)
        ridge = torch.linalg.eigvalsh(covariance(x.double()))[-1].item() / 1e3
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = SINGLE[name](x, ridge=ridge)
        assert found.dtype == torch.float32
        assert torch.equal(found, SINGLE[name](x.float(), ridge=ridge))
        assert found.item() == pytest.approx(SINGLE[name](x.double(), ridge=ridge).item(), rel=1e-5)

    def test_gradient_is_that_of_the_covariance(self, name):
        for shape in ((20, 6), (6, 20)):
            a, b = (rows(*shape).requires_grad_() for _ in range(2))
            if not (found := SINGLE[name](a, ridge=0.1)).requires_grad:
                assert name == "renyi 0.0"
                return
            found.backward()
            DENSE[name](covariance(b), ridge=0.1).backward()
            np.testing.assert_allclose(a.grad, b.grad, atol=1e-10)

    @pytest.mark.filterwarnings("ignore")
    def test_compiled_without_breaks(self, name):
        torch._dynamo.reset()
        function, x = functools.partial(SINGLE[name], ridge=0.1), rows(3, 6)
        found = torch.compile(function, fullgraph=True, backend="eager")(x)
        assert found.item() == pytest.approx(function(x).item(), abs=1e-12)


@pytest.mark.parametrize("name", TWO)
class TestOfTwo:
    @pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
    @pytest.mark.parametrize(("n", "k", "d"), [(20, 15, 6), (6, 7, 20), (30, 7, 20), (6, 30, 20), (7, 7, 7), (2, 2, 3)])
    def test_is_that_of_the_covariances(self, name, n, k, d, ridge):
        x, y = rows(n, d) + 3, rows(k, d, seed=1) - 1
        expected = getattr(matrix, name)(covariance(x), covariance(y), ridge=ridge).item()
        assert getattr(of_features, name)(x, y, ridge=ridge).item() == pytest.approx(expected, rel=1e-10, abs=1e-10)
        assert math.isinf(expected) == (ridge == 0 and k <= d)

    def test_without_a_ridge_inside_the_support(self, name):
        y = rows(6, 20)
        x = rows(9, 6, seed=1) @ (y - y.mean(0))
        expected = getattr(matrix, name)(covariance(x), covariance(y)).item()
        assert math.isfinite(expected)
        assert getattr(of_features, name)(x, y).item() == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
    def test_float32_half_precision_and_autocast(self, name, shape):
        """To 1e-5 of the trace of P at a ridge that makes the condition number 1e3."""
        for dtype in (torch.bfloat16, torch.float32):
            x, y = (rows(*shape, seed=s).to(dtype) for s in range(2))
            ridge = torch.linalg.eigvalsh(covariance(y.double()))[-1].item() / 1e3
            function = functools.partial(getattr(of_features, name), ridge=ridge)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = function(x, y)
            assert torch.equal(found, function(x.float(), y.float()))
            trace = covariance(x.double()).trace().item()
            assert found.item() == pytest.approx(function(x.double(), y.double()).item(), abs=1e-5 * trace)

    def test_gradients_are_those_of_the_covariances(self, name):
        for n, k, d in ((20, 15, 6), (6, 7, 20), (30, 7, 20), (7, 30, 20)):
            pair, other = ([rows(n, d).requires_grad_(), rows(k, d, seed=1).requires_grad_()] for _ in range(2))
            getattr(of_features, name)(*pair, ridge=0.1).backward()
            getattr(matrix, name)(*map(covariance, other), ridge=0.1).backward()
            for a, b in zip(pair, other, strict=True):
                np.testing.assert_allclose(a.grad, b.grad, atol=1e-9)

    def test_batches(self, name):
        function = functools.partial(getattr(of_features, name), ridge=0.1)
        x, y = torch.stack([rows(4, 6, seed=s) for s in range(3)]), rows(5, 6, seed=7)
        np.testing.assert_allclose(function(x, y), [function(a, y) for a in x], rtol=1e-12)
        np.testing.assert_allclose(function(y, x), [function(y, a) for a in x], rtol=1e-12)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("shape", [(4, 6), pytest.param((6, 4), marks=pytest.mark.slow)])
    def test_compiled_without_breaks(self, name, shape):
        torch._dynamo.reset()
        function = functools.partial(getattr(of_features, name), ridge=0.1)
        x, y = rows(*shape), rows(*shape, seed=1).requires_grad_()
        found = torch.compile(function, fullgraph=True, backend="aot_eager")(x, y)
        (gradient,) = torch.autograd.grad(found, y)
        np.testing.assert_allclose(gradient, torch.autograd.grad(function(x, y), y)[0], atol=1e-12)

    def test_of_equal_features_and_at_collapse(self, name):
        x = rows(5, 8)
        smallest = of_features.matrix_entropy(x, ridge=0.1).item() if name == "matrix_cross_entropy" else 0
        function = functools.partial(getattr(of_features, name), ridge=0.1)
        assert function(x, x).item() == pytest.approx(smallest, abs=1e-12)
        same = torch.full((5, 8), 0.3, dtype=torch.float64).requires_grad_()
        expected = getattr(matrix, name)(covariance(x), torch.zeros(8, 8).double(), ridge=0.1).item()
        found = function(x, same)
        assert found.item() == pytest.approx(expected, abs=1e-10)
        found.backward()
        np.testing.assert_allclose(same.grad, 0, atol=1e-12)


class TestKernels:
    @pytest.mark.parametrize(
        ("shape", "alpha"),
        cross([(5, 8, 9), (5, 2, 9), (20, 3, 2), (6, 3, 2), (7, 3, 2)], ORDERS, row=(20, 3, 2), column=1.0),
    )
    @pytest.mark.parametrize("name", ["joint_entropy", "mutual_information"])
    def test_is_that_of_the_kernels(self, name, shape, alpha):
        n, d, e = shape
        x, y = rows(n, d) + 0.3, rows(n, e, seed=1)
        expected = getattr(matrix, name)(linear_kernel(x), linear_kernel(y), alpha=alpha).item()
        assert getattr(of_features, name)(x, y, alpha=alpha).item() == pytest.approx(expected, abs=1e-9)
        half = getattr(of_features, name)(x.bfloat16(), y.bfloat16(), alpha=alpha)
        assert torch.equal(half, getattr(of_features, name)(x.bfloat16().float(), y.bfloat16().float(), alpha=alpha))
        assert half.dtype == torch.float32

    @pytest.mark.parametrize("shapes", [((3, 5, 2), (3, 5, 4)), ((3, 20, 2), (3, 20, 3)), ((3, 20, 2), (20, 3))])
    def test_batches_and_autocast(self, shapes):
        x, y = (rows(60, shape[-1], seed=s)[: math.prod(shape[:-1])].view(shape) for s, shape in enumerate(shapes))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = of_features.mutual_information(x.float(), y.float())
        expected = [of_features.mutual_information(a, y[i] if y.ndim == 3 else y) for i, a in enumerate(x)]
        np.testing.assert_allclose(found, expected, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest result of an operation."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(x.numel() for x in tensors)])
        return result


@pytest.mark.parametrize("shape", [(600, 3), (3, 600)])
@pytest.mark.parametrize(
    "function",
    [
        *(functools.partial(f, ridge=0.1) for f in SINGLE.values()),
        lambda x: of_features.matrix_kl(x, x + 1, ridge=0.1),
        lambda x: of_features.matrix_cross_entropy(x, x + 1, ridge=0.1),
        lambda x: of_features.joint_entropy(x, x),
        lambda x: of_features.mutual_information(x, x),
        matrix.effective_rank,
        matrix.coding_rate,
        matrix.spectrum,
    ],
)
def test_nothing_is_squared_on_the_larger_side(function, shape):
    with LargestTensor() as largest:
        function(rows(*shape, dtype=torch.float32))
    assert 600 * 3 <= largest.elements < 600 * 600


class TestErrors:
    functions = pytest.mark.parametrize(
        "function",
        [*SINGLE.values(), of_features.effective_rank, *(lambda x, n=name: getattr(of_features, n)(x, x)
         for name in [*TWO, "joint_entropy", "mutual_information"])],
    )  # fmt: skip

    @functions
    @pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0)])
    def test_shapes(self, function, shape):
        with pytest.raises(MatrixShapeError, match=r"'x' \(shape"):
            function(torch.zeros(shape))

    @functions
    def test_not_finite(self, function):
        x = rows(6, 4)
        x[4, 2] = math.nan
        with pytest.raises(MatrixError, match=r"'x'.* 1 NaN and 0 infinite of 24 .* at \(4, 2\)"):
            function(x)

    def test_singular_covariance(self):
        with pytest.raises(NotPositiveDefiniteError, match=r"rank 3 at most, below 4.*ridge="):
            of_features.log_det(rows(4, 4), validate=False)
        with pytest.raises(NotPositiveDefiniteError, match=r"'covariance of x'.*smallest eigenvalue"):
            of_features.log_det(torch.ones(6, 4))
        assert of_features.log_det(torch.ones(6, 4), validate=False).isnan()

    @pytest.mark.parametrize("ridge", [1e-2, 1e-3, 1e-5])
    @pytest.mark.parametrize("about", ["mean", "origin"])
    @pytest.mark.parametrize("shape", [(20, 30), (50, 30)])
    def test_log_det_of_large_collapsed_features_in_float32(self, shape, about, ridge):
        """A ridge below the rounding of a large eigenvalue is not lost: NumPy in float64 says so."""
        x = (100 * rows(*shape, rank=1)).float()
        exact = x.double().numpy()
        dense = np.cov(exact.T, bias=True) if about == "mean" else exact.T @ exact / len(exact)
        expected = np.linalg.slogdet(dense + ridge * np.eye(shape[1]))[1]
        found = of_features.log_det(x, ridge=ridge, about=about)
        assert found.dtype == torch.float32 and found.item() == pytest.approx(expected, rel=1e-5)

    def test_two_of_different_shapes(self):
        for name in TWO:
            with pytest.raises(MatrixShapeError, match=r"\(4, 3\) and \(4, 2\)"):
                getattr(of_features, name)(rows(4, 3), rows(4, 2))
        for name in ("joint_entropy", "mutual_information"):
            with pytest.raises(MatrixShapeError, match=r"\(4, 3\) and \(5, 3\)"):
                getattr(of_features, name)(rows(4, 3), rows(5, 3))

    def test_numbers(self):
        for name in ("matrix_entropy", "von_neumann_entropy", "log_det", "effective_rank"):
            with pytest.raises(ValueError, match="ridge must be a finite number, zero or above"):
                getattr(of_features, name)(rows(4, 3), ridge=-0.1)
        for alpha in (1.5, 2.0):
            with pytest.raises(ValueError, match="ridge must be a finite number, zero or above"):
                of_features.renyi_entropy(rows(4, 3), alpha=alpha, ridge=-0.1)
        with pytest.raises(ValueError, match="alpha must be zero or above"):
            of_features.renyi_entropy(rows(4, 3), alpha=-1.0)
        with pytest.raises(ValueError, match="alpha must be zero or above"):
            of_features.joint_entropy(rows(4, 3), rows(4, 3), alpha=math.nan)


def test_effective_rank():
    x = positive([0.5, 0.2, 0.1]) @ rows(3, 8)
    assert of_features.effective_rank(x).item() == pytest.approx(matrix.effective_rank(covariance(x)).item())
    expected = matrix.effective_rank(covariance(x) + 0.1 * torch.eye(8)).item()
    assert of_features.effective_rank(x, ridge=0.1).item() == pytest.approx(expected)
