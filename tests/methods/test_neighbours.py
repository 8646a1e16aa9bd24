"""The losses of CorInfoMax, EMP-SSL, MMCR, W-MSE and Kernel-InfoNCE: against lightly, and what they promise alone."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError
from matrix_ssl.losses import unit_rows
from matrix_ssl.methods import kernel_infonce
from matrix_ssl.methods.cor_info_max import CorInfoMax, cor_info_max_loss, first_moments, next_moments
from matrix_ssl.methods.emp_ssl import emp_ssl_loss
from matrix_ssl.methods.kernel_infonce import KernelInfoNCE, kernel_infonce_loss
from matrix_ssl.methods.mmcr import mmcr_loss
from matrix_ssl.methods.simclr import simclr_loss
from matrix_ssl.methods.w_mse import WMSE, w_mse_loss
from tests.methods.test_losses import TIGHT, numbers, value_and_gradients
from tests.support import textbook_losses as textbook


def views(count: int, n: int, d: int) -> list[Tensor]:
    base = numbers(n, d)
    return [base + 0.7 * numbers(n, d, seed=i + 1) for i in range(count)]


def plainly(z1: Tensor, z2: Tensor, *, kernel: str, exponent: float, temperature: float, mixture: float) -> Tensor:
    """Kernel-InfoNCE from the differences of all pairs, for automatic differentiation."""
    n = len(z1)
    itself = torch.eye(2 * n, dtype=torch.bool)

    def loss(rows: Tensor, power: float) -> Tensor:
        squares = (rows.unsqueeze(1) - rows).square().sum(-1)
        logits = -(squares.masked_fill(itself, 1.0) ** (power / 2)) / temperature
        return F.cross_entropy(logits.masked_fill(itself, -torch.inf), torch.arange(2 * n).roll(n))

    rows = unit_rows(torch.cat([z1, z2]))
    if kernel == "exponential":
        return loss(rows, exponent)
    first, second = rows.chunk(2, dim=1) if kernel == "concatenation" else (rows, rows)
    return mixture * loss(first, exponent) + (1 - mixture) * loss(second, 2.0)


@pytest.fixture
def lightly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations that are not ours
        return pytest.importorskip("lightly.loss")


class TestLightly:
    """The same numbers as another library's classes, in float64."""

    @pytest.mark.parametrize(("n", "d"), [(4, 7), (7, 4)])
    @pytest.mark.parametrize("count", [2, 3])
    def test_emp_ssl(self, lightly, n: int, d: int, count: int) -> None:
        from lightly.loss import emp_ssl_loss as parts

        def theirs(*outputs: Tensor) -> Tensor:
            z = F.normalize(torch.stack(outputs), dim=-1)
            # its class adds the coding rate, which the authors' code subtracts
            return 200 * parts.invariance_loss(z) - parts.tcr_loss(z, eps=0.2)

        z = views(count, n, d)
        torch.testing.assert_close(value_and_gradients(emp_ssl_loss, z), value_and_gradients(theirs, z), **TIGHT)

    @pytest.mark.parametrize(("n", "d"), [(4, 7), (7, 4)])
    @pytest.mark.parametrize("weight", [0.0, 0.5])
    def test_mmcr(self, lightly, n: int, d: int, weight: float) -> None:
        criterion = lightly.MMCRLoss(lmda=weight)

        def theirs(*outputs: Tensor) -> Tensor:
            online, momentum = F.normalize(torch.stack(outputs, 1), dim=-1).chunk(2, dim=1)
            return criterion(online, momentum)

        z = views(4, n, d)
        found = value_and_gradients(mmcr_loss, z, local_weight=weight)
        torch.testing.assert_close(found, value_and_gradients(theirs, z), **TIGHT)

    @pytest.mark.parametrize("count", [2, 3])
    @pytest.mark.parametrize(("sub_batch", "shrinkage"), [(24, 0.0), (8, 0.0), (8, 0.1)])
    def test_w_mse(self, lightly, count: int, sub_batch: int, shrinkage: float) -> None:
        z = views(count, 24, 3)
        settings = {"w_size": sub_batch, "eps": shrinkage, "num_samples": count}
        criterion = lightly.WMSELoss(embedding_dim=3, track_running_stats=False, **settings).double()
        torch.manual_seed(5)
        order = torch.randperm(24).tolist()

        def theirs(*outputs: Tensor) -> Tensor:
            torch.manual_seed(5)
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)  # of its identity matrix
            try:
                return criterion(torch.cat(outputs))
            finally:
                torch.set_default_dtype(before)

        found = value_and_gradients(w_mse_loss, z, order=order, sub_batch=sub_batch, shrinkage=shrinkage)
        torch.testing.assert_close(found, value_and_gradients(theirs, z), **TIGHT)

    def test_a_gaussian_kernel_is_nt_xent_at_half_the_temperature(self, lightly) -> None:
        z = views(2, 6, 4)
        found = value_and_gradients(kernel_infonce_loss, z, kernel="exponential", exponent=2.0, temperature=0.3)
        theirs = lightly.NTXentLoss(temperature=0.15)
        torch.testing.assert_close(found, value_and_gradients(theirs, z), **TIGHT)
        torch.testing.assert_close(found, value_and_gradients(simclr_loss, z, temperature=0.15), **TIGHT)


