"""All ranks and entropies: second derivatives against finite differences, compiled programs and ``vmap``."""

import functools
import math

import pytest
import torch

from matrix_ssl import matrix
from matrix_ssl.matrix import of_features
from tests.support.matrix_samples import positive, quick_gradcheck, quick_gradgradcheck, rows, symmetric_part
from tests.support.quick import some

RANKS = {
    "rank_me": matrix.rank_me,
    "effective_rank": of_features.effective_rank,
    "participation_ratio": matrix.participation_ratio,
    "stable_rank": matrix.stable_rank,
    "alpha_req": functools.partial(matrix.alpha_req, first=1, last=3),
    "self_cluster": matrix.self_cluster,
    "coding_rate": matrix.coding_rate,
    "lidar": lambda x: matrix.lidar(x.unflatten(-2, (-1, 2))),
    "spectrum": lambda x: matrix.shannon_entropy(matrix.spectrum(x)[..., :2]),
}
COUNTS = {"numerical_rank": matrix.numerical_rank, "pca_rank": matrix.pca_rank}
ENTROPIES = {
    "matrix_entropy": matrix.matrix_entropy,
    "von_neumann": matrix.von_neumann_entropy,
    "renyi": functools.partial(matrix.renyi_entropy, alpha=0.5),
    "tsallis": functools.partial(matrix.tsallis_entropy, alpha=3.0),
    "min_entropy": matrix.min_entropy,
    "truncated": functools.partial(matrix.truncated_entropy, k=2),
    "low rank": functools.partial(matrix.low_rank_entropy, k=2, alpha=2.0),
    "schatten": lambda a: matrix.schatten_divergence(a, positive([0.3, 0.7, 0.1, 1.1], seed=5), order=3),
}
SINGLE = {"stable_rank", "alpha_req", "spectrum", "min_entropy", "truncated", "low rank"}  # of single eigenvalues
SHAPES = {"tall": (6, 4), "wide": (4, 6)}
every_rank = pytest.mark.parametrize("name", RANKS)
every_entropy = pytest.mark.parametrize("name", ENTROPIES)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@every_rank
def test_ranks(name, shape):
    x = rows(*shape).requires_grad_()
    assert quick_gradcheck(RANKS[name], x)
    assert quick_gradgradcheck(RANKS[name], x, atol=1e-4)


@every_entropy
def test_entropies(name):
    a = positive([0.1, 0.3, 0.9, 2.0]).requires_grad_()
    assert quick_gradgradcheck(lambda x: ENTROPIES[name](symmetric_part(x)), a, atol=1e-4)


@pytest.mark.parametrize("x", [0.3 * torch.eye(4).double(), torch.eye(5, 3).double(), rows(4, 4)])
def test_rank_me_where_singular_values_coincide(x):
    assert quick_gradgradcheck(matrix.rank_me, x.clone().requires_grad_(), atol=1e-4)


def test_rank_me_of_float32_has_the_derivatives_of_float64():
    """From the smaller Gram matrix instead of singular values, on either side."""
    for x in (rows(7, 4), rows(4, 7)):
        found = []
        for dtype in (torch.float32, torch.float64):
            leaf = x.float().to(dtype).requires_grad_()
            (slope,) = torch.autograd.grad(matrix.rank_me(leaf), leaf, create_graph=True)
            found.append((slope.detach(), torch.autograd.grad((slope * slope.detach()).sum(), leaf)[0]))
        for single, double in zip(*found, strict=True):
            torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3 * double.abs().max().item())


@pytest.mark.parametrize("name", sorted(SINGLE & (RANKS.keys() | ENTROPIES.keys())))
def test_where_eigenvalues_coincide_a_second_derivative_of_single_ones_is_an_error(name):
    function = RANKS.get(name) or ENTROPIES[name]
    x = torch.cat([torch.eye(4), -torch.eye(4)]).double() if name in RANKS else torch.eye(4).double()
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    assert slope.isfinite().all()
    with pytest.raises(RuntimeError, match="can be differentiated once where they coincide"):
        torch.autograd.grad(slope.square().sum(), x)


