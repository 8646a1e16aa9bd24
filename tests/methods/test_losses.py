"""The pure losses of the methods against their papers' formulas in loops, against lightly, and what they promise."""

import functools
import math
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl.data.randomness import hash_integers
from matrix_ssl.losses import check_rows, mec_loss
from matrix_ssl.methods.barlow_twins import barlow_twins_loss
from matrix_ssl.methods.byol import byol_loss
from matrix_ssl.methods.cor_info_max import cor_info_max_loss
from matrix_ssl.methods.dino import dino_loss
from matrix_ssl.methods.emp_ssl import emp_ssl_loss
from matrix_ssl.methods.kernel_infonce import kernel_infonce_loss
from matrix_ssl.methods.lejepa import LeJEPA, sigreg_loss
from matrix_ssl.methods.mmcr import mmcr_loss
from matrix_ssl.methods.moco_v2 import moco_v2_loss
from matrix_ssl.methods.simclr import simclr_loss
from matrix_ssl.methods.simsiam import simsiam_loss
from matrix_ssl.methods.swav import sinkhorn, swav_loss
from matrix_ssl.methods.vicreg import vicreg_loss
from matrix_ssl.methods.w_mse import w_mse_loss
from tests.support import textbook_losses as textbook
from tests.support.quick import some_of

Loss = Callable[..., Tensor]
TIGHT = {"rtol": 1e-10, "atol": 1e-12}
SHAPES = [(4, 6), (5, 5), (6, 4)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape) + 0.2)


class Case(NamedTuple):
    """A loss, its formula in loops and its tensors."""

    loss: Loss
    textbook: Loss
    inputs: int  # tensors (n, d); MoCo's third is the queue, of n + 2 rows
    free_of_length: bool = False  # whether the length of a row does not matter
    settings: tuple[dict[str, Any], ...] = ({},)

    def tensors(self, n: int, d: int) -> list[Tensor]:
        base = numbers(n, d)
        found = [base + 0.7 * numbers(n, d, seed=i + 1) for i in range(self.inputs)]
        if self.loss is moco_v2_loss:
            found[2] = numbers(n + 2, d, seed=9)
        return found


def sigreg(z1: Tensor, z2: Tensor, **settings: float) -> Tensor:
    return sigreg_loss(torch.stack([z1, z2]), directions=numbers(z1.shape[1], 3, seed=5), **settings)


def textbook_sigreg(z1: Tensor, z2: Tensor, **settings: float) -> Tensor:
    return textbook.sigreg(torch.stack([z1, z2]), directions=numbers(z1.shape[1], 3, seed=5), **settings)


def dino(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor, *, centre: float = 0.0, **settings: float) -> Tensor:
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    shift = torch.full_like(z1[0], centre)
    shift[0] = 0
    return dino_loss(torch.stack([z1, z2]), torch.stack([p1, p2]), shift, **settings)


CASES = {
    "simsiam": Case(simsiam_loss, textbook.simsiam, 4, True),
    "byol": Case(byol_loss, textbook.byol, 4, True),
    "simclr": Case(simclr_loss, textbook.simclr, 2, True, ({}, {"temperature": 0.5})),
    "moco_v2": Case(moco_v2_loss, textbook.moco_v2, 3, True, ({}, {"temperature": 0.07})),
    "barlow_twins": Case(barlow_twins_loss, textbook.barlow_twins, 2, False, ({}, {"redundancy_weight": 1.0})),
    "vicreg": Case(
        vicreg_loss, textbook.vicreg, 2, False,
        ({}, {"invariance_weight": 0.0, "variance_weight": 1.0, "covariance_weight": 0.0},
         {"invariance_weight": 1.0, "variance_weight": 0.5, "covariance_weight": 3.0}),
    ),
    "sigreg": Case(sigreg, textbook_sigreg, 2, False, ({}, {"knots": 5, "largest_frequency": 2.0})),
    "cor_info_max": Case(
        cor_info_max_loss, textbook.cor_info_max, 2, True,
        ({}, {"forgetting": 0.3, "ridge": 0.1}, {"invariance_weight": 0.0}),
    ),
    "emp_ssl": Case(emp_ssl_loss, textbook.emp_ssl, 2, True, ({}, {"invariance_weight": 1.0, "distortion": 0.7})),
    "mmcr": Case(mmcr_loss, textbook.mmcr, 2, True, ({}, {"local_weight": 0.7})),
    "w_mse": Case(w_mse_loss, textbook.w_mse, 2, False, ({}, {"shrinkage": 0.2})),
    "swav": Case(swav_loss, textbook.swav, 2, False, ({}, {"temperature": 0.3, "regularisation": 0.5})),
    "dino": Case(
        dino, textbook.dino, 4, False, ({}, {"centre": 0.3, "student_temperature": 0.5, "teacher_temperature": 0.2}),
    ),
    "kernel_infonce": Case(
        kernel_infonce_loss, textbook.kernel_infonce, 2, True,
        ({}, {"kernel": "exponential", "exponent": 0.5, "temperature": 0.3}, {"mixture": 0.2}),
    ),
}  # fmt: skip
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
COMPILED = ("simclr", "sigreg")