class TestCorInfoMax:
    def test_running_moments_of_several_steps(self) -> None:
        z = views(2, 7, 3)
        moments = [first_moments(x) for x in z]
        for _ in range(2):
            moments = [next_moments(x, before, forgetting=0.3) for x, before in zip(z, moments, strict=True)]
        found = value_and_gradients(cor_info_max_loss, z, before=tuple(moments), forgetting=0.3)
        expected = value_and_gradients(textbook.cor_info_max, z, forgetting=0.3, steps=3)
        torch.testing.assert_close(found, expected, **TIGHT)

    def test_moments_change_after_the_step_only(self) -> None:
        method = CorInfoMax(nn.Flatten(), 4, hidden_dim=5, output_dim=3, forgetting=0.5).double()
        before = method.covariances.clone()
        method(*views(2, 8, 4))
        assert torch.equal(method.covariances, before) and not method.means.any()
        z = method.projector(views(2, 8, 4)[1]).detach()
        method.after_step(0.1)
        expected = next_moments(z, first_moments(z), forgetting=0.5)
        torch.testing.assert_close((method.means[1], method.covariances[1]), tuple(expected), **TIGHT)

    def test_without_a_past_it_is_the_covariance_of_the_batch(self) -> None:
        z = views(2, 9, 3)
        covariances = [torch.cov(unit_rows(x).mT, correction=0) + 1e-6 * torch.eye(3) for x in z]
        expected = -sum(torch.logdet(c) for c in covariances) / 3
        found = cor_info_max_loss(*z, forgetting=0.0, invariance_weight=0.0)
        torch.testing.assert_close(found, expected, **TIGHT)

    def test_fewer_rows_than_columns_in_single_precision(self) -> None:
        z = views(2, 4, 30)
        expected = value_and_gradients(cor_info_max_loss, z)
        found = value_and_gradients(cor_info_max_loss, [x.float() for x in z])
        torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=0)


class TestMMCR:
    def test_it_is_lowest_for_orthogonal_images_whose_views_agree(self) -> None:
        eye = torch.eye(5, dtype=torch.float64)
        assert mmcr_loss(eye, 3 * eye).item() == pytest.approx(-5, rel=1e-12)
        assert mmcr_loss(eye, eye.roll(1, 0)) > -5  # the views differ
        constant = torch.ones(5, 5, dtype=torch.float64)
        assert mmcr_loss(constant, constant).item() == pytest.approx(-math.sqrt(5), rel=1e-12)
        assert mmcr_loss(eye, eye, local_weight=1.0).item() == pytest.approx(math.sqrt(2) - 5, rel=1e-12)
        assert mmcr_loss(eye, eye.roll(1, 0), local_weight=0.0).isfinite()


