"""SwAV and DINO: their losses against lightly and loops, their queue, centre, schedules and frozen prototypes."""

import collections
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matrix_ssl.losses import unit_rows
from matrix_ssl.methods.dino import DINO, dino_loss
from matrix_ssl.methods.swav import SwAV, sinkhorn, swav_loss
from tests.methods.test_losses import TIGHT, numbers, value_and_gradients
from tests.support.conformance import MethodConformance, views

ROWS = 16


@pytest.fixture
def lightly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations that are not ours
        return pytest.importorskip("lightly.loss")


def scores(count: int, n: int = 6, k: int = 5) -> list[Tensor]:
    return [0.3 * numbers(n, k, seed=i) for i in range(count)]


def build(name: str, **options: object):
    return type("Suite", (MethodConformance,), {"name": name})().build(**options)


class TestSinkhorn:
    def test_is_lightlys(self, lightly) -> None:
        from lightly.loss.swav_loss import sinkhorn as theirs

        for iterations in (1, 3, 10):
            for shape in ((6, 5), (5, 9)):
                rows = 0.3 * numbers(*shape)
                found = sinkhorn(rows, iterations=iterations, regularisation=0.07)
                torch.testing.assert_close(found, theirs(rows, iterations, 0.07), **TIGHT)

    def test_columns_become_equal_and_large_scores_stay_finite(self) -> None:
        codes = sinkhorn(numbers(12, 4), iterations=200)
        torch.testing.assert_close(codes.sum(1), torch.ones(12, dtype=torch.float64), **TIGHT)
        torch.testing.assert_close(codes.sum(0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-3, atol=1e-3)
        for iterations in (1, 3, 300):  # their exponential overflows, and a kernel of it alone would have empty rows
            codes = sinkhorn(1e4 * numbers(6, 5).float(), iterations=iterations)
            torch.testing.assert_close(codes.sum(1), torch.ones(6))
        torch.testing.assert_close(sinkhorn(numbers(6, 5), iterations=0), (numbers(6, 5) / 0.05).softmax(1), **TIGHT)
        assert not sinkhorn(numbers(6, 5).requires_grad_()).requires_grad


class TestSwAV:
    @pytest.mark.parametrize(("large", "small"), [(2, 0), (2, 3), (3, 1)])
    def test_loss_is_lightlys(self, lightly, large: int, small: int) -> None:
        criterion = lightly.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)

        def ours(*given: Tensor) -> Tensor:
            return swav_loss(*given, codes=torch.stack([sinkhorn(x) for x in given[:large]]))

        def theirs(*given: Tensor) -> Tensor:
            return criterion(list(given[:large]), list(given[large:])).squeeze()

        given = scores(large + small)
        torch.testing.assert_close(value_and_gradients(ours, given), value_and_gradients(theirs, given), **TIGHT)

    def test_with_a_queue(self, lightly) -> None:
        """The method's loss, its queue full, is that of their class with the scores of the queue."""
        method: SwAV = build("swav", queue_size=ROWS, queue_start=0.5, frozen=0.0, prototypes=7)
        queue = unit_rows(numbers(ROWS, method.queue.shape[1]))
        method.queue.copy_(queue)
        criterion = lightly.SwaVLoss()
        for position, step, used in ((ROWS, 6, True), (ROWS - 1, 6, False), (ROWS, 4, False)):
            method.position.fill_(position)
            method.load_state_dict(method.state_dict())  # as where a run is resumed
            method.before_step(step, 10)
            given = views(0)
            z = [unit_rows(method.projector(method.encoder(view))) for view in given]
            prototypes = unit_rows(method.centroids.weight)
            extra = [queue @ prototypes.T] * 2 if used else None
            expected = criterion([x @ prototypes.T for x in z], [], extra).squeeze()
            torch.testing.assert_close(method(*given).loss, expected, **TIGHT)

    @pytest.mark.parametrize("size", [40, 10, 16])
    def test_the_queue_is_first_in_first_out(self, size: int) -> None:
        suite = type("Suite", (MethodConformance,), {"name": "swav"})()
        method = suite.build(queue_size=size)
        optimizer = suite.optimizer(method)
        expected: collections.deque[Tensor] = collections.deque(maxlen=size)
        for step, n in enumerate((ROWS, 8, 3, ROWS)):
            expected.extend(unit_rows(method.projector(method.encoder(views(step, n)[0]))).detach())
            suite.step(method, optimizer, step, n=n)
            assert int(method.position) == sum(min(n, size) for n in (ROWS, 8, 3, ROWS)[: step + 1])
            held = method.queue.roll(-int(method.position) % size, 0)[-len(expected) :]
            torch.testing.assert_close(held, torch.stack(list(expected)), **TIGHT)

    def test_prototypes_are_frozen_at_the_start_and_of_length_one(self) -> None:
        suite = type("Suite", (MethodConformance,), {"name": "swav"})()
        method = suite.build(frozen=0.25)
        for name in ("sgd", "adamw", "lars"):
            optimizer = suite.optimizer(method, name)
            before = unit_rows(method.centroids.weight.detach().clone())
            for step in range(4):
                suite.step(method, optimizer, step)
                same = torch.allclose(method.centroids.weight, before, rtol=0, atol=1e-12)
                assert same == (step < 3), (name, step)  # steps 0, 1 and 2 of 10
            lengths = method.centroids.weight.norm(dim=1)
            torch.testing.assert_close(lengths, torch.ones_like(lengths), **TIGHT)

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"Expected scores \(m, K\) and iterations ≥ 0, got \(3,\) and 3"):
            sinkhorn(torch.ones(3))
        with pytest.raises(ValueError, match="regularisation must be a finite number above zero, got 0"):
            sinkhorn(numbers(4, 3), regularisation=0.0)
        with pytest.raises(ValueError, match="temperature must be a finite number above zero, got -1"):
            swav_loss(*scores(2), temperature=-1.0)
        with pytest.raises(ValueError, match="Expected the outputs of two views or more, got 1"):
            swav_loss(*scores(1))
        one, two = scores(2)
        for codes in ([one[:-1], two], [one, two[:, :-1]], [one[0], two[0]], [one, two, one], []):
            with pytest.raises(ValueError, match="Expected codes of 1 to 2 views"):
                swav_loss(one, two, codes=codes)