def value_and_gradients(loss: Loss, tensors: list[Tensor], **settings: Any) -> tuple[Tensor, ...]:
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    value = loss(*tensors, **settings)
    return value.detach(), *torch.autograd.grad(value, tensors)


@every
@pytest.mark.parametrize(("n", "d"), [(4, 6), pytest.param(5, 5, marks=pytest.mark.slow), (6, 4)])
def test_value_and_gradient_are_those_of_the_formula(case: Case, n: int, d: int) -> None:
    for settings in case.settings:
        tensors = case.tensors(n, d)
        found = value_and_gradients(case.loss, tensors, **settings)
        expected = value_and_gradients(case.textbook, tensors, **settings)
        assert found[0].shape == () and max(g.abs().max() for g in found[1:]) > 1e-3
        torch.testing.assert_close(found, expected, **TIGHT)


@every
@pytest.mark.parametrize(("n", "d"), [(3, 5), (5, 3)])
def test_gradient_is_that_of_finite_differences(case: Case, n: int, d: int) -> None:
    tensors, loss = case.tensors(n, d), case.loss
    if loss is swav_loss:  # its codes are constants
        loss = functools.partial(loss, codes=torch.stack([sinkhorn(x) for x in tensors]))
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in tensors])


class TestLightly:
    """The same numbers as another library's classes."""

    @pytest.fixture
    def lightly(self) -> ModuleType:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations that are not ours
            return pytest.importorskip("lightly.loss")

    @pytest.mark.parametrize(("n", "d"), SHAPES)
    @pytest.mark.parametrize("name", ["barlow_twins", "vicreg", "simclr", "simsiam", "byol"])
    def test_value_and_gradient(self, lightly: ModuleType, name: str, n: int, d: int) -> None:
        cosine = lightly.NegativeCosineSimilarity()
        theirs: dict[str, Loss] = {
            "barlow_twins": lightly.BarlowTwinsLoss(lambda_param=0.0051),
            "vicreg": lightly.VICRegLoss(),
            "simclr": lightly.NTXentLoss(temperature=0.1),
            "simsiam": lambda z1, z2, p1, p2: (cosine(z1, p2) + cosine(z2, p1)) / 2,
            "byol": lambda z1, z2, p1, p2: 4 + 2 * (cosine(z1, p2) + cosine(z2, p1)),
        }
        tensors = CASES[name].tensors(n, d)
        torch.testing.assert_close(
            value_and_gradients(CASES[name].loss, tensors), value_and_gradients(theirs[name], tensors), **TIGHT
        )

    @pytest.mark.parametrize(("n", "d"), SHAPES)
    def test_moco_is_nt_xent_with_a_memory_bank(self, lightly: ModuleType, n: int, d: int) -> None:
        q, k, queue = CASES["moco_v2"].tensors(n, d)
        theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(len(queue), d))

        def with_bank(q: Tensor, k: Tensor) -> Tensor:
            theirs.memory_bank.bank = F.normalize(queue, dim=1)
            return theirs(q, k)

        found = value_and_gradients(lambda q, k: moco_v2_loss(q, k, queue), [q, k])
        torch.testing.assert_close(found, value_and_gradients(with_bank, [q, k]), **TIGHT)

    @pytest.mark.parametrize(("n", "d"), [(4, 7), (64, 16)])
    def test_lejepa(self, lightly: ModuleType, n: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from lightly.loss import lejepa_loss

        generator = torch.Generator().manual_seed(int(hash_integers(0, 3) >> 1))  # of seed 0 at step 3
        directions = torch.randn(d, 11, generator=generator).double()
        theirs = lejepa_loss.LeJEPALoss(lambda_param=0.3, sigreg_num_vectors=11).double()
        unit = directions / directions.norm(dim=0)
        monkeypatch.setattr(theirs.sigreg, "_generate_unit_vectors", lambda *_: unit)
        method = LeJEPA(nn.Identity(), d, hidden_dim=5, output_dim=d, regularisation_weight=0.3, slices=11).double()
        method.projector = nn.Identity()
        method.before_step(3, 10)
        both = CASES["sigreg"].tensors(n, d)

        def whole(*z: Tensor) -> Tensor:  # two large views and no small ones: theirs wants some, a repetition serves
            return theirs(global_proj=torch.stack(z), local_proj=torch.stack(z))

        found = value_and_gradients(lambda *z: method(*z).loss, both)
        torch.testing.assert_close(found, value_and_gradients(whole, both), rtol=1e-6, atol=1e-8)  # float32 knots there


class TestInvariances:
    @every
    def test_the_order_of_the_rows_does_not_matter(self, case: Case) -> None:
        tensors = case.tensors(6, 4)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        moved = [x[order] if len(x) == 6 else x.flip(0) for x in tensors]  # a queue may be in another order
        torch.testing.assert_close(case.loss(*moved), case.loss(*tensors), **TIGHT)

    @every
    def test_the_length_of_rows_matters_where_they_are_not_normalised(self, case: Case) -> None:
        tensors = case.tensors(6, 4)
        scaled = [x * torch.linspace(0.1, 9, len(x), dtype=x.dtype).unsqueeze(1) for x in tensors]
        change = (case.loss(*scaled) - case.loss(*tensors)).abs().item()
        assert change < 1e-12 if case.free_of_length else change > 1e-2

    @pytest.mark.parametrize("name", ["simsiam", "byol", "simclr", "moco_v2"])
    def test_a_rotation_of_all_outputs_does_not_matter(self, name: str) -> None:
        tensors = CASES[name].tensors(6, 4)
        rotation, _ = torch.linalg.qr(numbers(4, 4))
        rotated = [x @ rotation for x in tensors]
        torch.testing.assert_close(CASES[name].loss(*rotated), CASES[name].loss(*tensors), **TIGHT)

    @every
    def test_exchanging_the_views_does_not_matter_where_the_formula_is_symmetric(self, case: Case) -> None:
        tensors = case.tensors(6, 4)
        exchanged = [tensors[i] for i in {2: (1, 0), 3: (1, 0, 2), 4: (1, 0, 3, 2)}[len(tensors)]]
        same = torch.isclose(case.loss(*exchanged), case.loss(*tensors), rtol=1e-12)
        assert same == (case.loss is not moco_v2_loss)  # of MoCo only the query has to recognise the key

    def test_scale_and_origin_of_columns_do_not_matter_for_barlow_twins(self) -> None:
        z1, z2 = (100 * x for x in CASES["barlow_twins"].tensors(8, 3))  # far above the ε in the variance
        moved = z1 * torch.tensor([3.0, 20.0, 1.0]) + torch.tensor([4.0, -100.0, 7.0])
        torch.testing.assert_close(barlow_twins_loss(moved, z2), barlow_twins_loss(z1, z2), rtol=1e-6, atol=1e-9)

    def test_origin_of_a_branch_matters_for_vicreg_only_through_the_invariance(self) -> None:
        z1, z2 = CASES["vicreg"].tensors(8, 3)
        settings = {"invariance_weight": 0.0}
        torch.testing.assert_close(vicreg_loss(z1 + 5, z2, **settings), vicreg_loss(z1, z2, **settings), **TIGHT)
        assert vicreg_loss(z1 + 5, z2) > vicreg_loss(z1, z2) + 100


class TestRanges:
    def test_simsiam_and_byol(self) -> None:
        z1, z2, p1, p2 = CASES["simsiam"].tensors(6, 4)
        for loss, low, high in ((simsiam_loss, -1, 1), (byol_loss, 0, 8)):
            assert loss(z1, z2, z2, z1).item() == pytest.approx(low, abs=1e-12)
            assert loss(z1, z2, -z2, -z1).item() == pytest.approx(high, abs=1e-12)
            assert low < loss(z1, z2, p1, p2) < high
        torch.testing.assert_close(byol_loss(z1, z2, p1, p2), 4 + 4 * simsiam_loss(z1, z2, p1, p2), **TIGHT)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_simsiam_is_the_first_term_of_mec(self, shape: tuple[int, int]) -> None:
        tensors = CASES["simsiam"].tensors(*shape)
        torch.testing.assert_close(
            value_and_gradients(simsiam_loss, tensors), value_and_gradients(mec_loss, tensors, order=1), **TIGHT
        )

    @pytest.mark.parametrize("n", [3, 8])
    def test_contrastive_losses_of_a_collapse_are_the_logarithm_of_the_number_of_candidates(self, n: int) -> None:
        z = numbers(1, 5).repeat(n, 1)
        assert simclr_loss(z, 2 * z).item() == pytest.approx(math.log(2 * n - 1), rel=1e-12)
        assert moco_v2_loss(z, z, z[:2]).item() == pytest.approx(math.log(3), rel=1e-12)

    def test_contrastive_losses_fall_to_zero_and_never_below(self) -> None:
        eye = torch.eye(4, dtype=torch.float64)
        assert 0 <= simclr_loss(eye, eye, temperature=0.01) < 1e-12
        assert 0 <= moco_v2_loss(eye, eye, -eye, temperature=0.01) < 1e-12
        assert moco_v2_loss(eye, -eye, eye, temperature=0.01).item() == pytest.approx(200, rel=1e-12)
        assert simclr_loss(numbers(6, 3), numbers(6, 3, seed=1), temperature=1e-3).isfinite()

    def test_barlow_twins_is_zero_where_the_correlation_is_the_identity(self) -> None:
        basis, _ = torch.linalg.qr(numbers(8, 5) - numbers(8, 5).mean(0))
        z = 1e4 * (basis - basis.mean(0))
        assert abs(barlow_twins_loss(z, 3 * z + 1, redundancy_weight=1.0)) < 1e-10
        assert barlow_twins_loss(z, -z, redundancy_weight=1.0).item() == pytest.approx(4 * 5, rel=1e-6)
        same = z[:, :1].expand(8, 5)  # all columns alike: every correlation is one
        assert barlow_twins_loss(same, same, redundancy_weight=1.0).item() == pytest.approx(20, rel=1e-6)

    def test_vicreg_is_zero_where_columns_vary_apart_and_the_views_agree(self) -> None:
        basis, _ = torch.linalg.qr(numbers(8, 5) - numbers(8, 5).mean(0))
        z = 4 * (basis - basis.mean(0))  # a standard deviation of 4/√7
        assert abs(vicreg_loss(z, z)) < 1e-12
        constant = torch.ones_like(z)
        assert vicreg_loss(constant, constant).item() == pytest.approx(25 * (1 - 0.01), rel=1e-12)  # √ε

    @pytest.mark.parametrize("n", [16, 256, 2048])
    def test_sigreg_of_normal_rows_does_not_depend_on_their_number(self, n: int) -> None:
        rows = torch.from_numpy(np.random.default_rng(n).standard_normal((200 if n < 2000 else 40, n, 4)))
        torch.manual_seed(0)
        found = sigreg_loss(rows, slices=16).item()
        assert found == pytest.approx(math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3)), rel=0.12)  # 1.06
        assert sigreg_loss(torch.zeros_like(rows), slices=16) > 0.3 * n  # a point
        assert sigreg_loss(3 * rows, slices=16) > 0.1 * n

    def test_sigreg_is_the_integral_of_epps_and_pulley(self) -> None:
        x = numbers(9, 1) * 1.3 + 0.4
        one = torch.ones(1, 1, dtype=torch.float64)
        fine = sigreg_loss(x, directions=one, knots=201, largest_frequency=10.0).item()
        assert fine == pytest.approx(textbook.epps_pulley_closed(x[:, 0].numpy()), rel=1e-10)
        cut = sigreg_loss(x, directions=-2 * one, knots=2001).item()  # neither sign nor length of a direction matters
        assert cut == pytest.approx(textbook.epps_pulley(x[:, 0].numpy(), largest_frequency=3.0), rel=1e-6)
        assert textbook.epps_pulley(x[:, 0].numpy()) == pytest.approx(
            textbook.epps_pulley_closed(x[:, 0].numpy()), rel=1e-9
        )

    def test_sigreg_draws_its_directions_from_the_generator(self) -> None:
        z = numbers(9, 6)
        found = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append(sigreg_loss(z, slices=4).item())
        assert found[0] == found[1] != found[2]

    def test_second_derivatives_of_sigreg_are_an_error(self) -> None:
        z = numbers(9, 6).requires_grad_()
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(sigreg_loss(z), z, create_graph=True)