class TestWMSE:
    def test_it_does_not_see_a_linear_map_that_keeps_the_flag_of_columns(self) -> None:
        """Cholesky's whitening of L z is that of z, for a lower triangular L."""
        z1, z2 = views(2, 20, 3)
        lower = torch.tensor([[2.0, 0, 0], [0.3, 0.5, 0], [-1, 2, 4]], dtype=torch.float64)
        found = w_mse_loss(z1 @ lower.T + 7, z2, shrinkage=0.0)
        torch.testing.assert_close(found, w_mse_loss(z1, z2, shrinkage=0.0), **TIGHT)

    def test_rows_that_do_not_divide_are_spread_over_the_sub_batches(self) -> None:
        z1, z2 = views(2, 19, 3)
        parts = [range(10), range(10, 19)]
        expected = sum(len(p) * w_mse_loss(z1[list(p)], z2[list(p)]) for p in parts) / 19
        torch.testing.assert_close(w_mse_loss(z1, z2, sub_batch=8), expected, **TIGHT)
        torch.testing.assert_close(w_mse_loss(z1, z2, sub_batch=20), w_mse_loss(z1, z2), **TIGHT)

    def test_a_singular_covariance_is_nan_without_shrinkage(self) -> None:
        z = views(2, 3, 5)
        assert w_mse_loss(*z, shrinkage=0.0).isnan()
        assert w_mse_loss(*z).isfinite()

    def test_the_images_of_a_sub_batch_change_with_step_and_round(self) -> None:
        method = WMSE(nn.Flatten(), 4, hidden_dim=5, output_dim=2, sub_batch=5, rounds=2).double()
        method.seed = 3
        method.before_step(7, 10)
        both = views(2, 20, 4)
        z = [method.projector(x) for x in both]
        losses = [w_mse_loss(*z, order=permutation(20, 3, 7, i), sub_batch=5).detach() for i in range(2)]
        torch.testing.assert_close(method(*both).loss.detach(), sum(losses) / 2, **TIGHT)
        assert abs(losses[0] - losses[1]) > 1e-4
        with pytest.raises(ConfigError, match=r"method\.sub_batch=1: expected 0 or at least 2\."):
            WMSE(nn.Flatten(), 4, sub_batch=1)