class TestDINO:
    @pytest.mark.parametrize(("large", "count"), [(2, 2), (2, 5), (1, 2), (3, 3)])
    def test_loss_is_lightlys(self, lightly, large: int, count: int) -> None:
        criterion = lightly.DINOLoss(5, teacher_temp=0.06, warmup_teacher_temp_epochs=0).double()
        centre = 0.1 * numbers(5, seed=8)

        def ours(*given: Tensor) -> Tensor:
            z, p = given[:count], given[count:]
            return dino_loss(torch.stack(z), torch.stack(p), centre, teacher_temperature=0.06)

        def theirs(*given: Tensor) -> Tensor:
            criterion.center.copy_(centre[None, None])
            return criterion(list(given[count:]), list(given[:count]))

        given = scores(count + large)
        torch.testing.assert_close(
            value_and_gradients(ours, given), value_and_gradients(theirs, given), rtol=1e-6, atol=1e-8
        )  # a temperature in float32 there

    def test_centre_follows_the_teachers_outputs_after_the_step(self) -> None:
        method: DINO = build("dino", centre_momentum=0.75)
        given = (*views(0), views(1)[0][..., :4, :4])
        taught = [method.teacher["projector"](method.teacher["encoder"](view))[0] for view in given[:2]]
        method.before_step(1, 10)
        method(*given)
        assert not method.centre.any()
        method.after_step(0.2)
        torch.testing.assert_close(method.centre, 0.25 * torch.stack(taught).mean((0, 1)), **TIGHT)

    def test_temperature_rises_in_a_line(self) -> None:
        method: DINO = build("dino", first_teacher_temperature=0.02, teacher_temperature=0.06, temperature_warmup=0.4)
        found = [method.schedule(progress)["teacher_temperature"] for progress in (0.0, 0.2, 0.4, 1.0)]
        assert found == pytest.approx([0.02, 0.04, 0.06, 0.06])
        method: DINO = build("dino", temperature_warmup=0.0)
        assert method.schedule(0.0)["teacher_temperature"] == method.teacher_temperature

    def test_loss_is_that_of_its_networks(self) -> None:
        method: DINO = build("dino", temperature_warmup=0.5, teacher_temperature=0.08)
        given = views(0)
        method.before_step(3, 10)
        z, p = (
            torch.stack([head(encoder(view))[0] for view in given])
            for encoder, head in (
                (method.encoder, method.projector), (method.teacher["encoder"], method.teacher["projector"]),
            )
        )  # fmt: skip
        expected = dino_loss(z, p, method.centre, teacher_temperature=0.04 + 0.04 * 0.6)
        torch.testing.assert_close(method(*given).loss, expected, **TIGHT)
        assert z.abs().max() <= 1  # cosines

    @pytest.mark.parametrize("name", ["sgd", "adamw"])
    def test_prototypes_are_frozen_at_the_start(self, name: str) -> None:
        suite = type("Suite", (MethodConformance,), {"name": "dino"})()
        method = suite.build(frozen=0.2)
        optimizer = suite.optimizer(method, name)
        before = unit_rows(method.projector.prototypes.weight.detach().clone())
        for step in range(3):
            suite.step(method, optimizer, step)
            found = unit_rows(method.projector.prototypes.weight)
            assert torch.allclose(found, before, rtol=0, atol=1e-12) == (step < 2)

    def test_a_collapse_has_the_entropy_of_the_centre_or_none(self) -> None:
        """Outputs that are all alike: uniform without sharpening, one prototype without centring."""
        same = numbers(1, 5).expand(6, 5)
        flat = dino_loss(torch.zeros(2, 6, 5).double(), torch.stack([same, same]), same[0])
        assert flat.item() == pytest.approx(math.log(5), rel=1e-12)
        peaked = 20 * torch.eye(5, dtype=torch.float64)[0].expand(2, 6, 5)
        assert dino_loss(peaked, peaked, torch.zeros(5).double()).item() == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize(
        "shapes", [((2, 4, 3), (2, 4, 2), (3,)), ((2, 4, 3), (3, 4, 3), (3,)), ((1, 4, 3), (1, 4, 3), (3,)),
                   ((4, 3), (4, 3), (3,)), ((2, 4, 3), (2, 4, 3), (1, 3))]
    )  # fmt: skip
    def test_shapes(self, shapes) -> None:
        with pytest.raises(ValueError, match=r"Expected z \(v, n, K\), p \(g, n, K\) and centre \(K,\) with v ≥ 2"):
            dino_loss(*(torch.ones(shape) for shape in shapes))

    def test_temperatures(self) -> None:
        with pytest.raises(ValueError, match="teacher_temperature must be a finite number above zero, got 0"):
            dino_loss(numbers(2, 4, 3), numbers(2, 4, 3), numbers(3), teacher_temperature=0.0)


@pytest.mark.parametrize("loss", [lambda a, b: swav_loss(a, b), lambda a, b: dino_loss(
    torch.stack([a, b]), torch.stack([b, a]).detach(), torch.zeros(5, dtype=a.dtype))])  # fmt: skip
def test_half_precision_is_computed_in_float32(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = (x.bfloat16() for x in scores(2))
    expected = value_and_gradients(loss, [a.double(), b.double()])
    found = value_and_gradients(loss, [a, b])
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16
    np.testing.assert_allclose(found[0].double(), expected[0], rtol=1e-5)
    nan = a.clone()
    nan[0, 0] = math.nan
    assert loss(nan, b).isnan() and nn.Identity()(loss(a, a)).isfinite()
