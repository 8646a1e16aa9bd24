"""The matrix entropy loss against NumPy and other libraries, finite differences, its limits and its numerics."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.speed.spectra import SPECTRA, outputs
from matrix_ssl import matrix
from matrix_ssl.losses import (
    covariance_entropy,
    density,
    matrix_entropy_loss,
    matrix_entropy_terms,
    unit_rows,
    view_entropy,
)
from matrix_ssl.losses.logarithm import resolvents
from tests.support.quick import cross

ORDERS = (0.3, 0.5, 0.9, 0.999999, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 5.0, 12.0)
SHAPES = {"n<d": (4, 7), "n=d": (5, 5), "n>d": (7, 4)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
widths = pytest.mark.parametrize("width", [0.0, 0.5])
SETTINGS = ({}, {"width": 0.5}, {"order": 2.0}, {"order": 1.5}, {"order": 3.0, "width": 0.3, "alignment_weight": 0.7})
settings = pytest.mark.parametrize("constants", SETTINGS, ids=str)


def views(n, d, *, seed=0, dtype=torch.float64):
    r = np.random.default_rng(seed)
    base = r.standard_normal((n, d)) * np.exp(-np.arange(d) * (2.0 / d))
    return [torch.from_numpy(base + 0.4 * r.standard_normal((n, d)) + 0.3).to(dtype) for _ in range(2)]


def textbook(z1, z2, *, alignment_weight=4.0, order=1.0, width=0.0):
    """Entropy from singular values of the rows, or from a kernel in loops; the cosine row by row."""
    entropies = []
    rows = [[x / math.sqrt(x @ x) for x in z.numpy()] for z in (z1, z2)]
    for view in rows:
        n = len(view)
        if width:
            p = np.linalg.eigvalsh([[math.exp((x @ y - 1) / width) / n for y in view] for x in view])
        else:
            p = np.linalg.svd(np.array(view), compute_uv=False) ** 2 / n
        p = p[p > 1e-15]
        entropies.append(-(p * np.log(p)).sum() if order == 1 else math.log((p**order).sum()) / (1 - order))
    cosine = np.mean([x @ y for x, y in zip(*rows, strict=True)])
    return -np.mean(entropies) - alignment_weight * cosine, np.mean(entropies), cosine


def gradients(loss, inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


class TestValue:
    @shapes
    @widths
    @pytest.mark.parametrize("order", ORDERS)
    def test_is_the_formula(self, shape, width, order):
        constants = {"alignment_weight": 1.7, "order": order, "width": width}
        terms = matrix_entropy_terms(*views(*shape), **constants)
        rough = {"rel": 1e-8} if 0 < abs(order - 1) < 0.01 else {"rel": 1e-11}  # the textbook divides by 1 - order
        assert [x.item() for x in terms] == pytest.approx(list(textbook(*views(*shape), **constants)), **rough)

    # below order 2 a singular covariance has no finite gradient by its own elements
    @pytest.mark.parametrize(
        ("shape", "order"),
        [
            *itertools.product([(7, 4), (9, 5)], [0.5, 1.0, 1.5]),
            *itertools.product([(4, 7), (5, 5), (7, 4)], [2.0, 3.0]),
        ],
    )
    def test_and_gradient_are_those_of_the_entropies_of_the_package(self, shape, order):
        """Which differentiate eigenvalues, of the d x d matrix."""

        def expected(z):
            a = F.normalize(z, dim=1)
            return matrix.renyi_entropy(a.mT @ a / len(a), alpha=order)

        z = views(*shape)[0]
        torch.testing.assert_close(
            gradients(lambda x: view_entropy(x, order=order), [z]), gradients(expected, [z]), rtol=1e-9, atol=1e-11
        )

    def test_is_continuous_in_the_order(self):
        for order in (1.0, 0.75, 1.25, 2.0, 8.0):  # 0.75 and 1.25: where the form changes
            around = [matrix_entropy_loss(*views(6, 9), order=order + step).item() for step in (-1e-7, 0.0, 1e-7)]
            assert around[1] == pytest.approx(around[0], abs=1e-6) and around[1] == pytest.approx(around[2], abs=1e-6)
            assert around[0] < around[2]  # minus an entropy that does not increase with the order

    def test_defaults(self):
        batch = views(6, 9)
        assert matrix_entropy_loss(*batch).item() == pytest.approx(textbook(*batch)[0], rel=1e-12)

    def test_range_of_the_entropy(self):
        eye = torch.eye(6, dtype=torch.float64)
        one = torch.ones(6, 4, dtype=torch.float64)
        for order in ORDERS:
            assert view_entropy(eye, order=order).item() == pytest.approx(math.log(6), rel=1e-12)
            assert view_entropy(torch.cat([eye, -eye]), order=order).item() == pytest.approx(math.log(6), rel=1e-12)
            assert view_entropy(one, order=order).item() == pytest.approx(0, abs=1e-4 if order < 0.5 else 1e-7)
            assert view_entropy(one[:, :1], order=order).item() == pytest.approx(0, abs=1e-12)


class TestOtherLibraries:
    @pytest.fixture
    def lightly(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = pytest.importorskip("lightly.loss")
            for name in ("frossl_loss", "hypersphere_loss"):
                pytest.importorskip(f"lightly.loss.{name}")
            return loss

    @pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
    def test_order_two_is_the_regularisation_of_frossl(self, lightly, shape):
        """FroSSL scales columns to length one, not rows: the entropy is the same function of the covariance."""
        frossl = lightly.frossl_loss.FroSSLLoss(invariance_weight=0.0)

        def ours(*batch):
            columns = (F.normalize(z, dim=0) for z in batch)
            return -sum(covariance_entropy(c.mT @ c, order=2.0) for c in columns)

        batch = views(*shape)
        value, *by_z = gradients(ours, batch)
        expected, *other = gradients(lambda *z: frossl(list(z)), batch)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        for a, b in zip(by_z, other, strict=True):  # theirs holds the trace constant, which it is here
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("width", [0.2, 0.5, 3.0])
    def test_order_two_with_the_kernel_is_the_uniformity_of_wang_and_isola(self, lightly, width):
        """At t = 1 / width; theirs leaves the pairs of an image with itself out."""
        z = views(9, 4)[0]
        theirs = lightly.hypersphere_loss.HypersphereLoss(t=1 / width, lam=1.0)
        uniformity = theirs(z, z).item()  # the distance of z from itself is zero, and each view adds half
        n = len(z)
        expected = -math.log((n + n * (n - 1) * math.exp(uniformity)) / n**2)
        assert view_entropy(z, order=2.0, width=width).item() == pytest.approx(expected, rel=1e-12)


class TestGradient:
    @shapes
    @settings
    def test_is_that_of_finite_differences(self, shape, constants):
        batch = [x.requires_grad_() for x in views(*shape)]
        assert torch.autograd.gradcheck(lambda *z: matrix_entropy_loss(*z, **constants), batch)

    @pytest.mark.parametrize(
        ("algorithm", "constants"), cross(["eigh", "resolvents"], SETTINGS, row="eigh", column=SETTINGS[0])
    )
    def test_where_eigenvalues_repeat_or_vanish(self, monkeypatch, constants, algorithm):
        if algorithm == "resolvents":
            if constants.get("order", 1.0) != 1.0:
                pytest.skip("resolvents serve order 1")
            monkeypatch.setattr(density, "choose", lambda *_: "resolvents")
        eye = torch.eye(3, dtype=torch.float64)
        low = views(5, 2)[0] @ views(2, 3, seed=1)[0]  # rank two
        points = {
            "repeated": [torch.cat([eye, -eye])] * 2,
            "twice": [views(2, 4)[0].repeat(2, 1)] * 2,
            "rank two, n > d": [low, low.flip(0)],
            "rank two, n < d": [torch.cat([low, low], 1)] * 2,
        }
        for name, batch in points.items():
            inputs = [x.clone().requires_grad_() for x in batch]
            assert torch.autograd.gradcheck(lambda *z: matrix_entropy_loss(*z, **constants), inputs), name

    @shapes
    @settings
    def test_at_collapse_is_the_cosines_and_finite(self, shape, constants):
        z = torch.linspace(0.5, 1.0, shape[1], dtype=torch.float64).repeat(shape[0], 1)
        value, *found = gradients(lambda *x: matrix_entropy_loss(*x, **constants), [z, z])
        assert value.item() == pytest.approx(-constants.get("alignment_weight", 4.0), abs=1e-9)
        assert all(g.abs().max() < 1e-6 for g in found)

    def test_by_the_covariance_is_that_of_finite_differences(self):
        z = unit_rows(views(9, 4)[0])
        for order in (0.5, 1.0, 1.1, 2.0, 3.0):
            c = (z.mT @ z / 9).requires_grad_()
            assert torch.autograd.gradcheck(lambda x: covariance_entropy((x + x.mT) / 2, order=order), c)  # noqa: B023

    @widths
    def test_pushes_nothing_along_a_row(self, width):
        z = views(6, 4)[0]
        _, by_z = gradients(lambda x: view_entropy(x, width=width), [z])
        assert (by_z * z).sum(1).abs().max() < 1e-14 and by_z.abs().max() > 1e-3


class TestSides:
    @pytest.mark.parametrize("order", ORDERS)
    def test_are_one_function(self, order):
        """Zero columns move the computation to the samples, a batch given twice to the features."""
        z = views(6, 5)[0]
        value, by_z = gradients(lambda x: view_entropy(x, order=order), [z])
        wide, by_wide = gradients(lambda x: view_entropy(F.pad(x, (0, 9)), order=order), [z])
        twice, by_twice = gradients(lambda x: view_entropy(torch.cat([x, x]), order=order), [z])
        for other, gradient in ((wide, by_wide), (twice, by_twice)):
            torch.testing.assert_close(other, value, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradient, by_z, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 2.5])
    def test_the_covariance_gives_the_same_as_the_rows(self, order):
        z = views(12, 5)[0]

        def from_covariance(x):
            rows = unit_rows(x)
            return covariance_entropy(rows.mT @ rows / len(rows), order=order)

        found = gradients(from_covariance, [z])
        torch.testing.assert_close(
            found, gradients(lambda x: view_entropy(x, order=order), [z]), rtol=1e-11, atol=1e-13
        )

    def test_blocks_of_large_products_change_nothing(self):
        z = torch.from_numpy(np.random.default_rng(0).standard_normal((520, 9)))
        few = gradients(lambda x: view_entropy(x, order=2.0), [z])  # 9 x 9
        many = gradients(lambda x: view_entropy(F.pad(x, (0, 600)), order=2.0), [z])  # 520 x 520, in blocks
        torch.testing.assert_close(many, few, rtol=1e-10, atol=1e-13)


class TestInvariances:
    @settings
    def test_scale_order_rotation_and_exchange(self, constants):
        for shape in SHAPES.values():
            z1, z2 = batch = views(*shape)
            expected = matrix_entropy_loss(*batch, **constants).item()
            scales = torch.linspace(0.01, 50, shape[0], dtype=torch.float64)[:, None]
            rotation = torch.linalg.qr(views(shape[1], shape[1], seed=3)[0]).Q
            order = torch.arange(shape[0]).roll(1)
            same = {
                "scale": (z1 * scales, z2),
                "order": (z1[order], z2[order]),
                "rotation": (z1 @ rotation, z2 @ rotation),
                "exchange": (z2, z1),
            }
            for name, moved in same.items():
                assert matrix_entropy_loss(*moved, **constants).item() == pytest.approx(expected, rel=1e-11), name
            assert abs(matrix_entropy_loss(z1[order], z2, **constants).item() - expected) > 1e-6


class TestAlgorithms:
    def test_choice(self):
        assert [density.choose(order, "cpu") for order in (0.5, 1.0, 1.5, 2.0, 3.0, 9.0)] == [
            "eigh", "eigh", "eigh", "powers", "powers", "eigh",
        ]  # fmt: skip
        assert [density.choose(order, "cuda") for order in (1.0, 2.0, 9.0)] == ["resolvents", "powers", "powers"]

    @pytest.mark.parametrize("order", [2.0, 3.0, 8.0])
    def test_powers_are_the_eigenvalues(self, order):
        rho = unit_rows(views(9, 5)[0])
        rho = rho.mT @ rho / 9
        torch.testing.assert_close(
            density.entropy(rho, order, "powers"), density.entropy(rho, order, "eigh"), rtol=1e-11, atol=1e-13
        )

    @pytest.mark.parametrize("order", [30.0, 64.0])
    def test_high_powers_of_a_flat_spectrum_do_not_vanish(self, order):
        """In float32, where the 30th power of 1/√1024 is zero."""
        flat = torch.eye(1024) / 1024 + torch.diag(torch.linspace(0, 1e-4, 1024))
        value, slope = density.entropy(flat, order, "powers")
        exact, by_hand = density.entropy(flat.double(), order, "eigh")
        assert value.item() == pytest.approx(exact.item(), rel=1e-4)
        torch.testing.assert_close(slope.double(), by_hand, rtol=1e-3, atol=1e-3 * by_hand.abs().max().item())

    def test_the_zero_matrix_has_a_gradient(self):
        for order in (0.5, 1.0, 2.0):
            c = torch.zeros(4, 4, requires_grad=True)
            value = covariance_entropy(c, order=order)
            value.backward()
            assert value.item() == 0 and torch.isfinite(c.grad).all()

    @pytest.mark.parametrize("spectrum", SPECTRA)
    @pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
    def test_resolvents_are_the_logarithm(self, spectrum, shape):
        z = unit_rows(outputs(spectrum, *shape, seed=0, dtype=torch.float64)[1])
        small = z @ z.mT if shape[0] < shape[1] else z.mT @ z
        rows = z if shape[0] < shape[1] else z.mT
        (value, slope), (expected, other) = (density.entropy(small / len(z), 1.0, a) for a in ("resolvents", "eigh"))
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        assert ((slope - other) @ rows).norm() < 1e-8 * (other @ rows).norm()

    @pytest.mark.parametrize("floor", [1e-2, 1e-6, 5e-15])
    def test_nodes_on_numbers(self, floor):
        """As exact as asked for, with one node fewer not, and far fewer than decades of nodes."""
        y = np.geomspace(floor, 1, 3001)

        def error(count):
            weights, shifts = (np.array(v) for v in resolvents.nodes(floor, count))
            assert (weights > 0).all() and (shifts > 0).all()
            found = (weights / (1 + shifts)).sum() - (weights / (y[:, None] + shifts)).sum(1)
            return np.abs((found - np.log(y)) * np.sqrt(y)).max()

        count = resolvents.node_count(floor, 1e-6)
        assert error(count) < 1.01e-6 < error(count - 1) and count <= 8 - 3 * math.log10(floor)

    def test_too_fine_a_quadrature_is_an_error(self):
        with pytest.raises(ValueError, match=r"No quadrature of fewer than 200 nodes reaches 1e-18 above 0\.01"):
            resolvents.node_count(0.01, 1e-18)


class TestPrecision:
    @pytest.mark.parametrize("spectrum", SPECTRA)
    @pytest.mark.parametrize("shape", [(96, 48), (48, 160)])
    @pytest.mark.parametrize("algorithm", ["eigh", "resolvents"])
    def test_float32_keeps_its_digits(self, monkeypatch, algorithm, shape, spectrum):
        batch = outputs(spectrum, *shape, seed=0, dtype=torch.float32)
        exact, *expected = gradients(
            lambda *z: matrix_entropy_loss(*z, alignment_weight=0.0), [x.double() for x in batch]
        )
        monkeypatch.setattr(density, "choose", lambda *_: algorithm)
        value, *found = gradients(lambda *z: matrix_entropy_loss(*z, alignment_weight=0.0), batch)
        assert value.item() == pytest.approx(exact.item(), rel=2e-5)
        for a, b in zip(found, expected, strict=True):
            # eigenvalues of the size of the rounding, which only the steep spectra have, cost the root of it
            assert (a - b).norm() < (1e-3 if spectrum in ("1/k²", "rank one") else 3e-5) * b.norm()

    @settings
    @pytest.mark.parametrize("shape", [(256, 96), (96, 256)])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_rounded_once_after_the_scale(self, constants, shape, dtype):
        batch = [x.to(dtype) for x in views(*shape)]
        (exact, *expected), (value, *found) = (
            gradients(lambda *z: 65536 * matrix_entropy_loss(*z, **constants), [x.to(kind) for x in batch])
            for kind in (torch.float64, dtype)
        )
        assert value.dtype == torch.float32 and value.item() == pytest.approx(exact.item(), rel=2e-5)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == dtype and a.isfinite().all()
            assert (a.double() - b).norm() < torch.finfo(dtype).eps / 2 * b.norm()

    @settings
    def test_autocast_changes_nothing(self, constants):
        batch = views(24, 8, dtype=torch.float32)
        expected = gradients(lambda *z: matrix_entropy_loss(*z, **constants), batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = matrix_entropy_loss(*(x.requires_grad_() for x in batch), **constants)
        found = (value.detach(), *torch.autograd.grad(value, batch))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class TestEdges:
    @settings
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_rows_of_zeros_and_nothing_but_zeros(self, constants, dtype):
        z1, z2 = views(6, 4, dtype=dtype)
        z1[2] = 0
        for batch in ([z1, z2], [torch.zeros_like(z1)] * 2):
            results = gradients(lambda *z: matrix_entropy_loss(*z, **constants), batch)
            assert all(x.isfinite().all() for x in results)
            assert results[1][2].abs().max() == 0

    @settings
    def test_nan_in_nan_out(self, constants):
        z1, z2 = views(6, 4)
        z1[1, 1] = math.nan
        assert matrix_entropy_loss(z1, z2, **constants).isnan()

    @settings
    def test_saves_one_tensor_of_the_size_of_each_output(self, constants):
        for shape in ((40, 9), (9, 40)):
            batch = [x.requires_grad_() for x in views(*shape)]
            saved = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):  # noqa: B023
                matrix_entropy_loss(*batch, **constants)
            assert sorted(saved)[-2:] == [batch[0].numel()] * 2 and sum(saved) <= 2 * batch[0].numel() + 10

    @settings
    def test_only_what_asks_for_a_gradient_gets_one(self, constants):
        z1, z2 = views(9, 5)
        expected = gradients(lambda *z: matrix_entropy_loss(*z, **constants), [z1, z2])
        (first,) = gradients(lambda z: matrix_entropy_loss(z, z2, **constants), [z1])[1:]
        torch.testing.assert_close(first, expected[1])
        with torch.no_grad():
            assert not matrix_entropy_loss(z1.requires_grad_(), z2, **constants).requires_grad

    def test_second_derivatives_are_an_error(self):
        batch = [x.requires_grad_() for x in views(9, 4)]
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(matrix_entropy_loss(*batch), batch[0], create_graph=True)

    @settings
    @pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
    def test_compiled_without_a_graph_break(self, constants, backend):
        def loss(*z):
            return matrix_entropy_loss(*z, **constants)

        torch.compiler.reset()
        compiled = torch.compile(loss, backend=backend, fullgraph=True)
        torch.testing.assert_close(
            gradients(compiled, views(6, 9)), gradients(loss, views(6, 9)), rtol=1e-12, atol=1e-14
        )

    @pytest.mark.parametrize("bad", [[(4, 3), (4, 2)], [(1, 3)] * 2, [(4, 0)] * 2, [(4,)] * 2, [(2, 4, 3)] * 2])
    def test_shapes(self, bad):
        with pytest.raises(ValueError, match=r"Expected z1, z2 of one shape \(n, d\) with n ≥ 2, got \["):
            matrix_entropy_loss(*(torch.ones(shape) for shape in bad))
        with pytest.raises(ValueError, match=r"Expected a covariance of shape \(d, d\), got \(4, 3\)"):
            covariance_entropy(torch.ones(4, 3))

    @pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, "1"])
    def test_constants(self, value):
        for name in ("alignment_weight", "width"):
            with pytest.raises(ValueError, match=f"{name} must be a finite number, zero or above, got"):
                matrix_entropy_loss(*views(4, 3), **{name: value})
        for order in (value, 0.0):
            with pytest.raises(ValueError, match="order must be a finite number above zero, got"):
                matrix_entropy_loss(*views(4, 3), order=order)
