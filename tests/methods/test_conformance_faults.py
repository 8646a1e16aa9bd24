"""Every check of the suite for methods fails on a method that is wrong in what it checks."""

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix_ssl.errors import CheckpointError
from matrix_ssl.methods import Method, StepOutput
from matrix_ssl.methods.byol import BYOL
from matrix_ssl.methods.simclr import SimCLR
from tests.support.conformance import MethodConformance

COUNT = itertools.count()


class AttachedRows(SimCLR):
    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        return super().forward(view1, view2)._replace(student=self.projector(self.encoder(view1)))


class UnnamedCounter(SimCLR):
    counters = ("events",)


class Unseeded(SimCLR):
    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        output = super().forward(view1, view2)
        return output._replace(loss=output.loss + 1e-6 * next(COUNT))


class WrongGradient(SimCLR):
    """The right value with half of its gradient missing, as a raw all-reduce gives it."""

    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        output = super().forward(view1, view2)
        return output._replace(loss=(output.loss + output.loss.detach()) / 2)


class UnusedLayer(SimCLR):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.unused = nn.Linear(2, 2)


class LearningTeacher(BYOL):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.teacher.requires_grad_(True)

    def teach(self, view: Tensor) -> Tensor:
        return self.teacher["projector"](self.teacher["encoder"](view))


class ForgottenGroup(SimCLR):
    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [*self.encoder.parameters()]}]


class HiddenState(SimCLR):
    """It remembers in a plain attribute, which neither a checkpoint nor a skipped step knows of."""

    seen = 0.0

    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        output = super().forward(view1, view2)
        self.seen += 1.0
        return output._replace(loss=output.loss * self.seen)


class FixedBatch(SimCLR):
    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        output = super().forward(view1, view2)
        return output._replace(loss=output.loss + 0 * output.student[15].sum())


class ByMemory(SimCLR):
    """It reads the numbers in the order in which they lie in memory."""

    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        output = super().forward(view1, view2)
        first = self.encoder.blocks[0].residual[0].weight
        lying = first.as_strided((first.numel(),), (1,)) if first.is_contiguous() else first.flatten() + 1
        return output._replace(loss=output.loss + lying.square().sum())


class HalfPrecision(SimCLR):
    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        output = super().forward(view1, view2)
        return output._replace(loss=output.student.square().mean() + self.projector(self.encoder(view1))[0, 0])


class TeacherElsewhere(BYOL):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.mean = self.teacher
        del self.teacher
        self.teacher = {"encoder": self.mean["encoder"], "projector": self.mean["projector"]}

    def after_step(self, progress: float) -> None:
        pass


class BatchInEvaluation(SimCLR):
    """Features that depend on the rest of the batch."""

    def __init__(self, encoder: nn.Module, feature_dim: int, **options: Any):
        super().__init__(encoder, feature_dim, **options)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                module.num_batches_tracked = None


def suite(broken: type[Method], name: str = "simclr", **attributes: Any) -> MethodConformance:
    """The suite of a class in the place of a method of the package."""
    return type("Suite", (MethodConformance,), {"name": name, "kind": broken, **attributes})()


Check = Callable[..., None]
CASES: dict[str, tuple[type[Method], Check, type[Exception]]] = {
    "rows with a graph": (AttachedRows, MethodConformance.test_output, AssertionError),
    "a counter that no term counts": (UnnamedCounter, MethodConformance.test_output, AssertionError),
    "numbers from elsewhere": (Unseeded, MethodConformance.test_the_seed_decides_everything, AssertionError),
    "half of the gradient": (
        WrongGradient,
        MethodConformance.test_a_small_step_lowers_the_loss_by_what_the_gradient_predicts,
        AssertionError,
    ),
    "a layer without gradient": (
        UnusedLayer, MethodConformance.test_gradient_reaches_all_of_the_student_and_nothing_else, AssertionError,
    ),
    "a teacher with gradient": (
        LearningTeacher, MethodConformance.test_gradient_reaches_all_of_the_student_and_nothing_else, AssertionError,
    ),
    "parameters in no group": (
        ForgottenGroup, MethodConformance.test_gradient_reaches_all_of_the_student_and_nothing_else, AssertionError,
    ),
    "state beside the buffers, skipped": (
        HiddenState, MethodConformance.test_a_skipped_step_leaves_no_trace, AssertionError,
    ),
    "a fixed batch": (FixedBatch, MethodConformance.test_a_last_batch_of_half_the_size, IndexError),
    "the order in memory": (ByMemory, MethodConformance.test_precision_and_memory_format_do_not_matter, AssertionError),
    "half precision": (HalfPrecision, MethodConformance.test_autocast, AssertionError),
    "another trajectory": (AttachedRows, MethodConformance.test_stored_trajectory, AssertionError),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_noticed(case: str, tmp_path: Path) -> None:
    broken, check, error = CASES[case]
    values = {"tmp_path": tmp_path, "steps": 20}
    places = {name: values[name] for name in values.keys() & inspect.signature(check).parameters.keys()}
    options = {"options": {"temperature": 0.11}} if case == "another trajectory" else {}
    with pytest.raises(error):
        check(suite(broken, "byol" if issubclass(broken, BYOL) else "simclr", **options), **places)


def test_state_beside_the_buffers_is_noticed_at_a_resume(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        suite(HiddenState).test_a_resumed_run_goes_on_bit_for_bit(tmp_path, "sgd")


@pytest.mark.parametrize("broken", [TeacherElsewhere, BatchInEvaluation])
def test_encoders_that_do_not_export_are_noticed(tmp_path: Path, broken: type[Method]) -> None:
    with pytest.raises((AssertionError, CheckpointError)):
        suite(broken, "byol" if issubclass(broken, BYOL) else "simclr").test_exports_its_encoders(tmp_path)


@pytest.mark.slow
def test_a_method_that_does_not_collapse_is_no_variant_without_a_safeguard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = suite(SimCLR, careless={"temperature": 0.1})
    with pytest.raises(AssertionError):
        same.test_collapse_is_noticed_where_the_safeguard_is_taken_away(tmp_path, monkeypatch)


def test_a_method_without_a_safeguard_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutNegatives(SimCLR):
        def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
            output = super().forward(view1, view2)
            z1, z2 = (self.projector(self.encoder(view)) for view in (view1, view2))
            return output._replace(loss=-torch.cosine_similarity(z1, z2).mean())

    careless = suite(WithoutNegatives, careless={"temperature": 0.1})
    with pytest.raises(AssertionError, match="Collapse"):
        careless.test_collapse_is_noticed_where_the_safeguard_is_taken_away(tmp_path, monkeypatch)
