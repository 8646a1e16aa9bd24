"""What the matrix functions say of arguments they are not defined for, and when they look."""

import functools
import math
import re

import pytest
import torch

from matrix_ssl import matrix
from matrix_ssl.errors import (
    EmptyMatrixError,
    MatrixError,
    MatrixShapeError,
    MatrixSSLError,
    MatrixTypeError,
    NotFiniteError,
    NotPositiveDefiniteError,
    NotPositiveSemidefiniteError,
    NotSquareError,
    NotSymmetricError,
)
from matrix_ssl.matrix import Moments, metrics, of_features
from tests.support.matrix_samples import positive, rows, unit_kernel
from tests.support.quick import some_of

GOOD = positive([0.5, 1.0, 2.0])
INDEFINITE = positive([-0.1, 1.0, 2.0])
SQUARE = {
    "matrix_log": (matrix.matrix_log, "a"),
    "log1p_ratio": (lambda a, **k: matrix.log1p_ratio(a, 0.1, **k), "a"),
    "log_det": (matrix.log_det, "a"),
    "matrix_entropy": (matrix.matrix_entropy, "a"),
    "von_neumann_entropy": (matrix.von_neumann_entropy, "a"),
    "renyi_entropy": (functools.partial(matrix.renyi_entropy, alpha=3.0), "a"),
    "renyi_entropy 2": (functools.partial(matrix.renyi_entropy, alpha=2.0), "a"),
    "matrix_kl, p": (lambda a, **k: matrix.matrix_kl(a, GOOD, **k), "p"),
    "matrix_kl, q": (lambda a, **k: matrix.matrix_kl(GOOD, a, **k), "q"),
    "matrix_cross_entropy, p": (lambda a, **k: matrix.matrix_cross_entropy(a, GOOD, **k), "p"),
    "matrix_cross_entropy, q": (lambda a, **k: matrix.matrix_cross_entropy(GOOD, a, **k), "q"),
    "joint_entropy, k1": (lambda a, **k: matrix.joint_entropy(a, GOOD, **k), "k1"),
    "joint_entropy, k2": (lambda a, **k: matrix.joint_entropy(GOOD, a, **k), "k2"),
    "mutual_information, k1": (lambda a, **k: matrix.mutual_information(a, GOOD, **k), "k1"),
    "mutual_information, k2": (lambda a, **k: matrix.mutual_information(GOOD, a, **k), "k2"),
}
ANY = {
    "covariance": (matrix.covariance, "x"),
    "cross_covariance": (lambda x, **k: matrix.cross_covariance(x, x, **k), "x"),
    "effective_rank": (matrix.effective_rank, "x"),
    "coding_rate": (matrix.coding_rate, "features"),
    "spectrum": (matrix.spectrum, "features"),
}
square = pytest.mark.parametrize(("function", "name"), SQUARE.values(), ids=SQUARE)
anything = pytest.mark.parametrize(("function", "name"), (SQUARE | ANY).values(), ids=SQUARE | ANY)


@square
class TestSquareMatrices:
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 3, 2)])
    def test_not_square(self, function, name, shape):
        with pytest.raises(NotSquareError, match=re.escape(f"'{name}' (shape {shape})")):
            function(torch.zeros(shape), validate=False)

    def test_not_symmetric(self, function, name):
        a = GOOD.clone()
        a[0, 1] += 0.31 * a.abs().max()
        off = f"{((a - a.T).abs().max() / a.abs().max()).item():.2g}"
        text = rf"'{name}' \(shape \(3, 3\)\).* is {off} of the largest .*mT\) / 2"
        with pytest.raises(NotSymmetricError, match=text):
            function(a)
        function(a, validate=False)

    def test_rounding_is_no_asymmetry(self, function, name):
        for dtype, size in ((torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 7e-3)):
            a = GOOD.clone().to(dtype)
            a[0, 1] = a[0, 1] + size * a.abs().max()
            function(a)
            a[0, 1] = a[0, 1] + 100 * size * a.abs().max()
            with pytest.raises(NotSymmetricError):
                function(a)

    def test_the_matrix_of_a_batch(self, function, name):
        stack = GOOD.repeat(2, 3, 1, 1)
        stack[1, 2, 0, 1] += 1
        with pytest.raises(NotSymmetricError, match=r"\(matrix 1, 2 of the batch\)"):
            function(stack)


