"""Tables of CKA, RSA and matrix KL against the functions of single pairs, and what is computed once."""

import pytest
import torch

from matrix_ssl.errors import MatrixError, MatrixShapeError, NotFiniteError
from matrix_ssl.matrix import CKAStatistics, linear_cka, linear_cka_matrix, of_features, rsa, rsa_matrix
from matrix_ssl.matrix.comparison import matrices
from tests.support.decompositions import Decompositions
from tests.support.matrix_samples import quick_gradcheck, rows

WIDTHS = (5, 3, 9)


def representations(n, *, widths=WIDTHS, seed=0):
    shared = rows(n, 4, seed=99)
    return [rows(n, d, seed=seed + d) + 2 * shared @ rows(4, d, seed=seed) + d for d in widths]


def pairs(function, xs, ys):
    return torch.stack([torch.stack([function(x, y) for y in ys]) for x in xs])


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("n", [6, 90])  # by kernels, and by columns
def test_cka_is_that_of_every_pair(n, estimator, monkeypatch):
    monkeypatch.setattr(matrices, "_BLOCK", 6 * 5 * 4)  # blocks of four rows, the last one smaller
    xs, ys = representations(n), representations(n, widths=(4, 7), seed=50)
    for other in (ys, None):
        expected = pairs(lambda x, y: linear_cka(x, y, estimator=estimator), xs, other or xs)
        torch.testing.assert_close(linear_cka_matrix(xs, other, estimator=estimator), expected, rtol=1e-11, atol=1e-12)
        single = [[z.float() for z in one] for one in (xs, other or xs)]
        value = linear_cka_matrix(*single, estimator=estimator)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)


def test_rsa_is_that_of_every_pair():
    xs, ys = representations(12), representations(12, widths=(4, 7), seed=50)
    for settings in ({}, {"dissimilarity": "euclidean", "correlation": "pearson"}, {"correlation": "cosine"}):
        expected = pairs(lambda x, y, settings=settings: rsa(x, y, **settings), xs, ys)
        torch.testing.assert_close(rsa_matrix(xs, ys, **settings), expected)
    torch.testing.assert_close(rsa_matrix(xs), pairs(rsa, xs, xs))


def test_matrix_kl_is_that_of_every_pair_and_decomposes_once():
    xs, ys = representations(12), representations(12, widths=(4, 20), seed=50)
    expected = pairs(lambda x, y: of_features.gram_kl(x, y, ridge=1 / 12), xs, ys)
    with Decompositions() as taken:
        value = of_features.gram_kl_matrix(xs, ys, ridge=1 / 12)
    assert taken.names == ["aten._linalg_eigh.default"]  # of all five, as a batch
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    itself = of_features.gram_kl_matrix(xs, ridge=0.1)
    assert itself.diagonal().abs().max() < 1e-14 and (itself + torch.eye(3) > 1e-3).all()


def test_batches_and_gradients():
    xs, ys = representations(7), representations(7, widths=(4, 2), seed=50)
    stacks = [torch.stack([z, z.flip(0) ** 2]) for z in xs]
    functions = (
        linear_cka_matrix, lambda x, y: linear_cka_matrix(x, y, estimator="unbiased"),
        lambda x, y: rsa_matrix(x, y, correlation="pearson"),
        lambda x, y: of_features.gram_kl_matrix(x, y, ridge=0.1),
    )  # fmt: skip
    for function in functions:
        value = function(stacks, ys)
        assert value.shape == (2, 3, 2)
        torch.testing.assert_close(value[1], function([z[1] for z in stacks], ys))
        leaves = [z.clone().requires_grad_() for z in xs]
        assert quick_gradcheck(lambda *zs, function=function: function(zs, ys), leaves)


class TestStreams:
    def test_a_single_batch_is_the_unbiased_cka(self):
        xs, ys = representations(20), representations(20, widths=(4, 7), seed=50)
        state = CKAStatistics(3, 2)
        state.add(xs, ys)
        torch.testing.assert_close(state.matrix(), linear_cka_matrix(xs, ys, estimator="unbiased"))
        small = CKAStatistics(3)
        small.add([1e-12 * x.float() for x in xs])
        expected = linear_cka_matrix(xs, estimator="unbiased")
        torch.testing.assert_close(small.matrix(), expected, rtol=1e-5, atol=1e-5)

    def test_batches_are_those_of_the_population(self):
        xs = representations(4000)
        state = CKAStatistics(3)
        for batch in zip(*(x.split(100) for x in xs), strict=True):
            state.add(batch)
        assert state.count == 4000
        torch.testing.assert_close(state.matrix(), linear_cka_matrix(xs, estimator="unbiased"), rtol=0, atol=0.01)

    def test_states_are_merged(self):
        xs, ys = representations(40), representations(40, widths=(4, 7), seed=50)
        whole, parts = CKAStatistics(3, 2), [CKAStatistics(3, 2) for _ in range(2)]
        halves = [[[z[part] for z in zs] for zs in (xs, ys)] for part in (slice(20), slice(20, 40))]
        for i, (x, y) in enumerate(halves):
            whole.add(x, y)
            parts[i].add(x, y)
        parts[0].merge_packed(parts[1].packed())
        torch.testing.assert_close(parts[0].matrix(), whole.matrix())
        assert parts[0].count == 40 and parts[0].empty().matrix().abs().sum() == 0
        with pytest.raises(MatrixShapeError, match="3 and 2 and of 3 and None representations"):
            parts[0].merge(CKAStatistics(3))

    def test_what_does_not_fit_adds_nothing(self):
        xs = representations(9)
        state = CKAStatistics(3)
        for wrong, text in (
            (xs[:2], "2 and None representations were passed, 3 and None"),
            ([x[:3] for x in xs], r"'xs\[0\]'.* has 3 rows: the unbiased estimator needs at least 4"),
            ([*xs[:2], xs[2][:5]], r"xs\[0\] and xs\[2\]"),
            ([*xs[:2], xs[2][None]], r"'xs\[2\]' has the shape \(1, 9, 9\)"),
            ([*xs[:2], xs[2] / 0], r"'xs\[2\]'.* is not finite"),
        ):
            with pytest.raises(MatrixError, match=text):
                state.add(wrong)
        assert state.count == 0 and not state.matrix().any()
        with pytest.raises(MatrixShapeError, match="at least one of each"):
            CKAStatistics(0)


def test_constant_representations_are_like_nothing():
    xs = [torch.full((9, 2), 1.1), *representations(9)]
    for value in (linear_cka_matrix(xs), linear_cka_matrix(xs, estimator="unbiased")):
        assert not value[0].any() and not value[:, 0].any()
    state = CKAStatistics(4)
    state.add(xs)
    assert not state.matrix()[0].any()


@pytest.mark.parametrize(
    "function", [linear_cka_matrix, rsa_matrix, lambda *a: of_features.gram_kl_matrix(*a, ridge=1)]
)
def test_errors_name_the_representation(function):
    xs = representations(9)
    with pytest.raises(ValueError, match="There is no representation"):
        function([])
    with pytest.raises(MatrixShapeError, match=r"xs\[0\] and ys\[1\] have the shapes \(9, 5\) and \(8, 3\)"):
        function(xs, [xs[0], xs[1][:8]])
    with pytest.raises(NotFiniteError, match=r"'ys\[0\]'"):
        function(xs, [xs[0] / 0])
    with pytest.raises(MatrixShapeError, match=r"'xs\[1\]' \(shape \(9,\)\) has too few dimensions"):
        function([xs[0], xs[1][:, 0]])
