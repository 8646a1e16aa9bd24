"""The engine with each of its users: kills, signals, bad steps, resuming, checkpoints that are due."""

import dataclasses
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from matrix_ssl.config import DataConfig, ViewConfig, override
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.errors import DataError, Diverged
from matrix_ssl.evaluate.detection.annotations import read_annotations
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.evaluate.detection.images import TrainingImages
from matrix_ssl.evaluate.detection.network import build_detector
from matrix_ssl.evaluate.detection.settings import DetectionSettings, make_plan
from matrix_ssl.evaluate.detection.training import DetectorTraining
from matrix_ssl.evaluate.trained.classifier import Classifier
from matrix_ssl.evaluate.trained.fine_tune import FineTune
from matrix_ssl.evaluate.trained.supervised import ClassifierTraining
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training import setup
from matrix_ssl.training.engine import Ahead, Engine, KeptBuffers
from tests.support.drawn_coco import TINY as TINY_DETECTION
from tests.support.drawn_coco import draw_set, thin_backbone, write_json
from tests.support.runs import TINY, run, timeless

STEPS = 6
QUIET = Display(quiet=True)
CPU = torch.device("cpu")


def pretraining(_: Path) -> Any:
    tiny = (*TINY, f"data.subset={64 * STEPS}", "epochs=1", "log_every=1", "checkpoint_every=2")
    config = setup.complete(override(find_recipe("demo"), tiny))
    source = open_source("digits", split="train", data_root=None)
    return setup.prepare(config, source=source, device=CPU, display=QUIET)