def test_equal_eigenvalues_that_do_not_matter():
    """The largest is simple; its curvature towards the others is the sum over all of them."""
    a = positive([0.2, 0.2, 0.2, 1.5]).requires_grad_()
    assert quick_gradgradcheck(lambda x: matrix.min_entropy(symmetric_part(x)), a, atol=1e-4)


@pytest.mark.parametrize("function", [matrix.rank_me, matrix.stable_rank], ids=["rank_me", "stable_rank"])
def test_a_third_derivative_is_an_error(function):
    x = rows(5, 3).requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        second.sum().backward()


@every_rank
def test_vmap_of_ranks(name):
    x = torch.stack([rows(6, 4, seed=s) for s in range(3)])
    expected = torch.stack([RANKS[name](one) for one in x])
    torch.testing.assert_close(torch.func.vmap(RANKS[name])(x), expected, rtol=1e-9, atol=1e-12)
    slopes = torch.func.vmap(torch.func.grad(RANKS[name]))(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(slopes, torch.autograd.grad(RANKS[name](leaf).sum(), leaf)[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    x = torch.stack([rows(6, 4, seed=s, rank=s + 1) for s in range(3)])
    assert torch.func.vmap(COUNTS[name])(x).tolist() == COUNTS[name](x).tolist()
    compiled = torch.compile(COUNTS[name], fullgraph=True, backend="aot_eager")
    assert compiled(x).tolist() == COUNTS[name](x).tolist()


@pytest.mark.parametrize("name", some(RANKS, "rank_me", "lidar", "alpha_req"))
def test_ranks_compiled_ahead_of_time(name):
    x = rows(6, 4).requires_grad_()
    value = torch.compile(RANKS[name], fullgraph=True, backend="aot_eager")(x)
    (slope,) = torch.autograd.grad(value, x)
    expected = RANKS[name](x)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, x)[0], rtol=1e-7, atol=1e-10)


def test_hessian_vector_product_of_rank_me():
    """Scaling features changes nothing: the gradient is orthogonal to them, and the product with them minus itself."""
    x = rows(6, 4)
    value, product = torch.autograd.functional.hvp(matrix.rank_me, x, x)
    slope = torch.func.grad(matrix.rank_me)(x)
    assert (slope * x).sum().item() == pytest.approx(0, abs=1e-12) and math.isfinite(value)
    torch.testing.assert_close(product, -slope, rtol=1e-9, atol=1e-12)


def test_the_divergence_of_features_where_eigenvalues_coincide():
    """On the side of fewer rows than columns, too: a second derivative by the first argument is right or an error."""
    y = rows(3, 6)
    check = functools.partial(of_features.matrix_kl, ridge=0.1)
    x = rows(4, 6).requires_grad_()
    assert quick_gradgradcheck(lambda x: check(x, y), x)
    for x, function in (
        (torch.eye(4, 6), lambda x: check(x, y)),
        (torch.eye(4, 6), lambda x: of_features.gram_kl(x, y[:, :2][[0, 1, 2, 0]], ridge=0.1)),
    ):
        x = x.double().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x), x, create_graph=True)
        assert gradient.isfinite().all()
        with pytest.raises(RuntimeError, match="its second derivative is not defined there"):
            gradient.square().sum().backward()


@pytest.mark.parametrize("small", [1e-3, 1e-10, 1e-14])
def test_second_derivatives_between_eigenvalues_that_are_far_apart(small):
    """Along E = [[0, 1], [1, 0]], that of tr f(A) at diag(1, s) is 2 (f'(1) - f'(s)) / (1 - s), and the trace stays."""
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    along = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    a = torch.diag(torch.tensor([1.0, small], dtype=torch.float64)) + t * along
    for value, expected in (
        (matrix.matrix_entropy(a), 2 * math.log(small) / (1 - small)),
        (matrix.renyi_entropy(a, alpha=0.5), 2 * (1 - small**-0.5) / (1 - small) / (1 + small**0.5)),
    ):
        (slope,) = torch.autograd.grad(value, t, create_graph=True)
        assert torch.autograd.grad(slope, t, retain_graph=True)[0].item() == pytest.approx(expected, rel=1e-12)
