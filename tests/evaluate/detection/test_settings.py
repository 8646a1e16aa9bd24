"""The settings of a detection run, what is refused, and the learning rate of each iteration."""

import dataclasses

import pytest

from matrix_ssl.config import override
from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.detection.settings import DetectionSettings, check_processes, make_plan


def settings(*assignments: str) -> DetectionSettings:
    return override(DetectionSettings(), assignments)


def test_values_are_read_by_their_types() -> None:
    found = settings("train_sizes=160,192", "learning_rate=1e-3", "architecture=fpn", "anchor_sizes=8,16,32,64,128.5")
    assert found == dataclasses.replace(
        DetectionSettings(), train_sizes=(160, 192), learning_rate=0.001, architecture="fpn",
        anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.5),
    )  # fmt: skip
    check_processes(found, 4)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("leraning_rate=1", r"Unknown setting 'leraning_rate'. Did you mean 'learning_rate'?"),
        ("method.x=1", "Unknown setting 'method.x'"),
        ("batch_size", "--set 'batch_size': write key=value"),
        ("batch_size=two", "batch_size=two: expected an integer of at least 1"),
        ("flip=x", "flip=x: expected a number from 0 to 1"),
        ("anchor_sizes=1,2", "anchor_sizes=1,2: expected five increasing sides above 0"),
        ("architecture=c5", "architecture=c5: expected one of fpn, c4"),
    ],
)
def test_what_is_misspelt(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(assignment)
    assert message in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["batch_size=0"], "batch_size=0: expected an integer of at least 1"),
        (["flip=1.5"], "flip=1.5: expected a number from 0 to 1"),
        (["workers=-1"], "workers=-1: expected an integer from 0 to 64"),
        (
            ["train_sizes=640,16"],
            "train_sizes=640,16: expected values separated by commas, each an integer of at least 32",
        ),
        (["test_size=1400"], "test_longest=1333 is less than a shorter side of 1400 pixels"),
        (["train_longest=700"], "train_longest=700 is less than a shorter side of 800 pixels"),
        (["anchor_sizes=8,16,16,32,64"], "expected five increasing sides above 0"),
        (["decay_at=0.9,0.5"], "expected increasing fractions between 0 and 1"),
        (["decay_at=0.5,1"], "expected increasing fractions between 0 and 1"),
        (["iterations=9", "epochs=1"], "iterations=9 and epochs=1: set one of them"),
        (["batch_size=6"], "batch_size=6 is not divisible by 4 processes"),
    ],
)
def test_what_cannot_work(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_processes(settings(*assignments), 4)
    assert message in str(caught.value)


class TestPlan:
    @pytest.mark.parametrize(
        ("schedule", "total", "decays"), [("1x", 90000, (60000, 80000)), ("2x", 180000, (120000, 160000))]
    )
    def test_the_papers(self, schedule: str, total: int, decays: tuple[int, int]) -> None:
        plan = make_plan(settings(f"schedule={schedule}"), images=117266)
        assert (plan.total, plan.warmup, plan.decays) == (total, 1000, decays)
        rates = [plan.learning_rate(i) for i in (0, 999, 1000, decays[0] - 1, decays[0], decays[1] - 1, decays[1])]
        assert rates == pytest.approx([0.02 / 1001, 0.02 * 1000 / 1001, 0.02, 0.02, 0.002, 0.002, 0.0002])

    def test_another_batch_sees_as_many_images(self) -> None:
        for batch in (2, 4, 64):
            plan = make_plan(settings(f"batch_size={batch}"), images=1000)
            assert plan.total * batch == 90000 * 16 and plan.warmup * batch == 1000 * 16
            assert plan.peak == pytest.approx(0.02 * batch / 16)

    def test_epochs(self) -> None:
        plan = make_plan(settings("epochs=12", "batch_size=8"), images=100)
        assert (plan.total, plan.decays, plan.warmup) == (150, (100, 133), 75)  # half of the training at most
        assert make_plan(settings("epochs=0.001", "batch_size=8"), images=100).total == 1

    def test_own_iterations_and_steps(self) -> None:
        plan = make_plan(settings("iterations=100", "decay_at=0.5", "decay=0.2", "warmup=0"), images=10)
        assert [plan.learning_rate(i) for i in (0, 49, 50, 99)] == pytest.approx([0.02, 0.02, 0.004, 0.004])
