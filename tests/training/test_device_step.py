"""A step waits for no value and mixes no devices: it runs on a device without values, and asks little of it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from matrix_ssl.config import asymmetric_views, override
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data.base import MemorySource, Places
from matrix_ssl.losses import Objective
from matrix_ssl.losses.order import _features, _samples
from matrix_ssl.methods import list_methods
from matrix_ssl.networks.teacher import make_teacher, update_teacher
from matrix_ssl.runs.display import Display
from matrix_ssl.training import setup
from matrix_ssl.training.engine import Engine
from matrix_ssl.training.task import Output
from tests.data.test_augment import photographs
from tests.support.conformance import SMALL
from tests.support.counted import Operators, counted
from tests.support.quick import some

META = torch.device("meta")
SMALL_METHOD = {**SMALL, "queue_size": 8}
# copies from the host in a forward, of the random numbers that a method draws there: directions, masks or an order
OWN_COPIES = {"lejepa": 1, "mae": 1, "m_mae": 1, "w_mse": 2}


class Unread(Engine[Any, Any]):
    """An engine whose steps are all good: the answer is computed on the device and stays there."""

    asked: dict[str, Operators]

    def agree(self, output: Output | None, received: Any) -> bool:
        flags, self.asked["flags"] = counted("meta", self.flags, output, 0)
        assert flags.is_meta and flags.shape == (1,)
        return True


def prepare(method: str, *settings: str, side: int = 16) -> Any:
    """A training of a method on a device without values, on images in its memory."""
    base = dataclasses.replace(find_recipe("cifar10"), views=asymmetric_views())
    base = setup.use_method(base, method, papers=False)
    options = setup.complete(base).method.options
    tokens = setup.find_method(method).needs_tokens
    if tokens:
        pytest.importorskip("timm")
    network = ["timm/test_vit", "network.patch_size=4"] if tokens else ["tiny_resnet", "network.width=8"]
    config = setup.complete(
        override(base, [
            "batch_size=8", "precision=float32", "epochs=2", f"data.image_size={side}", "optimizer.warmup_epochs=0",
            f"network.encoder={network[0]}", *network[1:],
            *(f"method.{name}={value}" for name, value in SMALL_METHOD.items() if name in options), *settings,
        ])
    )  # fmt: skip
    images = (photographs(16, side=side) * 255).to(torch.uint8)
    source = MemorySource("x", images, Places.whole(["x"], [16]), labels=None, classes=None)
    return setup.prepare(config, source=source, device=META, display=Display(quiet=True))


def count_steps(task: Any, folder: Path, steps: int = 2) -> dict[str, Operators]:
    """What the last of some steps has asked of the device, by part."""
    engine = Unread(task, folder)
    asked: dict[str, Operators] = {}
    engine.asked = asked
    task.train_mode()

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            result, asked[name] = counted("meta", real, *arguments)
            return result

        setattr(owner, name, watched)

    for owner, name in (
        (engine.kept, "keep"), (task, "compute"), (task.optimizer, "step"), (task, "after_step"),
    ):  # fmt: skip
        watch(owner, name)
    batches = task.batches(0, steps)
    for _ in range(steps):
        batch, asked["views"] = counted("meta", next, batches)
        with Operators("meta") as asked["whole"]:
            assert engine.update(batch) is not None
        task.step += 1
    asked["whole"].copies += asked["views"].copies
    return asked


@pytest.mark.parametrize("method", some(list_methods(), "mae", "matrix_ssl", "w_mse"))
def test_every_method_trains_without_a_look_at_a_value(method: str, tmp_path: Path) -> None:
    asked = count_steps(prepare(method), tmp_path)
    assert asked["compute"].copies == OWN_COPIES.get(method, 0), asked["compute"].counts
    assert asked["whole"].copies == 1 + OWN_COPIES.get(method, 0)


@pytest.mark.parametrize("name", some(["sgd", "adamw", "lars"], "lars"))
def test_a_step_of_resnet18_asks_little_of_the_device(name: str, tmp_path: Path) -> None:
    task = prepare("matrix_ssl", "network.encoder=resnet18", f"optimizer.name={name}", side=32)
    asked = count_steps(task, tmp_path)
    counts = {part: operators.total for part, operators in asked.items()}
    optimizer = {"sgd": 4, "adamw": 8, "lars": 16}[name]
    expected = {"views": 59, "keep": 2, "flags": 5, "step": optimizer, "after_step": 2 + 1}
    assert {part: counts[part] for part in expected} == expected, counts
    assert counts["keep"] + counts["flags"] <= 10 and counts["step"] + counts["after_step"] <= 20
    assert asked["whole"].copies == 1


@pytest.mark.parametrize("logarithm", ["exact", "taylor"])
@pytest.mark.parametrize("algorithm", ["auto", "polynomial", "quadrature"])
@pytest.mark.parametrize("schedule", [_samples, _features])
def test_the_loss_looks_at_no_value_on_either_side(schedule: Any, algorithm: Any, logarithm: Any) -> None:
    """As an operator it has a stand-in for tensors without values: here is what it really computes."""
    n, d = (8, 24) if schedule is _samples else (24, 8)
    p, z = torch.empty(2, n, d, device="meta").unbind()
    objective = Objective(0.1, 0.1, 1.0, logarithm, 4, algorithm)
    (values, *gradients), asked = counted("meta", schedule, p, z, objective, [True, True])
    assert all(value.is_meta for value in values) and asked.copies == 0
    assert all(gradient.shape == (n, d) for gradient in gradients)


def test_the_teacher_is_two_operators() -> None:
    student = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 4)).to("meta")
    teacher = make_teacher(student)
    _, asked = counted("meta", update_teacher, teacher, student, 0.9)
    assert dict(asked.counts) == {"_foreach_lerp_": 1, "_foreach_copy_": 1}


def test_what_is_counted() -> None:
    """The counter sees what the tests above are there to exclude."""
    x = torch.empty(4, 4, device="meta")

    def copies() -> Tensor:
        weights = torch.tensor([1.0, 2.0, 3.0, 4.0], device="meta")
        return x * weights + torch.ones(4).to("meta") + x.view(16)[:4]

    _, asked = counted("meta", copies)
    assert asked.copies == 2 and asked.counts["mul"] == 1 and asked.counts["add"] == 2 and "view" not in asked.counts
    for look in (x.sum().item, lambda: bool(x.any()), lambda: x + torch.ones(4)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            counted("meta", look)