@anything
class TestEveryMatrix:
    @pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0)])
    def test_empty(self, function, name, shape):
        with pytest.raises(EmptyMatrixError, match=f"'{name}'.* is empty"):
            function(torch.zeros(shape), validate=False)

    def test_complex(self, function, name):
        with pytest.raises(MatrixTypeError, match=f"'{name}'.*complex64"):
            function(GOOD.to(torch.complex64), validate=False)

    def test_not_finite(self, function, name):
        a = torch.stack([GOOD, GOOD])
        a[1, 0, 2] = a[1, 2, 0] = math.inf
        a[1, 2, 2] = math.nan
        with pytest.raises(NotFiniteError, match=rf"'{name}'.* 1 NaN and 2 infinite of 18 .* first at \(1, 0, 2\)"):
            function(a)


@pytest.mark.parametrize(
    ("function", "name"),
    some_of(SQUARE | ANY, "matrix_log", "renyi_entropy", "matrix_kl, q", "joint_entropy, k1", "covariance"),
)
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_does_not_look(function, name):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    compiled(GOOD)
    if name in SQUARE:
        skewed = GOOD + torch.triu(torch.ones_like(GOOD))
        with pytest.raises(NotSymmetricError):
            function(skewed)
        assert compiled(skewed) is not None


@pytest.mark.parametrize("name", [key for key in SQUARE if key not in ("matrix_cross_entropy, p", "renyi_entropy 2")])
def test_not_positive_semidefinite(name):
    function, argument = SQUARE[name]
    if "joint" in name:  # the product with 11ᵀ is the matrix itself
        function, argument = lambda a, **k: matrix.joint_entropy(a, torch.ones_like(a), **k), r"k1 \* k2"
    text = rf"'{argument}' \(shape \(3, 3\)\) .* smallest eigenvalue is -0\.1, the largest in magnitude 2.*ridge="
    definite = name in ("matrix_log", "log_det")
    with pytest.raises(NotPositiveDefiniteError if definite else NotPositiveSemidefiniteError, match=text):
        function(INDEFINITE)
    function(INDEFINITE, validate=False)


@pytest.mark.parametrize("eigenvalues", [[-1.0, -0.5, 1.0], [-0.1, 0.0, 1.0], [-1.0, -1.0, -1.0]])
def test_order_two_sees_an_impossible_norm(eigenvalues):
    a = positive(eigenvalues)
    ratio = f"{a.trace().item() / a.norm().item():.3g}"
    with pytest.raises(NotPositiveSemidefiniteError, match=re.escape(f"tr A / ‖A‖_F is {ratio}, below 1")):
        matrix.renyi_entropy(a, alpha=2)


