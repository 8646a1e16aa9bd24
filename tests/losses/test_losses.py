"""The losses against the published values, dense SciPy references, finite differences and their own invariances."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from matrix_ssl.losses import (
    MECObjective,
    NegativeDeterminantWarning,
    Objective,
    matrix_ssl_covariance_terms,
    matrix_ssl_loss,
    matrix_ssl_order_terms,
    matrix_ssl_paper_loss,
    matrix_ssl_terms,
    mec_loss,
    mec_moment_loss,
    unit_rows,
)
from matrix_ssl.methods.byol import byol_loss
from tests.support.quick import some

# what the published Matrix-SSL and MEC objectives give in float64
LOGARITHMS = ("exact", "taylor")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "published_losses.json").read_text())


def branches(n, d, *, noise=0.4, seed=0, dtype=torch.float64):
    """Outputs z1, z2, p1, p2 of one batch: four noisy copies of rows with a decaying spectrum."""
    r = np.random.default_rng(seed)
    base = r.standard_normal((n, d)) * np.exp(-np.arange(d) * (3.0 / d))
    return [torch.from_numpy(base + noise * r.standard_normal((n, d)) + 0.3).to(dtype) for _ in range(4)]


def assert_rounded_once(half, exact):
    """A gradient in half precision is the one in float64 up to one rounding, and what float32 adds to it."""
    unit = torch.finfo(half.dtype).eps / 2
    error = (half.double() - exact).abs()
    largest = exact.abs().max()
    assert (error <= unit * exact.abs() + 2e-5 * largest).all()
    assert error.norm() < unit * exact.norm()


def rows_of(x):
    x = x.numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def covariance(a, b):
    """aᵀ J b / n with the dense centring matrix J."""
    n = len(a)
    return a.T @ (np.eye(n) - np.ones((n, n)) / n) @ b / n


def reference_terms(z1, z2, p1, p2, *, ridge, uniformity_weight):
    """Uniformity and alignment with SciPy's dense matrix logarithm."""
    z1, z2, p1, p2 = (rows_of(x) for x in (z1, z2, p1, p2))
    identity = ridge * np.eye(z1.shape[1])
    uniformity, alignment = [], []
    for p, z in ((p2, z1), (p1, z2)):
        uniformity.append(-uniformity_weight * np.trace(scipy.linalg.logm(covariance(p, z) + identity)).real)
        alignment.append(-np.trace((covariance(p, p) + identity) @ scipy.linalg.logm(covariance(z, z) + identity)))
    return np.mean(uniformity), np.mean(alignment)


def collapsed(n, d):
    return [torch.linspace(0.5, 1.0, d, dtype=torch.float64).repeat(n, 1) for _ in range(4)]


def identical(n, d):
    return [branches(n, d)[0].clone() for _ in range(4)]


def orthonormal(n, d):
    """Rows ±e_i: every non-zero eigenvalue of the covariances is repeated."""
    eye = torch.eye(d, dtype=torch.float64)
    rows = torch.cat([eye, -eye])[:n]
    return [rows.clone() for _ in range(4)]


def rank_one(n, d):
    return [torch.outer(torch.linspace(-1, 1, n, dtype=torch.float64) + 0.07, x[0]) for x in branches(n, d)]


POINTS = {"ordinary": branches, "identical": identical, "orthonormal": orthonormal, "rank_one": rank_one,
          "collapsed": collapsed}  # fmt: skip
SHAPES = {"n<d": (3, 4), "n=d": (4, 4), "n>d": (5, 3)}


def negatives(*batch, ridge, uniformity_weight):
    """The number of negative determinants."""
    return matrix_ssl_terms(*batch, objective=Objective(ridge, uniformity_weight)).negative_determinants.item()


def check_gradient(loss, point, shape):
    inputs = [x.requires_grad_() for x in POINTS[point](*SHAPES[shape])]
    assert torch.autograd.gradcheck(loss, inputs)