class TestKernelInfoNCE:
    @pytest.mark.parametrize("settings", [{}, {"exponent": 0.5, "mixture": 0.2}])
    def test_concatenation(self, settings: dict[str, float]) -> None:
        z = views(2, 5, 4)
        found = value_and_gradients(kernel_infonce_loss, z, kernel="concatenation", **settings)
        expected = value_and_gradients(textbook.kernel_infonce, z, kernel="concatenation", **settings)
        torch.testing.assert_close(found, expected, **TIGHT)

    @pytest.mark.parametrize("kernel", ["exponential", "sum", "concatenation"])
    @pytest.mark.parametrize(("n", "d"), [(2, 2), (2, 8), (9, 4), (13, 30)])
    @pytest.mark.parametrize("exponent", [0.5, 1.3, 2.0])
    @pytest.mark.parametrize("block", [7, 90, 1 << 19])
    def test_in_blocks_of_rows_it_is_automatic_differentiation(
        self, monkeypatch: pytest.MonkeyPatch, kernel: str, n: int, d: int, exponent: float, block: int
    ) -> None:
        monkeypatch.setattr(kernel_infonce, "_BLOCK", block)
        z = views(2, n, d)
        z[0][0] = 0  # without a direction
        settings: dict[str, Any] = {"kernel": kernel, "exponent": exponent, "temperature": 0.3, "mixture": 0.2}
        found, expected = (value_and_gradients(loss, z, **settings) for loss in (kernel_infonce_loss, plainly))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)

    def test_no_tensor_is_larger_than_a_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []

        class Sizes(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                sizes.extend(x.numel() for x in (result,) if isinstance(x, Tensor))
                return result

        monkeypatch.setattr(kernel_infonce, "_BLOCK", 20_000)
        rows = unit_rows(torch.cat(views(2, 400, 8)))
        with Sizes():
            kernel_infonce._infonce(rows, [(0.5, 1.0), (0.5, 2.0)], 0.1, True)
        assert 10_000 < max(sizes) <= 20_000 < len(rows) ** 2

    def test_gradient_of_views_that_nearly_coincide_in_float32(self) -> None:
        """A difference of products would lose an eighth of the digits that float32 has here."""
        z1 = numbers(200, 64).float()
        z = [z1, z1 + 1e-4 * numbers(200, 64, seed=1).float()]
        rows = [unit_rows(x).double() for x in z]  # whose rounding is not the loss's
        found = value_and_gradients(lambda *x: kernel_infonce_loss(*x, exponent=1.0), [x.float() for x in rows])
        expected = value_and_gradients(kernel_infonce_loss, rows, exponent=1.0)
        for part, exact in zip(found[1:], expected[1:], strict=True):
            assert torch.linalg.vector_norm(part.double() - exact) < 1e-3 * torch.linalg.vector_norm(exact)

    def test_rows_that_coincide_have_a_finite_gradient(self) -> None:
        z = views(2, 5, 4)
        z[1][2] = z[0][2]
        found = value_and_gradients(kernel_infonce_loss, z, kernel="exponential", exponent=0.5)
        assert all(part.isfinite().all() for part in found)

    def test_small_distances_keep_their_digits_in_float32(self) -> None:
        """Inner products of float32 would be wrong by 0.005 here: 1 - <x, y> is smaller than their rounding."""
        z1 = numbers(64, 32).float()
        z2 = z1 + 1e-5 * numbers(64, 32).flip(0).float()
        settings: dict[str, Any] = {"kernel": "exponential", "exponent": 0.5, "temperature": 1.0}
        expected = kernel_infonce_loss(z1.double(), z2.double(), **settings)
        torch.testing.assert_close(kernel_infonce_loss(z1, z2, **settings).double(), expected, rtol=0, atol=1e-5)

    def test_odd_widths(self) -> None:
        with pytest.raises(ValueError, match="Concatenation halves the outputs: expected an even width, got 3"):
            kernel_infonce_loss(*views(2, 5, 3), kernel="concatenation")
        with pytest.raises(ConfigError, match=r"method\.output_dim=3: the kernel 'concatenation' needs an even number"):
            KernelInfoNCE(nn.Flatten(), 4, output_dim=3, kernel="concatenation")


class TestErrors:
    @pytest.mark.parametrize("loss", [emp_ssl_loss, mmcr_loss, w_mse_loss])
    def test_one_view(self, loss) -> None:
        with pytest.raises(ValueError, match="Expected the outputs of two views or more, got 1"):
            loss(numbers(5, 3))

    @pytest.mark.parametrize(
        ("loss", "settings", "sentence"),
        [
            (cor_info_max_loss, {"forgetting": 1.5}, r"forgetting must be in \[0, 1\], got 1\.5"),
            (cor_info_max_loss, {"ridge": 0.0}, "ridge must be a finite number above zero, got"),
            (
                cor_info_max_loss,
                {"invariance_weight": -1.0},
                "invariance_weight must be a finite number, zero or",
            ),
            (emp_ssl_loss, {"distortion": 0.0}, "distortion must be a finite number above zero, got"),
            (emp_ssl_loss, {"invariance_weight": math.nan}, "invariance_weight must be a finite number, zero or"),
            (mmcr_loss, {"local_weight": -1.0}, "local_weight must be a finite number, zero or above, got"),
            (w_mse_loss, {"sub_batch": 1}, r"Expected sub_batch 0 or at least 2 and shrinkage in \[0, 1\], got 1"),
            (w_mse_loss, {"shrinkage": -0.1}, "Expected sub_batch 0 or at least 2 and shrinkage"),
            (kernel_infonce_loss, {"temperature": 0.0}, "temperature must be a finite number above zero, got"),
            (kernel_infonce_loss, {"exponent": 3.0}, r"exponent must be in \(0, 2\] and mixture in \[0, 1\], got 3\.0"),
            (kernel_infonce_loss, {"kernel": "gaussian"}, "kernel must be one of exponential, sum, concatenation, got"),
        ],
    )
    def test_numbers_out_of_range(self, loss, settings, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            loss(*views(2, 5, 4), **settings)