def test_rounding_is_not_negative():
    for dtype, size in ((torch.float64, 3e-14), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        matrix.matrix_entropy(torch.diag(torch.tensor([-size, 1.0, 1.0])).to(dtype))
        with pytest.raises(NotPositiveSemidefiniteError):
            matrix.matrix_entropy(torch.diag(torch.tensor([-20 * size, 1.0, 1.0])).to(dtype))


def test_rounding_of_half_precision_in_a_product_of_kernels():
    k1, k2 = (unit_kernel(12, 2, seed=s).bfloat16() for s in range(2))
    assert torch.linalg.eigvalsh(k1.float() * k2.float())[0] < -1e-3
    assert math.isfinite(matrix.joint_entropy(k1, k2))
    with pytest.raises(NotPositiveSemidefiniteError, match="k1"):
        matrix.joint_entropy(k1.float(), k2.float())


def test_a_ridge_that_lifts_the_eigenvalues_is_enough():
    for function in (matrix.matrix_entropy, matrix.matrix_log, matrix.log_det, matrix.von_neumann_entropy):
        expected = function(INDEFINITE + 0.2 * torch.eye(3).double())
        assert torch.allclose(function(INDEFINITE, ridge=0.2), expected, rtol=1e-12)
        with pytest.raises(MatrixError, match=r"-0\.05"):
            function(INDEFINITE, ridge=0.05)


@pytest.mark.parametrize("function", [matrix.matrix_log, matrix.log_det])
def test_singular_matrices_have_no_logarithm(function):
    singular = torch.diag(torch.tensor([0.0, 1.0]))
    with pytest.raises(
        NotPositiveDefiniteError, match=r"'a' \(shape \(2, 2\)\).* 0, the largest in magnitude 1.*ridge="
    ):
        function(singular)
    with pytest.raises(NotPositiveDefiniteError, match=r"\(matrix 1 of the batch\)"):
        function(torch.stack([torch.eye(2), singular]))
    assert torch.isfinite(function(singular, ridge=1e-3)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [matrix.matrix_log, matrix.log_det])
def test_rounding_lifts_no_zero_eigenvalue_above_zero(function, dtype):
    """A covariance of as many rows as columns is singular, whatever the sign that rounding gives its zero."""
    for seed in range(40):
        for d in (5, 30):
            with pytest.raises(NotPositiveDefiniteError, match=r"pass ridge="):
                function(matrix.covariance(rows(d, d, seed=seed, dtype=dtype)))
        assert torch.isfinite(function(matrix.covariance(rows(40, 5, seed=seed, dtype=dtype)))).all()
        assert torch.isfinite(function(positive([1e-4, 0.1, 1.0, 3.0], seed=seed, dtype=dtype))).all()


def test_shapes_that_do_not_fit():
    for function in (matrix.matrix_kl, matrix.matrix_cross_entropy, matrix.joint_entropy):
        with pytest.raises(MatrixShapeError, match=r"\(2, 2\) and \(3, 3\)"):
            function(torch.eye(2), torch.eye(3))
        with pytest.raises(MatrixShapeError, match=r"\(2, 3, 3\) and \(4, 3, 3\)"):
            function(torch.eye(3).repeat(2, 1, 1), torch.eye(3).repeat(4, 1, 1))
    with pytest.raises(MatrixShapeError, match=r"\(4, 3\) and \(5, 3\)"):
        matrix.cross_covariance(rows(4, 3), rows(5, 3))
    with pytest.raises(MatrixShapeError, match=r"'weights' has the leading dimensions \(2,\) and 'gram' has \(3,\)"):
        matrix.vendi_score(torch.eye(4).repeat(3, 1, 1), weights=torch.ones(2, 4))
    with pytest.raises(MatrixShapeError, match=r"'width' has the leading dimensions \(2,\) and 'x' has \(3,\)"):
        matrix.gaussian_kernel(torch.randn(3, 4, 2), width=torch.ones(2))


def test_leading_dimensions_of_which_the_first_argument_has_none():
    kernels, samples = torch.eye(4).repeat(3, 1, 1), torch.randn(3, 4, 2)
    for function, x in (
        (matrix.joint_entropy, kernels), (lambda *a: matrix.jensen_renyi_divergence(*a, alpha=1.0), kernels),
        (of_features.joint_entropy, samples), (of_features.holevo_information, samples),
        (lambda *a: matrix.linear_cka_matrix(a), samples), (lambda *a: matrix.rsa_matrix(a), samples),
        (lambda *a: of_features.gram_kl_matrix(a, ridge=0.1), samples),
    ):  # fmt: skip
        with pytest.raises(MatrixShapeError, match=r"\(2, 4, \d\) and \(3, 4, \d\)"):
            function(x[:1], x[:2], x)


def test_numbers():
    for function in (matrix.matrix_log, matrix.log_det, matrix.matrix_entropy, matrix.von_neumann_entropy):
        for ridge in (-0.1, math.nan):
            with pytest.raises(ValueError, match="ridge must be a finite number, zero or above"):
                function(GOOD, ridge=ridge)
    for function in (matrix.matrix_kl, matrix.matrix_cross_entropy):
        with pytest.raises(ValueError, match="ridge must be a finite number, zero or above"):
            function(GOOD, GOOD, ridge=-1.0)
    for alpha in (1.0, 2.0):
        with pytest.raises(ValueError, match="ridge must be a finite number, zero or above"):
            matrix.renyi_entropy(GOOD, alpha=alpha, ridge=-1.0)
    for alpha in (-0.5, math.nan):
        with pytest.raises(ValueError, match="alpha must be zero or above"):
            matrix.renyi_entropy(GOOD, alpha=alpha)
    with pytest.raises(ValueError, match="distortion must be a finite number above zero"):
        matrix.coding_rate(GOOD, distortion=0.0)
    with pytest.raises(ValueError, match=r"permutations must be an integer, 1 or above, got 2\.5"):
        matrix.difference_of_entropies(GOOD, GOOD, permutations=2.5)
    with pytest.raises(ValueError, match="scale must be a finite number above zero"):
        matrix.log1p_ratio(GOOD, 0.0)


def test_the_errors_are_told_to_a_person_and_are_value_errors():
    for error in (NotSquareError, EmptyMatrixError, NotFiniteError, NotSymmetricError, NotPositiveSemidefiniteError):
        assert issubclass(error, MatrixError)
        assert issubclass(error, MatrixSSLError)
        assert issubclass(error, ValueError)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_values_are_looked_at_only_when_asked():
    matrix.matrix_entropy(INDEFINITE.cuda())
    with pytest.raises(NotPositiveSemidefiniteError):
        matrix.matrix_entropy(INDEFINITE.cuda(), validate=True)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_looks_when_asked():
    torch._dynamo.reset()
    torch.compile(matrix.matrix_entropy, backend="eager")(GOOD, validate=True)
    with pytest.raises(NotPositiveSemidefiniteError):
        torch.compile(matrix.matrix_entropy, backend="eager")(INDEFINITE, validate=True)


FEATURES = {
    "linear_cka": lambda x: matrix.linear_cka(GOOD, x), "pwcca": lambda x: matrix.pwcca(x, GOOD),
    "rsa_matrix": lambda x: matrix.rsa_matrix([GOOD, x]), "gaussian": lambda x: matrix.gaussian_kernel(x, width=1.0),
    "lidar": matrix.lidar, "self_cluster": matrix.self_cluster, "rank_report": matrix.rank_report,
    "estimate": lambda x: matrix.estimate(matrix.rank_me, x),
    "vendi_score": of_features.vendi_score, "given": lambda x: of_features.conditional_entropy(GOOD, x),
    "stream": lambda x: Moments(3).add(x),
    "metric": lambda x: metrics.RankMe(3).update(x), "lidar metric": lambda x: metrics.LiDAR(3).update(x),
}  # fmt: skip


@pytest.mark.parametrize("name", [*SQUARE, *ANY, *FEATURES])
def test_what_is_no_dense_tensor(name):
    function = FEATURES[name] if name in FEATURES else (SQUARE | ANY)[name][0]
    for wrong, text in (
        (GOOD.numpy(), r"Argument '.*' is of type numpy\.ndarray: pass torch\.from_numpy\("),
        (None, r"Argument '.*' is of type builtins\.NoneType: pass a torch\.Tensor\.$"),
        (
            GOOD.to_sparse(),
            r"Argument '.*' \(shape \(3, 3\)\) has the layout torch\.sparse_coo: pass .*\.to_dense\(\)\.$",
        ),
    ):
        with pytest.raises(MatrixTypeError, match=text):
            function(wrong)


@pytest.mark.parametrize("value", [None, "1", [1.0]])
def test_what_is_no_number(value):
    x, k = rows(8, 3), unit_kernel(4, 3)
    for function, name in (
        (lambda: matrix.renyi_entropy(GOOD, alpha=value), "alpha"),
        (lambda: matrix.joint_entropy(k, alpha=value), "alpha"),
        (lambda: matrix.vendi_score(k, order=value), "order"),
        (lambda: of_features.vendi_score(x, order=value), "order"),
        (lambda: matrix.schatten_divergence(GOOD, GOOD, order=value), "order"),
        (lambda: matrix.low_rank_entropy(GOOD, k=1, alpha=value), "alpha"),
        (lambda: matrix.truncated_entropy(GOOD, k=value), "k"), (lambda: matrix.log_det(GOOD, ridge=value), "ridge"),
        (lambda: matrix.svcca(x, x, variance=value), "variance"), (lambda: matrix.pca_rank(x, share=value), "share"),
        (lambda: matrix.polynomial_kernel(x, degree=value), "degree"),
        (lambda: matrix.random_fourier_features(x, count=value, width=1.0), "count"),
        (lambda: matrix.lidar(x.view(4, 2, 3), ridge=value), "ridge"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got {re.escape(repr(value))}\.$"):
            function()


def test_a_zero_covariance_has_the_name_of_its_features():
    for function in (of_features.schatten_divergence, of_features.holevo_information):
        with pytest.raises(MatrixError, match=r"'covariance of (y|features 2)' \(shape \(4, 3\)\) has the trace 0"):
            function(rows(5, 3), torch.ones(4, 3))


def test_orders_have_the_name_of_their_argument():
    for function in (matrix.vendi_score, of_features.vendi_score):
        with pytest.raises(ValueError, match=r"order must be zero or above, got -1"):
            function(torch.eye(3), order=-1)


@pytest.mark.parametrize(
    "function",
    [
        matrix.covariance, matrix.second_moment, lambda x: matrix.cross_covariance(x, x), matrix.coding_rate,
        matrix.linear_kernel, lambda x: matrix.polynomial_kernel(x, degree=2),
        lambda x: matrix.gaussian_kernel(x, width=1.0), lambda x: matrix.laplace_kernel(x, width="median"),
        lambda x: matrix.kernel_width(x, "median"),
        lambda x: of_features.matrix_kl(x, x.flip(1), ridge=0.1),
        lambda x: of_features.matrix_cross_entropy(x, x.flip(1)), of_features.matrix_entropy,
    ],
)  # fmt: skip
def test_squares_beyond_the_dtype_are_no_silent_nan(function):
    x = 1e25 * rows(8, 3).float()
    with pytest.raises(NotFiniteError, match=r"values up to .*e\+25, whose .* beyond torch\.float32: divide it"):
        function(x)


@pytest.mark.parametrize(
    "function",
    [
        matrix.participation_ratio, matrix.pca_rank, matrix.alpha_req, matrix.spectrum,
        lambda x: matrix.linear_cka(x, x), lambda x: matrix.linear_cka_matrix([x]), lambda x: matrix.cca(x, x),
        lambda x: matrix.procrustes_distance(x, x), lambda x: matrix.rsa(x, x),
        lambda x: of_features.jensen_renyi_divergence(x, x, alpha=1.0),
    ],
)  # fmt: skip
def test_a_mean_beyond_the_dtype_is_an_error(function):
    x = rows(20, 30).abs() + 1
    with pytest.raises(NotFiniteError, match=r"values up to .*e\+307, whose sums are beyond torch\.float64: divide it"):
        function(x / x.max() * 8e307)


def test_singular_values_beyond_the_dtype_have_an_effective_rank():
    x = rows(20, 3)
    torch.testing.assert_close(matrix.rank_me(x / x.abs().max() * 1e308), matrix.rank_me(x))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
def test_the_schatten_divergence_does_not_depend_on_the_scale_of_features(scale):
    x, y = rows(9, 3).float(), rows(7, 3, seed=1).float()
    expected = of_features.schatten_divergence(x, y)
    torch.testing.assert_close(of_features.schatten_divergence(scale * x, y), expected, rtol=1e-4, atol=0)


def test_what_does_not_depend_on_the_scale_of_a_kernel_is_the_same_at_every_one():
    k1, k2 = (unit_kernel(6, 3, seed=s).float() for s in range(2))
    for function in (matrix.joint_entropy, matrix.mutual_information, matrix.difference_of_entropies):
        torch.manual_seed(0)
        expected = function(k1, k2)
        torch.manual_seed(0)
        torch.testing.assert_close(function(1e25 * k1, 1e25 * k2), expected, rtol=1e-4, atol=1e-5)
    state = matrix.RankStatistics(3, groups=0)
    state.add(1e150 * rows(9, 3))
    assert state.report().participation_ratio == pytest.approx(matrix.participation_ratio(rows(9, 3)).item(), rel=1e-6)
    metric = metrics.ParticipationRatio(3)
    metric.update(1e150 * rows(9, 3))
    assert metric.compute().item() == pytest.approx(matrix.participation_ratio(rows(9, 3)).item(), rel=1e-6)


LEARNT = {
    "von_neumann_entropy": ("ridge", lambda t: matrix.von_neumann_entropy(GOOD, ridge=t)),
    "log_det": ("ridge", lambda t: matrix.log_det(GOOD, ridge=t)),
    "of_features.matrix_entropy": ("ridge", lambda t: of_features.matrix_entropy(GOOD, ridge=t)),
    "of_features.log_det": ("ridge", lambda t: of_features.log_det(GOOD, ridge=t)),
    "matrix_cross_entropy": ("ridge", lambda t: matrix.matrix_cross_entropy(GOOD, GOOD, ridge=t)),
    "matrix_kl": ("ridge", lambda t: matrix.matrix_kl(GOOD, GOOD, ridge=t)),
    "matrix_log": ("ridge", lambda t: matrix.matrix_log(GOOD, ridge=t)),
    "log1p_ratio": ("scale", lambda t: matrix.log1p_ratio(GOOD, t)),
    "of_features.matrix_cross_entropy": ("ridge", lambda t: of_features.matrix_cross_entropy(GOOD, GOOD, ridge=t)),
    "of_features.matrix_kl": ("ridge", lambda t: of_features.matrix_kl(GOOD, GOOD, ridge=t)),
    "gram_kl": ("ridge", lambda t: of_features.gram_kl(GOOD, GOOD, ridge=t)),
    "gram_kl_matrix": ("ridge", lambda t: of_features.gram_kl_matrix([GOOD], ridge=t)),
    "renyi_entropy": ("alpha", lambda t: matrix.renyi_entropy(GOOD, alpha=t)),
    "tsallis_entropy": ("alpha", lambda t: of_features.tsallis_entropy(GOOD, alpha=t)),
    "vendi_score": ("order", lambda t: of_features.vendi_score(GOOD, order=t)),
    "schatten_divergence": ("order", lambda t: matrix.schatten_divergence(GOOD, GOOD, order=t)),
    "holevo_information": (
        "weights", lambda t: matrix.holevo_information(GOOD, GOOD, weights=torch.stack([t, 1 - t / 2]))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNT)
def test_a_number_that_would_get_no_gradient_or_a_wrong_one_cannot_be_learnt(name):
    argument, function = LEARNT[name]
    learnt = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=rf"^{argument} has no gradient here .* pass {argument}\.detach\(\)"):
        function(learnt)
    function(learnt.detach())