class TestErrors:
    @pytest.mark.parametrize("name", [name for name in CASES if name != "sigreg"])
    @pytest.mark.parametrize(
        "shapes", [((4, 3), (4, 2)), ((1, 3), (1, 3)), ((4, 0), (4, 0)), ((4,), (4,)), ((2, 4, 3), (2, 4, 3))]
    )
    def test_shapes(self, name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
        first, second = (torch.ones(shape) for shape in shapes)
        tensors = [first, second, first, first][: CASES[name].inputs]
        with pytest.raises(ValueError, match=r"one shape \(n, d\) with n ≥ 2, got \[") as caught:
            CASES[name].loss(*tensors)
        assert str(caught.value).startswith("Expected q, k of" if name == "moco_v2" else "Expected z1, z2")

    @pytest.mark.parametrize("value", [0.0, -0.5, math.nan, math.inf])
    def test_temperature(self, value: float) -> None:
        for name in ("simclr", "moco_v2"):
            with pytest.raises(ValueError, match=r"temperature must be (above zero|a finite number)"):
                CASES[name].loss(*CASES[name].tensors(4, 3), temperature=value)

    @pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
    def test_weights(self, value: float) -> None:
        for loss, weight in ((barlow_twins_loss, "redundancy_weight"), (vicreg_loss, "invariance_weight"),
                             (vicreg_loss, "variance_weight"), (vicreg_loss, "covariance_weight")):  # fmt: skip
            with pytest.raises(ValueError, match=f"{weight} must be a finite number, zero or above, got"):
                loss(numbers(4, 3), numbers(4, 3, seed=1), **{weight: value})

    @pytest.mark.parametrize("shape", [(0, 3), (5, 4), (3,), (1, 5, 3)])
    def test_queue(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"Expected a queue of shape \(m, 3\) with m ≥ 1, a row a key, got \("):
            moco_v2_loss(numbers(4, 3), numbers(4, 3, seed=1), torch.ones(shape, dtype=torch.float64))

    def test_sigreg(self) -> None:
        z = numbers(4, 3)
        for shape in ((4,), (0, 3), (4, 0), (0, 4, 3)):
            with pytest.raises(ValueError, match=r"Expected outputs of shape \(\.\.\., n, d\), got \("):
                sigreg_loss(torch.ones(shape))
        for settings in ({"slices": 0}, {"knots": 1}):
            with pytest.raises(ValueError, match="slices must be at least 1 and knots at least 2, got"):
                sigreg_loss(z, **settings)
        for value in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="largest_frequency must be a finite number above zero, got"):
                sigreg_loss(z, largest_frequency=value)
        for directions in (numbers(4, 2), numbers(3)):
            with pytest.raises(ValueError, match=r"Expected directions of shape \(3, slices\), got \("):
                sigreg_loss(z, directions=directions)