class TestPublishedValues:
    @pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['m']}x{case['d']}")
    def test_matrix_ssl(self, case):
        z1, z2, p1, p2 = branches(case["m"], case["d"], noise=case["noise"], seed=case["seed"])
        z1.requires_grad_(), z2.requires_grad_()
        settings = {"ridge": case["mu"], "uniformity_weight": case["lam"], "logarithm": "taylor",
                    "order": case["order"]}  # fmt: skip
        loss = matrix_ssl_loss(z1, z2, p1, p2, alignment_weight=case["gamma"], **settings)
        terms = matrix_ssl_terms(z1, z2, p1, p2, objective=Objective(**settings))
        loss.backward()
        assert loss.item() == pytest.approx(case["total"], rel=1e-9)
        assert terms.uniformity.item() == pytest.approx(case["uniformity"], rel=1e-9)
        assert terms.alignment.item() == pytest.approx(case["alignment"], rel=1e-9)
        assert z1.grad.norm().item() == pytest.approx(case["grad_z1_norm"], rel=1e-9)
        assert z2.grad.norm().item() == pytest.approx(case["grad_z2_norm"], rel=1e-9)
        np.testing.assert_allclose(z1.grad.flatten()[:4], case["grad_z1_first"], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['m']}x{case['d']}")
    def test_mec(self, case):
        z1, z2, p1, p2 = branches(case["m"], case["d"], noise=case["noise"], seed=case["seed"])
        z1.requires_grad_()
        distortion = case["mec_lam_inv"] * case["d"] / case["m"]
        loss = mec_loss(z1, z2, p1, p2, distortion=distortion, order=case["order"])
        loss.backward()
        assert loss.item() == pytest.approx(case["mec_loss"], rel=1e-9)
        assert z1.grad.norm().item() == pytest.approx(case["mec_grad_z1_norm"], rel=1e-9)
        np.testing.assert_allclose(z1.grad.flatten()[:4], case["mec_grad_z1_first"], rtol=1e-9, atol=1e-12)


