"""Joint and conditional entropies of kernels and what follows, against loops over the definitions."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from matrix_ssl import matrix
from matrix_ssl.errors import MatrixError, MatrixShapeError, NotSymmetricError
from matrix_ssl.matrix import of_features
from tests.support.matrix_samples import quick_gradcheck, quick_gradgradcheck, rows, symmetric_part, unit_kernel
from tests.support.quick import some_of

ORDERS = [0.0, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0, math.inf]
KERNELS = [unit_kernel(6, 8, seed=s) for s in range(3)]
TWO = {
    "conditional_entropy": matrix.conditional_entropy,
    "mutual_information": matrix.mutual_information,
    **{f"normalised by {by}": functools.partial(matrix.normalised_mutual_information, by=by)
       for by in ("min", "max", "mean", "geometric_mean", "joint")},
    "matrix_mutual_information_ratio": matrix.matrix_mutual_information_ratio,
    "entropy_difference_ratio": matrix.entropy_difference_ratio,
}  # fmt: skip
MANY = {
    "joint_entropy": matrix.joint_entropy,
    "total_correlation": matrix.total_correlation,
    "dual_total_correlation": matrix.dual_total_correlation,
    "interaction_information": matrix.interaction_information,
}


def by_numpy(*grams, alpha):
    """The Rényi entropy of the elementwise product from its definition."""
    product = functools.reduce(np.multiply, [gram.numpy() for gram in grams])
    p = np.linalg.eigvalsh(product / np.trace(product)).clip(0)
    p = p[p > 1e-14]
    if alpha == 1:
        return -(p * np.log(p)).sum()
    if alpha == math.inf:
        return -math.log(p.max())
    return math.log(len(p) if alpha == 0 else (p**alpha).sum()) / (1 - alpha)


@pytest.mark.parametrize("alpha", ORDERS)
class TestDefinitions:
    def test_two(self, alpha):
        x, y, _ = KERNELS
        a, b, ab = (by_numpy(*k, alpha=alpha) for k in ((x,), (y,), (x, y)))
        shared = a + b - ab
        expected = {
            "conditional_entropy": ab - b,
            "mutual_information": shared,
            "normalised by min": shared / min(a, b),
            "normalised by max": shared / max(a, b),
            "normalised by mean": 2 * shared / (a + b),
            "normalised by geometric_mean": shared / math.sqrt(a * b),
            "normalised by joint": shared / ab,
            "matrix_mutual_information_ratio": shared / min(a, b),
            "entropy_difference_ratio": abs(a - b) / max(a, b),
        }
        for name, function in TWO.items():
            assert function(x, y, alpha=alpha).item() == pytest.approx(expected[name], abs=1e-10), name

    def test_many(self, alpha):
        entropy = functools.partial(by_numpy, alpha=alpha)
        for k in (2, 3):
            grams = KERNELS[:k]
            joint, single = entropy(*grams), [entropy(gram) for gram in grams]
            others = [entropy(*(grams[j] for j in range(k) if j != i)) for i in range(k)]
            expected = {
                "joint_entropy": joint,
                "total_correlation": sum(single) - joint,
                "dual_total_correlation": joint - sum(joint - other for other in others),
                "interaction_information": -sum(
                    (-1) ** (k - size) * entropy(*subset)
                    for size in range(1, k + 1)
                    for subset in itertools.combinations(grams, size)
                ),
            }
            for name, function in MANY.items():
                assert function(*grams, alpha=alpha).item() == pytest.approx(expected[name], abs=1e-10), name

    def test_several_conditions(self, alpha):
        x, y, z = KERNELS
        expected = by_numpy(x, y, z, alpha=alpha) - by_numpy(y, z, alpha=alpha)
        assert matrix.conditional_entropy(x, [y, z], alpha=alpha).item() == pytest.approx(expected, abs=1e-10)

    @pytest.mark.parametrize(("n", "widths"), [(5, (8, 9, 2)), (40, (2, 3, 2)), (20, (3, 4, 2))])
    def test_of_features(self, alpha, n, widths):
        features = [rows(n, d, seed=s) + 0.3 for s, d in enumerate(widths)]
        grams = [matrix.cosine_kernel(x) for x in features]
        for name, function in MANY.items():
            found = getattr(of_features, name)(*features, alpha=alpha).item()
            assert found == pytest.approx(function(*grams, alpha=alpha).item(), abs=1e-9), name
        for name in ("conditional_entropy", "matrix_mutual_information_ratio", "entropy_difference_ratio"):
            found = getattr(of_features, name)(*features[:2], alpha=alpha).item()
            assert found == pytest.approx(TWO[name](*grams[:2], alpha=alpha).item(), abs=1e-9), name
        found = of_features.normalised_mutual_information(*features[:2], by="joint", alpha=alpha).item()
        assert found == pytest.approx(TWO["normalised by joint"](*grams[:2], alpha=alpha).item(), abs=1e-9)
        found = of_features.conditional_entropy(features[0], features[1:], alpha=alpha).item()
        assert found == pytest.approx(matrix.conditional_entropy(grams[0], grams[1:], alpha=alpha).item(), abs=1e-9)
        found = of_features.gram_entropy(features[0], alpha=alpha).item()
        assert found == pytest.approx(matrix.renyi_entropy(grams[0], alpha=alpha).item(), abs=1e-9)


ALL = {name: (f, 2) for name, f in TWO.items()} | {name: (f, 3) for name, f in MANY.items()}
COMPILED = ("conditional_entropy", "dual_total_correlation")


@pytest.mark.parametrize(("function", "count"), ALL.values(), ids=ALL)
class TestExecution:
    def test_gradients(self, function, count):
        grams = [gram.clone().requires_grad_() for gram in KERNELS[:count]]
        for alpha in (1.0, 2.0):
            of_any = functools.partial(function, alpha=alpha)
            assert quick_gradcheck(lambda *k, f=of_any: f(*map(symmetric_part, k)), grams)

    def test_second_derivatives(self, function, count):
        grams = [gram[:3, :3].clone().requires_grad_() for gram in KERNELS[:count]]
        assert quick_gradgradcheck(lambda *k: function(*map(symmetric_part, k)), grams, atol=1e-4)

    def test_batches_broadcasting_and_vmap(self, function, count):
        stack = [torch.stack([unit_kernel(4, 5, seed=10 * i + s) for s in range(3)]) for i in range(count)]
        found = function(*stack)
        for i in range(3):
            assert found[i].item() == pytest.approx(function(*(k[i] for k in stack)).item(), abs=1e-12)
        np.testing.assert_allclose(torch.func.vmap(function)(*stack), found, atol=1e-12)
        one = function(stack[0], *(k[0] for k in stack[1:]))
        assert one.shape == (3,)

    @pytest.mark.parametrize("n", [16, 100])
    def test_float32(self, function, count, n):
        """To 1e-5 of the sum of the entropies."""
        grams = [unit_kernel(n, n // 2, seed=s).float() for s in range(count)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = function(*grams)
        assert found.dtype == torch.float32
        size = sum(matrix.von_neumann_entropy(gram.double(), validate=False).item() for gram in grams)
        expected = function(*(gram.double() for gram in grams), validate=False).item()
        assert found.item() == pytest.approx(expected, abs=1e-5 * size)

    def test_errors(self, function, count):
        good = list(KERNELS[:count])
        with pytest.raises(NotSymmetricError, match=r"'(k1|k2|given)'"):
            function(good[0], torch.triu(good[1]), *good[2:])
        if function is not matrix.entropy_difference_ratio:
            with pytest.raises(MatrixShapeError, match=r"\(6, 6\) and \(3, 3\)"):
                function(good[0], torch.eye(3), *good[2:])
        with pytest.raises(ValueError, match="alpha must be zero or above"):
            function(*good, alpha=-1.0)


@pytest.mark.parametrize(("function", "count"), some_of(ALL, *COMPILED))
@pytest.mark.filterwarnings("ignore")
def test_compiled_without_breaks(function, count):
    torch._dynamo.reset()
    grams = [gram.clone().requires_grad_() for gram in KERNELS[:count]]
    found = torch.compile(function, fullgraph=True, backend="eager")(*grams)
    gradient = torch.autograd.grad(found, grams[0])[0]
    np.testing.assert_allclose(gradient, torch.autograd.grad(function(*grams), grams[0])[0], atol=1e-12)


@pytest.mark.parametrize("shape", [(20, 4), (4, 20)])
def test_gradients_of_features_at_full_and_deficient_rank(shape):
    for name in ("total_correlation", "matrix_mutual_information_ratio", "entropy_difference_ratio"):
        features = [rows(*shape, seed=s, rank=rank).requires_grad_() for s, rank in ((0, None), (1, 2))]
        assert quick_gradcheck(getattr(of_features, name), features, atol=1e-4)


class TestEnds:
    def test_labels(self):
        """Kernels of labels have the entropies of the labels, of Shannon."""
        first, second = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 1, 0, 0])
        k1, k2 = ((labels.unsqueeze(-1) == labels).double() for labels in (first, second))
        p = np.array([1, 1, 1, 1, 2]) / 6
        assert matrix.joint_entropy(k1, k2).item() == pytest.approx(-(p * np.log(p)).sum(), abs=1e-12)
        assert matrix.conditional_entropy(k1, k1).item() == pytest.approx(0, abs=1e-12)
        for by in ("min", "max", "mean", "geometric_mean", "joint"):
            assert matrix.normalised_mutual_information(k1, k1, by=by).item() == pytest.approx(1, abs=1e-12)

    def test_exclusive_or_is_synergy(self):
        """Two fair bits and their exclusive or: independent in pairs, log 2 together."""
        bits = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]])
        grams = (bits.unsqueeze(-1) == bits.unsqueeze(-2)).double()
        assert matrix.interaction_information(*grams).item() == pytest.approx(math.log(2), abs=1e-12)
        assert matrix.total_correlation(*grams).item() == pytest.approx(math.log(2), abs=1e-12)
        assert matrix.dual_total_correlation(*grams).item() == pytest.approx(2 * math.log(2), abs=1e-12)
        same = (bits[:1].unsqueeze(-1) == bits[:1].unsqueeze(-2)).double().expand(3, 4, 4)
        assert matrix.interaction_information(*same).item() == pytest.approx(-math.log(2), abs=1e-12)

    def test_nothing_to_share(self):
        ones = torch.ones(4, 4, dtype=torch.float64).requires_grad_()
        for function in (matrix.matrix_mutual_information_ratio, matrix.entropy_difference_ratio):
            value = function(ones, ones)
            assert value.item() == 0
            assert torch.isfinite(torch.autograd.grad(value, ones)[0]).all()

    def test_different_numbers_of_samples(self):
        found = matrix.entropy_difference_ratio(torch.eye(4), torch.eye(8))
        assert found.item() == pytest.approx(1 / 3, rel=1e-6)

    def test_numbers(self):
        with pytest.raises(ValueError, match="At least 2 kernels are needed, got 1"):
            matrix.total_correlation(KERNELS[0])
        with pytest.raises(ValueError, match="At least 1 kernels are needed, got 0"):
            matrix.joint_entropy()
        with pytest.raises(ValueError, match=r"At least 2 sets of features are needed, got 1"):
            of_features.total_correlation(rows(4, 2))
        with pytest.raises(ValueError, match=r"takes 2\^11 - 1 entropies: pass 10 at most"):
            matrix.interaction_information(*11 * [torch.eye(2)])
        with pytest.raises(ValueError, match=r"by must be 'min', .* got 'sum'"):
            matrix.normalised_mutual_information(*KERNELS[:2], by="sum")
        with pytest.raises(MatrixShapeError, match=r"x1 and x3 .* the same samples"):
            of_features.joint_entropy(rows(4, 2), rows(4, 2), rows(5, 2))


class TestVendiScore:
    @pytest.mark.parametrize("order", ORDERS)
    def test_definition(self, order):
        gram, weights = KERNELS[0], torch.tensor([0.1, 0.3, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
        assert matrix.vendi_score(gram, order=order).item() == pytest.approx(
            math.exp(by_numpy(gram, alpha=order)), rel=1e-10
        )
        p = (weights / weights.sum()).numpy()
        weighted = torch.from_numpy(np.sqrt(np.outer(p, p)) * gram.numpy())
        found = matrix.vendi_score(gram, order=order, weights=weights).item()
        assert found == pytest.approx(math.exp(by_numpy(weighted, alpha=order)), rel=1e-10)

    @pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
    @pytest.mark.parametrize("shape", [(30, 3), (3, 30)])
    def test_of_features(self, shape, order):
        x, weights = rows(*shape), torch.linspace(0.1, 1, shape[0], dtype=torch.float64)
        for w in (None, weights):
            expected = matrix.vendi_score(matrix.cosine_kernel(x), order=order, weights=w).item()
            assert of_features.vendi_score(x, order=order, weights=w).item() == pytest.approx(expected, rel=1e-9)

    def test_ends_and_copies(self):
        assert matrix.vendi_score(torch.eye(5)).item() == pytest.approx(5, rel=1e-5)
        assert matrix.vendi_score(torch.ones(5, 5)).item() == pytest.approx(1, rel=1e-5)
        x, weights = rows(4, 3), torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
        twice = of_features.vendi_score(
            torch.cat([x, x[:1]]), weights=torch.cat([weights, weights[:1]]) * torch.tensor([0.25, 1, 1, 1, 0.75])
        )
        assert twice.item() == pytest.approx(of_features.vendi_score(x, weights=weights).item(), rel=1e-12)

    def test_gradients(self):
        x = rows(5, 3).requires_grad_()
        weights = torch.linspace(0.1, 1, 5, dtype=torch.float64).requires_grad_()
        assert quick_gradcheck(lambda x, w: of_features.vendi_score(x, weights=w), (x, weights))
        assert quick_gradgradcheck(lambda x, w: of_features.vendi_score(x, weights=w), (x, weights))

    def test_errors(self):
        with pytest.raises(MatrixError, match=r"'gram'.* has 2 on its diagonal at \(1,\).*unit_diagonal\(gram\)"):
            matrix.vendi_score(torch.diag(torch.tensor([1.0, 2.0])))
        with pytest.raises(MatrixShapeError, match=r"'weights' has the shape \(3,\) for 2 samples in gram"):
            matrix.vendi_score(torch.eye(2), weights=torch.ones(3))
        with pytest.raises(MatrixError, match=r"'weights' has -1 at \(1,\)"):
            matrix.vendi_score(torch.eye(2), weights=torch.tensor([1.0, -1.0]))
        with pytest.raises(MatrixError, match=r"'weights' is zero for all samples"):
            of_features.vendi_score(torch.eye(2), weights=torch.zeros(2))