class TestNumerics:
    @every
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_computes_in_float32_whatever_the_inputs_are(self, case: Case, dtype: torch.dtype) -> None:
        tensors = [x.to(dtype).double() for x in case.tensors(16, 6)]  # numbers that the type holds
        expected = value_and_gradients(case.loss, tensors)
        found = value_and_gradients(case.loss, [x.to(dtype) for x in tensors])
        assert found[0].dtype == torch.float32 and {g.dtype for g in found[1:]} == {dtype}
        torch.testing.assert_close(found[0].double(), expected[0], rtol=2e-5, atol=1e-5)
        tolerance = 2e-5 + torch.finfo(dtype).eps
        for gradient, reference in zip(found[1:], expected[1:], strict=True):
            error = (gradient.double() - reference).abs().max() / reference.abs().max()
            assert error < tolerance

    @every
    def test_autocast_changes_nothing(self, case: Case) -> None:
        tensors = [x.float() for x in case.tensors(16, 6)]
        expected = value_and_gradients(case.loss, tensors)
        tensors = [x.requires_grad_() for x in tensors]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = case.loss(*tensors)
        found = (value.detach(), *torch.autograd.grad(value, tensors))
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == torch.float32 and torch.equal(a, b)

    @every
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_rows_of_zeros_and_constant_outputs_are_finite(self, case: Case, dtype: torch.dtype) -> None:
        one = [x.to(dtype) for x in case.tensors(6, 4)]
        for x in one:
            x[2] = 0
        constant = [torch.ones_like(x) for x in one]
        for tensors in (one, [torch.zeros_like(x) for x in one], constant):
            for result in value_and_gradients(case.loss, tensors):
                assert result.isfinite().all()
                assert result.abs().max() < 1e4

    @pytest.mark.parametrize("name", ["simsiam", "byol", "simclr", "moco_v2"])
    def test_a_row_of_zeros_gets_no_gradient(self, name: str) -> None:
        tensors = CASES[name].tensors(6, 4)
        tensors[0][2] = 0
        gradient = value_and_gradients(CASES[name].loss, tensors)[1]
        assert (gradient[2] == 0).all() and (gradient[3] != 0).all()

    @every
    def test_nan_in_nan_out(self, case: Case) -> None:
        tensors = case.tensors(6, 4)
        tensors[0][1, 1] = math.nan
        assert case.loss(*tensors).isnan()

    @pytest.mark.parametrize("case", some_of({name: (case,) for name, case in CASES.items()}, *COMPILED))
    @pytest.mark.parametrize(
        "backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"]
    )  # which goes further
    def test_compiles_without_a_graph_break(self, case: Case, backend: str) -> None:
        torch.compiler.reset()
        constant = numbers(4, 3, seed=5)
        loss = (lambda z: sigreg_loss(z, directions=constant)) if case.loss is sigreg else case.loss
        tensors = case.tensors(6, 4)[: 1 if case.loss is sigreg else None]
        compiled = torch.compile(loss, backend=backend, fullgraph=True)
        torch.testing.assert_close(
            value_and_gradients(compiled, tensors), value_and_gradients(loss, tensors), rtol=1e-12, atol=1e-14
        )

    @pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
    def test_both_sides_of_the_covariance_agree(self, name: str) -> None:
        """A column of zeros more than rows, and the loss goes by n x n instead of d x d numbers."""
        z1, z2 = CASES[name].tensors(5, 5)
        settings = {"barlow_twins": {}, "vicreg": {"variance_weight": 0.0}}[name]
        narrow = CASES[name].loss(z1, z2, **settings)
        wide = CASES[name].loss(F.pad(z1, (0, 1)), F.pad(z2, (0, 1)), **settings)
        if name == "barlow_twins":  # the constant column correlates with nothing, not even itself
            torch.testing.assert_close(wide, narrow + 1, **TIGHT)
        else:  # means over d
            torch.testing.assert_close(wide * 6, narrow * 5, **TIGHT)