class TestDenseReference:
    @pytest.mark.parametrize("ridge", [1e-2, 0.1, 1.0, 1e2])
    @pytest.mark.parametrize(("n", "d"), [(12, 5), (8, 8), (6, 20)])
    def test_exact_terms(self, n, d, ridge):
        batch = branches(n, d, noise=0.05)
        terms = matrix_ssl_terms(*batch, objective=Objective(ridge=ridge, uniformity_weight=0.7))
        uniformity, alignment = reference_terms(*batch, ridge=ridge, uniformity_weight=0.7)
        assert terms.uniformity.item() == pytest.approx(uniformity, rel=1e-10)
        assert terms.alignment.item() == pytest.approx(alignment, rel=1e-10)
        assert terms.negative_determinants.item() == 0
        total = matrix_ssl_loss(*batch, ridge=ridge, uniformity_weight=0.7, alignment_weight=1.5)
        assert total.item() == pytest.approx(uniformity + 1.5 * alignment, rel=1e-10)

    @pytest.mark.parametrize(("n", "d"), [(12, 5), (6, 20)])
    def test_paper_loss_is_its_formula(self, n, d):
        batch = branches(n, d)
        ridge, weight = 0.3, 0.8
        z1, z2, p1, p2 = (rows_of(x) for x in batch)
        identity = np.eye(d)
        orders = []
        for p, z in ((p2, z1), (p1, z2)):
            cross = covariance(p, z) + ridge * identity
            student, teacher = covariance(z, z) + ridge * identity, covariance(p, p) + ridge * identity
            uniformity = np.trace(-identity / d @ scipy.linalg.logm(cross) + cross).real
            orders.append(uniformity + weight * np.trace(-teacher @ scipy.linalg.logm(student) + student))
        found = matrix_ssl_paper_loss(*batch, ridge=ridge, alignment_weight=weight)
        assert found.item() == pytest.approx(np.mean(orders), rel=1e-10)

    @pytest.mark.parametrize("point", ["orthonormal", "rank_one", "collapsed"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_exact_terms_where_eigenvalues_repeat_or_vanish(self, point, shape):
        batch = POINTS[point](*SHAPES[shape])
        terms = matrix_ssl_terms(*batch, objective=Objective(ridge=0.6, uniformity_weight=0.5))
        expected = reference_terms(*batch, ridge=0.6, uniformity_weight=0.5)
        np.testing.assert_allclose([terms.uniformity.item(), terms.alignment.item()], expected, rtol=1e-10)

    def test_mec_tends_to_the_log_determinant(self):
        z1, z2, p1, p2 = branches(9, 6)
        scale = 9 * 8.0 / 6
        pairs = [(rows_of(p), rows_of(z)) for p, z in ((p1, z2), (p2, z1))]
        expected = [-scale / 9 * np.linalg.slogdet(np.eye(9) + p @ z.T / scale)[1] for p, z in pairs]
        assert mec_loss(z1, z2, p1, p2, distortion=8.0, order=60).item() == pytest.approx(np.mean(expected), rel=1e-9)

    def test_taylor_tends_to_exact(self):
        batch = branches(12, 5)
        settings = {"ridge": 0.9, "uniformity_weight": 0.9}
        exact = matrix_ssl_loss(*batch, **settings).item()
        errors = [abs(matrix_ssl_loss(*batch, logarithm="taylor", order=k, **settings).item() - exact) for k in (4, 80)]
        assert errors[0] > 1e-6
        assert errors[1] < 1e-10


class TestBothSides:
    """The n x n and the d x d form are the same function."""

    @pytest.mark.parametrize("ridge", [0.05, 1.0])
    def test_zero_columns_add_the_logarithm_of_the_ridge_only(self, ridge):
        narrow = branches(6, 4)
        wide = [torch.nn.functional.pad(x, (0, 9)) for x in narrow]
        a = matrix_ssl_terms(*narrow, objective=Objective(ridge=ridge, uniformity_weight=0.5))
        b = matrix_ssl_terms(*wide, objective=Objective(ridge=ridge, uniformity_weight=0.5))
        assert b.uniformity.item() == pytest.approx(a.uniformity.item() - 0.5 * 9 * np.log(ridge), rel=1e-12)
        assert b.alignment.item() == pytest.approx(a.alignment.item() - 9 * ridge * np.log(ridge), rel=1e-12)

    @pytest.mark.parametrize("loss", [matrix_ssl_loss, matrix_ssl_paper_loss, mec_loss])
    def test_a_batch_given_twice(self, loss):
        few = branches(5, 8)  # n < d; twice: n > d with the same covariances
        many = [torch.cat([x, x]) for x in few]
        assert loss(*many).item() == pytest.approx(loss(*few).item(), rel=1e-12)


class TestGradients:
    """Against finite differences in all four arguments, at ordinary and at hard points."""

    @pytest.mark.parametrize("point", POINTS)
    @pytest.mark.parametrize("shape", some(SHAPES, "n<d", "n>d"))
    def test_exact(self, point, shape):
        check_gradient(lambda *x: matrix_ssl_loss(*x, ridge=0.6, uniformity_weight=0.5), point, shape)

    @pytest.mark.parametrize("point", ["ordinary", "collapsed"])
    @pytest.mark.parametrize("shape", some(SHAPES, "n<d", "n>d"))
    def test_paper(self, point, shape):
        check_gradient(lambda *x: matrix_ssl_paper_loss(*x, ridge=0.6), point, shape)

    @pytest.mark.parametrize(
        ("point", "order"),
        [
            pytest.param(point, order, marks=[] if point == "ordinary" or order == 4 else pytest.mark.slow)
            for point in ("ordinary", "orthonormal", "collapsed") for order in (1, 2, 3, 4, 5)
        ],
    )  # fmt: skip
    def test_taylor(self, point, order):
        settings = {"ridge": 0.5, "uniformity_weight": 0.5, "logarithm": "taylor", "order": order}
        check_gradient(lambda *x: matrix_ssl_loss(*x, **settings), point, "n>d")

    @pytest.mark.parametrize("point", ["ordinary", "collapsed"])
    @pytest.mark.parametrize("shape", ["n<d", "n>d"])
    def test_mec(self, point, shape):
        check_gradient(lambda *x: mec_loss(*x, distortion=4.0), point, shape)

    def test_small_ridge(self):
        inputs = [x.requires_grad_() for x in branches(7, 3, noise=0.02)]
        assert torch.autograd.gradcheck(lambda *x: matrix_ssl_loss(*x, ridge=1e-2), inputs)

    @pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
    def test_float32_at_exact_collapse_is_finite(self, shape):
        inputs = [torch.ones(shape, requires_grad=True) for _ in range(4)]
        loss = matrix_ssl_loss(*inputs)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(x.grad).all() for x in inputs)


class TestInvariances:
    losses = pytest.mark.parametrize(
        "loss",
        [
            matrix_ssl_loss,
            lambda *x: matrix_ssl_loss(*x, ridge=0.5, uniformity_weight=0.5, logarithm="taylor"),
            matrix_ssl_paper_loss,
            mec_loss,
        ],
        ids=["exact", "taylor", "paper", "mec"],
    )
    shapes = pytest.mark.parametrize("shape", [(9, 4), (4, 9)])

    @losses
    @shapes
    def test_scale_of_rows(self, loss, shape):
        batch = branches(*shape)
        scales = torch.linspace(0.01, 50, shape[0], dtype=torch.float64)[:, None]
        assert loss(*(x * scales for x in batch)).item() == pytest.approx(loss(*batch).item(), rel=1e-11)

    @losses
    @shapes
    def test_common_rotation_of_features(self, loss, shape):
        batch = branches(*shape)
        rotation = torch.linalg.qr(branches(shape[1], shape[1], seed=5)[0]).Q
        assert loss(*(x @ rotation for x in batch)).item() == pytest.approx(loss(*batch).item(), rel=1e-11)

    @losses
    @shapes
    def test_common_order_of_rows(self, loss, shape):
        batch = branches(*shape)
        order = torch.tensor(np.random.default_rng(0).permutation(shape[0]))
        assert loss(*(x[order] for x in batch)).item() == pytest.approx(loss(*batch).item(), rel=1e-11)
        partner = loss(batch[0][order], *batch[1:]).item()  # but which row belongs to which matters
        assert abs(partner - loss(*batch).item()) > 1e-6

    @losses
    def test_exchange_of_views(self, loss):
        z1, z2, p1, p2 = branches(9, 4)
        assert loss(z2, z1, p2, p1).item() == pytest.approx(loss(z1, z2, p1, p2).item(), rel=1e-12)


class TestPrecision:
    losses = pytest.mark.parametrize("loss", [matrix_ssl_loss, matrix_ssl_paper_loss, mec_loss])

    @losses
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, loss, dtype):
        halves = [x.requires_grad_() for x in branches(9, 5, dtype=dtype)]
        value = loss(*halves)
        assert value.dtype == torch.float32
        assert value.item() == loss(*(x.detach().float() for x in halves)).item()
        value.backward()
        assert halves[0].grad.dtype == dtype

    @pytest.mark.parametrize(
        "loss",
        [
            matrix_ssl_loss,
            lambda *x: matrix_ssl_loss(*x, ridge=0.5, uniformity_weight=0.5, logarithm="taylor"),
            matrix_ssl_paper_loss,
            mec_loss,
            lambda *x: mec_loss(*x, logarithm="exact"),
        ],
        ids=["exact", "taylor", "paper", "mec", "mec-exact"],
    )
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(256, 96), (96, 256)])
    def test_a_loss_scale_comes_before_the_rounding(self, loss, dtype, shape):
        batch = [x.to(dtype) for x in branches(*shape)]
        (exact, expected), (found, gradients) = (
            self.scaled_gradients(loss, [x.to(other) for x in batch]) for other in (torch.float64, dtype)
        )
        assert exact.dtype == torch.float64 and found.dtype == torch.float32
        for ours, reference in zip(gradients, expected, strict=True):
            assert ours.dtype == dtype and torch.isfinite(ours).all()
            assert_rounded_once(ours, reference)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_loss_scale_comes_before_the_rounding_of_sums_over_a_batch(self, dtype):
        z1, _, p1, _ = (x.numpy() for x in branches(256, 24))
        z, p = rows_of(torch.from_numpy(z1)), rows_of(torch.from_numpy(p1))
        covariances = [torch.from_numpy(x).to(dtype) for x in (covariance(p, z), covariance(p, p), covariance(z, z))]
        covariances[1:] = [(x + x.mT) / 2 for x in covariances[1:]]
        moment = torch.from_numpy(p.T @ z).to(dtype)
        for loss, inputs in (
            (lambda *x: matrix_ssl_covariance_terms(*x, objective=Objective(ridge=1.0)).loss / 256, covariances),
            (lambda x: mec_moment_loss(x, samples=256), [moment]),
        ):
            (_, expected), (_, gradients) = (
                self.scaled_gradients(loss, [x.to(other) for x in inputs]) for other in (torch.float64, dtype)
            )
            for ours, reference in zip(gradients, expected, strict=True):
                assert ours.dtype == dtype
                assert_rounded_once(ours, reference)

    @staticmethod
    def scaled_gradients(loss, inputs, scale=65536.0):
        inputs = [x.detach().requires_grad_() for x in inputs]
        value = loss(*inputs)
        return value.detach(), torch.autograd.grad(value * scale, inputs)

    @losses
    @pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
    def test_autocast_changes_nothing(self, loss, shape):
        values = []
        for enabled in (False, True):
            batch = [x.requires_grad_() for x in branches(*shape, dtype=torch.float32)]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                value = loss(*batch)
                assert (batch[0] @ batch[0].mT).dtype == (torch.bfloat16 if enabled else torch.float32)
            value.backward()
            values.append((value.detach(), batch[0].grad))
        assert torch.equal(values[0][0], values[1][0])
        assert torch.equal(values[0][1], values[1][1])

    @pytest.mark.parametrize("shape", [(200, 48), (48, 512)])
    @pytest.mark.parametrize("ridge", [1e-2, 0.1, 1.0])
    def test_float32_keeps_its_digits(self, shape, ridge):
        found = []
        for dtype in (torch.float32, torch.float64):
            batch = [x.to(dtype).requires_grad_() for x in branches(*shape, noise=0.05, dtype=torch.float32)]
            loss = matrix_ssl_loss(*batch, ridge=ridge)
            loss.backward()
            found.append((loss.item(), batch[0].grad.double()))
        (value, gradient), (exact, exact_gradient) = found
        assert value == pytest.approx(exact, rel=1e-5)
        assert (gradient - exact_gradient).norm() < 1e-4 * exact_gradient.norm()