def classifier(_: Path) -> Any:
    """A linear layer behind dropout and BatchNorm; an epoch is two steps."""
    torch.manual_seed(0)
    learner = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10))
    groups = [{"params": list(learner.parameters()), "rate": 0.1}]
    source = open_source("digits", split="train", data_root=None).subset(np.arange(32))
    settings = FineTune(epochs=STEPS // 2, batch_size=16, view=ViewConfig(crop_scale=(0.5, 1.0)))
    return ClassifierTraining(
        Classifier(nn.Identity(), learner, groups), source,
        DataConfig(image_size=8, mean=(0.3,), std=(0.4,), workers=0),
        settings=settings, device=CPU, display=QUIET, seed=0,
    )  # fmt: skip


def detector(folder: Path) -> Any:
    write_json(folder / "a.json", draw_set(folder / "images", images=4))
    annotations, files = read_annotations(folder / "a.json"), ImageFiles(folder / "images")
    settings = override(DetectionSettings(), [*TINY_DETECTION, f"epochs={STEPS / 2}", "workers=0"])
    network = build_detector(thin_backbone(), settings, classes=len(annotations.categories))
    images = TrainingImages(annotations, files, settings, rank=0, processes=1)
    return DetectorTraining(network, images, settings, make_plan(settings, images=len(images)), display=QUIET)


@pytest.fixture(params=[pretraining, pytest.param(classifier, marks=pytest.mark.slow), detector])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> functools.partial[Any]:
    """Makes the task of one of the users at its initialisation."""
    (tmp_path / "data").mkdir()
    return functools.partial(request.param, tmp_path / "data")


def train(task: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    Engine(task, folder).run()


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    """Lets the engine act before it does the step with this number."""
    real = Engine.update

    def update(self: Any, *rest: Any) -> Any:
        if self.task.step == step:
            action()
        return real(self, *rest)

    monkeypatch.setattr(Engine, "update", update)


def spoil(task: Any, steps: tuple[int, ...]) -> None:
    """Makes the loss of some steps NaN."""
    real = task.compute

    def compute(forward: Any, batch: Any) -> Any:
        output = real(forward, batch)
        return output._replace(loss=output.loss * torch.nan) if task.step in steps else output

    task.compute = compute


def assert_same(folder: Path, expected: Path) -> None:
    (ours, _), (theirs, _) = checkpoint.load_newest(folder), checkpoint.load_newest(expected)
    assert ours is not None and theirs is not None and ours.step == theirs.step == STEPS
    assert all(torch.equal(ours.model[name], tensor) for name, tensor in theirs.model.items())
    assert timeless(folder) == timeless(expected)


HERE = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); import tests.training.test_engine as t\n"


def train_and_die(make: str, data: str, folder: str) -> None:
    """In a process of its own: trains a task and kills itself before the step 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matrix_ssl.training.engine._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        before_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        train(globals()[make](Path(data)), Path(folder))


def test_a_kill_leaves_no_trace(tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matrix_ssl.training.engine._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    arguments = (build.func.__name__, str(build.args[0]), str(tmp_path / "killed"))
    ended = run(tmp_path, [], before=f"{HERE}t.train_and_die(*{arguments})")
    assert ended.code == -signal.SIGKILL, ended.err
    kept = [path.name for path in checkpoint.list_checkpoints(tmp_path / "killed")]
    assert kept == ["step-000000002.safetensors", "step-000000004.safetensors"]
    train(build(), tmp_path / "killed")
    train(build(), tmp_path / "whole")
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_a_signal_saves_at_the_step_boundary(tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="SIGTERM after step 3") as caught:
            train(build(), tmp_path / "stopped")
    assert caught.value.exit_code == 128 + signal.SIGTERM
    newest, _ = checkpoint.load_newest(tmp_path / "stopped")
    assert newest is not None and newest.step == 3
    train(build(), tmp_path / "stopped")
    train(build(), tmp_path / "whole")
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_bad_steps_are_undone_and_too_many_in_a_row_end_the_training(tmp_path: Path, build: Any) -> None:
    task = build()
    most = task.plan.max_bad_steps
    spoil(task, (1, *range(3, 3 + most)))
    if most == 1:
        with pytest.raises(Diverged, match=r"not finite in step 2 \(bad steps in a row: 1\)"):
            train(task, tmp_path / "r")
        return
    with pytest.raises(Diverged, match=rf"not finite in step {3 + most} \(bad steps in a row: {most}\)"):
        train(task, tmp_path / "r")
    assert task.counters["bad_steps"] == 1 + most
    assert [line["step"] for line in timeless(tmp_path / "r")] == [1, 3]
    assert all(buffer.isfinite().all() for buffer in task.module.buffers())


def test_views_that_are_begun_early_change_nothing(tmp_path: Path, build: Any) -> None:
    """As on a GPU: the batch of the next step is computed before it is known whether this one was bad."""
    orders: dict[bool, list[str]] = {}
    for early in (False, True):
        task = build()
        if task.plan.max_bad_steps > 1:
            spoil(task, (1, 3))
        order = orders.setdefault(early, [])
        record(task, order)
        folder = tmp_path / f"early-{early}"
        folder.mkdir()
        engine = Engine(task, folder)
        engine.reads_ahead = early
        engine.run()
    assert_same(tmp_path / "early-True", tmp_path / "early-False")
    assert orders[False] == ["batch", "compute", "end"] * STEPS
    assert orders[True] == ["batch", *["compute", "batch", "end"] * (STEPS - 1), "compute", "end"]


def record(task: Any, order: list[str]) -> None:
    """Notes when a batch is there, when a step computes and when it ends."""
    batches, compute, tick = task.batches, task.compute, task.clock.tick

    def noted_batches(start: int, stop: int) -> Any:
        for batch in batches(start, stop):
            order.append("batch")
            yield batch

    def noted_compute(forward: Any, batch: Any) -> Any:
        order.append("compute")
        return compute(forward, batch)

    def noted_end() -> None:
        order.append("end")
        tick()

    task.batches, task.compute, task.clock.tick = noted_batches, noted_compute, noted_end


def test_an_error_of_a_batch_that_is_begun_early_comes_after_the_step() -> None:
    def read() -> Any:
        yield 1
        raise DataError("damaged")

    batches = Ahead(read())
    assert next(batches) == 1
    batches.begin()
    batches.begin()
    with pytest.raises(DataError, match="damaged"):
        next(batches)
    assert list(batches) == [] == list(Ahead(iter(())))


def test_when_a_checkpoint_is_due(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every so many steps; without a number at the end of an epoch, once a minute has passed since the last one."""
    engine = Engine(pretraining(tmp_path), tmp_path)
    now = engine.saved
    monkeypatch.setattr("matrix_ssl.training.engine.time.monotonic", lambda: now)

    def due(every: int) -> list[int]:
        plan = dataclasses.replace(engine.task.plan, checkpoint_every=every, steps_per_epoch=4)
        monkeypatch.setattr(engine.task, "plan", plan)
        steps = []
        for step in range(1, 13):
            engine.task.step = step
            if engine.is_checkpoint_due():
                steps.append(step)
        return steps

    assert due(3) == [3, 6, 9, 12] and due(0) == []
    now += 60.0
    assert due(0) == []
    now += 0.1
    assert due(0) == [4, 8, 12] and due(5) == [5, 10]
    engine.saved = now  # as ``save`` notes
    assert due(0) == []


def test_buffers_are_restored_though_the_module_replaced_or_resized_them() -> None:
    module = nn.BatchNorm1d(3)
    kept = KeptBuffers(module)
    for size in (3, 3, 5):
        module.running_mean = torch.arange(float(size))
        kept.keep()
        module.running_mean.add_(1)
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.add_(7)
        kept.restore()
        assert torch.equal(module.running_mean, torch.arange(float(size)))
        assert module.num_batches_tracked == 0