class TestNegativeDeterminant:
    @staticmethod
    def opposed(n):
        z = branches(n, 3)[0]
        return z, z.clone(), -z, -z  # three eigenvalues below -ridge: an odd number

    @pytest.mark.parametrize("loss", [matrix_ssl_loss, matrix_ssl_paper_loss])
    def test_warns_where_the_caller_is(self, loss):
        with pytest.warns(NegativeDeterminantWarning, match=r"C\(p, z\) \+ 0\.001·I.*larger ridge") as caught:
            value = loss(*self.opposed(8), ridge=1e-3)
        assert [Path(w.filename).name for w in caught] == [Path(__file__).name]
        assert torch.isfinite(value)

    def test_counts_orders(self):
        z1, z2, p1, p2 = self.opposed(8)
        assert negatives(z1, z2, p1, p2, ridge=1e-3, uniformity_weight=0.1) == 2
        assert negatives(z1, z2, -p1, p2, ridge=1e-3, uniformity_weight=0.1) == 1

    def test_counts_on_the_small_side(self):
        batch = [torch.nn.functional.pad(x, (0, 6)) for x in self.opposed(8)]  # d = 9 > n
        assert negatives(*batch, ridge=1e-3, uniformity_weight=0.1) == 2

    def test_a_ridge_of_one_is_always_safe(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            matrix_ssl_loss(*self.opposed(8), ridge=1.0)
        assert negatives(*self.opposed(8), ridge=1.0, uniformity_weight=1.0) == 0


class TestErrors:
    losses = pytest.mark.parametrize("loss", [matrix_ssl_loss, matrix_ssl_paper_loss, mec_loss])

    @losses
    @pytest.mark.parametrize(
        "shapes", [[(4, 3)] * 3 + [(4, 2)], [(1, 3)] * 4, [(4, 0)] * 4, [(4,)] * 4, [(2, 4, 3)] * 4]
    )
    def test_shapes(self, loss, shapes):
        with pytest.raises(ValueError, match=r"one shape \(n, d\) with n ≥ 2, got \["):
            loss(*(torch.ones(shape) for shape in shapes))

    @pytest.mark.parametrize("value", [0.0, -0.5, float("nan")])
    def test_ridge_and_distortion(self, value):
        batch = branches(4, 3)
        for call in (
            lambda: matrix_ssl_loss(*batch, ridge=value),
            lambda: matrix_ssl_paper_loss(*batch, ridge=value),
            lambda: mec_loss(*batch, distortion=value),
        ):
            with pytest.raises(ValueError, match="above zero"):
                call()

    def test_order_and_logarithm(self):
        batch = branches(4, 3)
        with pytest.raises(ValueError, match="order must be at least 1, got 0"):
            matrix_ssl_loss(*batch, logarithm="taylor", order=0)
        with pytest.raises(ValueError, match="order must be at least 1, got 0"):
            mec_loss(*batch, order=0)
        for order in (2.5, 4.0, None, "4"):
            for loss in (matrix_ssl_loss, mec_loss):
                with pytest.raises(ValueError, match=f"order must be an integer, got {order!r}"):
                    loss(*batch, logarithm="taylor", order=order)
        with pytest.raises(ValueError, match="'exact' or 'taylor', got 'tailor'"):
            matrix_ssl_loss(*batch, logarithm="tailor")


class TestFusion:
    """What is saved for the backward pass, and what a fused gradient must not do silently."""

    losses = pytest.mark.parametrize("loss", [matrix_ssl_loss, matrix_ssl_paper_loss, mec_loss])
    shapes = pytest.mark.parametrize("shape", [(40, 9), (9, 40)])

    @losses
    @shapes
    def test_saves_one_tensor_of_the_size_of_each_student_output(self, loss, shape):
        z1, z2, p1, p2 = branches(*shape)
        z1.requires_grad_(), z2.requires_grad_()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            loss(z1, z2, p1, p2)
        assert sorted(saved)[-2:] == [z1.numel()] * 2 and sum(saved) <= 2 * z1.numel() + 10

    @losses
    @shapes
    def test_only_what_asks_for_a_gradient_gets_one(self, loss, shape):
        whole = [x.requires_grad_() for x in branches(*shape)]
        expected = torch.autograd.grad(loss(*whole), whole)
        for index in range(4):
            batch = branches(*shape)
            batch[index].requires_grad_()
            (gradient,) = torch.autograd.grad(loss(*batch), batch[index])
            torch.testing.assert_close(gradient, expected[index])

    @losses
    def test_second_derivatives_are_an_error(self, loss):
        batch = [x.requires_grad_() for x in branches(9, 4)]
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(loss(*batch), batch[0], create_graph=True)

    @losses
    @shapes
    def test_without_gradient(self, loss, shape):
        batch = [x.requires_grad_() for x in branches(*shape)]
        with torch.no_grad():
            value = loss(*batch)
        assert not value.requires_grad
        assert value.item() == loss(*batch).item()

    @losses
    @shapes
    def test_a_row_of_zeros_gets_no_gradient(self, loss, shape):
        batch = branches(*shape)
        batch[0][3] = 0
        batch[0].requires_grad_()
        loss(*batch).backward()
        assert torch.isfinite(batch[0].grad).all() and batch[0].grad.abs().max() < 10
        assert (batch[0].grad[3] == 0).all() and (batch[0].grad[2] != 0).any()

    @losses
    @shapes
    def test_nan_in_nan_out(self, loss, shape):
        batch = branches(*shape)
        batch[0][0, 0] = float("nan")
        assert torch.isnan(loss(*batch))

    @losses
    @shapes
    def test_repeated_backward(self, loss, shape):
        batch = [x.requires_grad_() for x in branches(*shape)]
        value = loss(*batch)
        first = torch.autograd.grad(value, batch, retain_graph=True)
        second = torch.autograd.grad(3 * value, batch)
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(3 * a, b)

    @losses
    @shapes
    @pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
    def test_compiled_without_a_graph_break(self, loss, shape, backend):
        torch.compiler.reset()
        compiled = torch.compile(loss, backend=backend, fullgraph=True)
        results = []
        for function in (loss, compiled):
            batch = [x.requires_grad_() for x in branches(*shape)]
            value = function(*batch)
            results.append((value.detach(), *torch.autograd.grad(value, batch)))
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
@pytest.mark.parametrize("transposed", [False, True])
def test_operators_have_the_strides_that_compilers_are_told(shape, transposed):
    """Of every operator, for inputs of either layout: inductor relies on them."""
    n, d = shape
    ops, z1, z2 = torch.ops.matrix_ssl, *branches(n, d)[:2]
    z1, z2 = (z.mT.contiguous().mT if transposed else z for z in (z1, z2))
    square = [(a.mT @ a).mT if transposed else a.mT @ a for a in (z1, z2, z1 + z2)]
    weights = 0.3, 0.3, 1.0
    calls = [
        (ops.matrix_entropy, z1, z2, 4.0, 1.0, 0.0, [True, True]),
        (ops.matrix_entropy, z1, z2, 4.0, 2.0, 0.5, [True, False]),
        (ops.view_entropy, z1, 1.0, 0.0, [True]),
        (ops.covariance_entropy, square[0], 1.0, [True]),
        (ops.mec_order_loss, z1, z2, 5.0, "exact", 4, [True, True]),
        (ops.mec_moment_loss, square[0], n, 100.0, "taylor", 4, [True]),
        *(
            (ops.order_loss, z1, z2, *weights, logarithm, 4, "eigh", 0.0, n < d, [True, True])
            for logarithm in LOGARITHMS
        ),
        *((ops.covariance_loss, *square, *weights, logarithm, 4, "eigh", 0.0, [True] * 3) for logarithm in LOGARITHMS),
    ]
    for operator, *arguments in calls:
        inputs = [x.requires_grad_() if torch.is_tensor(x) and x.is_leaf else x for x in arguments]
        torch.library.opcheck(operator.default, tuple(inputs), test_utils=("test_faketensor",))


class TestCovariances:
    """The second entry points: the same losses from matrices that processes can sum."""

    @staticmethod
    def matrices(p, z):
        p, z = (torch.nn.functional.normalize(x, dim=1) for x in (p, z))
        p, z = p - p.mean(0), z - z.mean(0)
        return p.mT @ z / len(p), p.mT @ p / len(p), z.mT @ z / len(p)

    @pytest.mark.parametrize("settings", [{}, {"logarithm": "taylor", "ridge": 0.7}, {"algorithm": "quadrature"}])
    @pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
    def test_matrix_ssl(self, settings, shape):
        z, _, p, _ = branches(*shape)
        objective = Objective(alignment_weight=0.6, **settings)
        results = []
        for from_rows in (True, False):
            rows = [x.clone().requires_grad_() for x in (p, z)]
            if from_rows:
                terms = matrix_ssl_order_terms(*rows, objective=objective)
            else:
                terms = matrix_ssl_covariance_terms(*self.matrices(*rows), objective=objective)
            results.append((*(t.detach() for t in terms), *torch.autograd.grad(terms.loss, rows)))
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)

    def test_terms_are_the_mean_of_the_orders(self):
        z1, z2, p1, p2 = branches(9, 4)
        both = matrix_ssl_terms(z1, z2, p1, p2)
        first, second = matrix_ssl_order_terms(p2, z1), matrix_ssl_order_terms(p1, z2)
        for whole, one, other in zip(both[:3], first[:3], second[:3], strict=True):
            torch.testing.assert_close(whole, (one + other) / 2)
        assert both.loss.item() == matrix_ssl_loss(z1, z2, p1, p2).item()

    @pytest.mark.parametrize("logarithm", ["exact", "taylor"])
    def test_gradient_by_the_matrices(self, logarithm):
        z, _, p, _ = branches(9, 3)
        inputs = [x.detach().requires_grad_() for x in self.matrices(p, z)]
        assert torch.autograd.gradcheck(
            lambda *m: matrix_ssl_covariance_terms(*m, objective=Objective(ridge=0.4, logarithm=logarithm)).loss, inputs
        )

    @pytest.mark.parametrize("logarithm", ["exact", "taylor"])
    @pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
    def test_mec(self, logarithm, shape):
        z1, z2, p1, p2 = (x.requires_grad_() for x in branches(*shape))
        expected = mec_loss(z1, z2, p1, p2, distortion=3.0, logarithm=logarithm)
        rows = [torch.nn.functional.normalize(x, dim=1) for x in (z1, z2, p1, p2)]
        moments = (rows[2].mT @ rows[1], rows[3].mT @ rows[0])
        objective = MECObjective(distortion=3.0, logarithm=logarithm)
        both = sum(mec_moment_loss(moment, samples=shape[0], objective=objective) for moment in moments) / 2
        torch.testing.assert_close(both, expected)
        for a, b in zip(torch.autograd.grad(both, (z1, p2)), torch.autograd.grad(expected, (z1, p2)), strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
    def test_exact_mec_is_the_log_determinant(self, shape):
        n, d = shape
        z1, z2, p1, p2 = branches(n, d)
        scale = n * 8.0 / d
        pairs = [(rows_of(p), rows_of(z)) for p, z in ((p1, z2), (p2, z1))]
        expected = [-scale / n * np.linalg.slogdet(np.eye(n) + p @ z.T / scale)[1] for p, z in pairs]
        found = mec_loss(z1, z2, p1, p2, distortion=8.0, logarithm="exact")
        assert found.item() == pytest.approx(np.mean(expected), rel=1e-12)
        inputs = [x.requires_grad_() for x in branches(5, 3)]
        assert torch.autograd.gradcheck(lambda *x: mec_loss(*x, distortion=4.0, logarithm="exact"), inputs)

    def test_errors(self):
        square = torch.eye(3)
        for call, message in (
            (lambda: matrix_ssl_covariance_terms(square, square, torch.eye(2)), "one shape"),
            (lambda: matrix_ssl_covariance_terms(*[torch.ones(2, 3)] * 3), "one shape"),
            (lambda: matrix_ssl_covariance_terms(square, square, square, objective=Objective(ridge=0.0)), "above zero"),
            (lambda: mec_moment_loss(torch.ones(2, 3), samples=4), "a moment"),
            (lambda: mec_moment_loss(square, samples=0), "samples must be at least 1"),
            (lambda: mec_moment_loss(square, samples=4, objective=MECObjective(order=0)), "order must be"),
            (lambda: matrix_ssl_loss(*branches(4, 3), algorithm="eig"), "Did you mean 'eigh'"),
            (lambda: matrix_ssl_loss(*branches(4, 3), side="sample"), "Did you mean 'samples'"),
            (lambda: matrix_ssl_loss(*branches(4, 3), alignment_weight=float("nan")), "alignment_weight must be a fin"),
            (lambda: matrix_ssl_loss(*branches(4, 3), uniformity_weight=-1.0), "uniformity_weight must be a finite"),
            (lambda: matrix_ssl_loss(*branches(4, 3), ridge=1e-9, algorithm="quadrature"), "too small for quadrature"),
        ):
            with pytest.raises(ValueError, match=message):
                call()


@pytest.mark.parametrize(("scale", "dtype"), [(2e19, torch.float32), (1e160, torch.float64)])
def test_rows_whose_length_overflows_are_not_taken_for_zero(scale, dtype):
    """The guards of a training notice NaN; as zeros, such rows would hide that it has diverged."""
    z1, z2, p1, p2 = (x.to(dtype) for x in branches(7, 5))
    large = torch.cat([scale * z1[:1], z1[1:]]).requires_grad_()
    assert large.isfinite().all()
    rows = unit_rows(large)
    assert rows[0].isnan().all() and rows[1:].equal(unit_rows(z1)[1:])
    for loss in (matrix_ssl_loss, mec_loss, byol_loss):
        value = loss(large, z2, p1, p2)
        (gradient,) = torch.autograd.grad(value, large)
        assert not value.isfinite() and not gradient.isfinite().all()
