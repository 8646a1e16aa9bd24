"""Detectors learn: one image by heart, drawn or real, and BatchNorm's statistics after the training."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from matrix_ssl.config import override
from matrix_ssl.evaluate.detection.annotations import Annotations, read_annotations
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.evaluate.detection.images import TrainingImages
from matrix_ssl.evaluate.detection.network import Backbone, build_detector, open_backbone
from matrix_ssl.evaluate.detection.predict import predict
from matrix_ssl.evaluate.detection.scoring import score
from matrix_ssl.evaluate.detection.settings import DetectionSettings, make_plan
from matrix_ssl.evaluate.detection.training import LOSSES, DetectorTraining
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_lines
from matrix_ssl.training.engine import Engine
from tests.support.drawn_coco import TINY, draw_set, thin_backbone, write_json

MINI = Path(os.environ.get("MATRIX_SSL_DATA", "/nowhere")) / "coco_mini"
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="MATRIX_SSL_DATA names no folder with coco_mini")
CPU = torch.device("cpu")


def nothing(*_: object) -> None:
    """No progress."""


def make_training(
    annotations: Annotations, files: ImageFiles, backbone: Backbone, settings: DetectionSettings
) -> DetectorTraining:
    detector = build_detector(backbone, settings, classes=len(annotations.categories))
    images = TrainingImages(annotations, files, settings, rank=0, processes=1)
    plan = make_plan(settings, images=len(images))
    return DetectorTraining(detector, images, settings, plan, display=Display(quiet=True))


def learn(
    run: Path, annotations: Annotations, files: ImageFiles, backbone: Backbone, settings: DetectionSettings
) -> dict[str, Any]:
    """Trains on all images and scores on the same ones."""
    training = make_training(annotations, files, backbone, settings)
    Engine(training, run).run()
    if settings.precise_bn:
        training.refine_batch_norm(run, settings.precise_bn, nothing)
    found = predict(
        training.module, annotations, files, settings,
        categories=[category.id for category in annotations.categories], device=CPU, on_progress=nothing,
    )  # fmt: skip
    return score(annotations, found)


def drawn(tmp_path: Path, *, images: int) -> tuple[Annotations, ImageFiles]:
    write_json(tmp_path / "a.json", draw_set(tmp_path / "in", images=images))
    return read_annotations(tmp_path / "a.json"), ImageFiles(tmp_path / "in")


BY_HEART = (*TINY, "batch_size=1", "train_sizes=80", "flip=0", "learning_rate=0.64", "checkpoint_every=1000",
            "workers=0", "regions=32")  # fmt: skip


@pytest.mark.slow
def test_every_loss_of_a_drawn_image_falls(tmp_path: Path) -> None:
    settings = override(DetectionSettings(), [*BY_HEART, "epochs=90", "log_every=1"])
    Engine(make_training(*drawn(tmp_path, images=1), thin_backbone(), settings), tmp_path).run()
    for name in LOSSES:
        values = [line[name] for line in read_lines(tmp_path / "metrics.jsonl")]
        assert np.mean(values[-10:]) < 0.7 * np.mean(values[:5]), (name, values)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_drawn_image_is_learnt_by_heart(tmp_path: Path, precision: str) -> None:
    settings = override(DetectionSettings(), [*BY_HEART, "epochs=250", f"precision={precision}"])
    annotations, files = drawn(tmp_path, images=1)
    result = learn(tmp_path, annotations, files, thin_backbone(), settings)
    assert result["box"]["AP50"] >= 0.9 and result["mask"]["AP50"] >= 0.9, result


def test_in_bfloat16_weights_gradients_and_losses_are_float32(tmp_path: Path) -> None:
    steps = {}
    for precision in ("float32", "bfloat16"):
        settings = override(DetectionSettings(), [*TINY, "epochs=1", "workers=0", f"precision={precision}"])
        training = make_training(*drawn(tmp_path, images=2), thin_backbone(), settings)
        with contextlib.closing(training.batches(0, 1)) as batches:
            torch.manual_seed(0)
            training.module.train()
            steps[precision] = training.compute(training.module, next(batches))
        steps[precision].loss.backward()
        assert {p.grad.dtype for p in training.module.parameters() if p.grad is not None} == {torch.float32}
        assert {value.dtype for value in steps[precision].parts.values()} == {torch.float32}
    exact, rounded = steps["float32"].parts, steps["bfloat16"].parts
    assert any(not exact[name].equal(rounded[name]) for name in LOSSES)
    for name in LOSSES:  # the proposals, which rounding reorders, decide which regions are judged
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.3, abs=0.02), name
    assert steps["bfloat16"].loss.item() == pytest.approx(steps["float32"].loss.item(), rel=0.05)


REAL = (
    "batch_size=1", "train_sizes=160", "train_longest=240", "test_size=160", "test_longest=240", "flip=0", "warmup=1",
    "anchor_sizes=16,32,64,128,256", "anchors=64", "regions=32", "learning_rate=0.16", "detections=20",
    "precise_bn=2", "workers=0", "checkpoint_every=1000",
)  # fmt: skip


def real(name: str) -> tuple[Annotations, ImageFiles]:
    annotations = read_annotations(MINI / "instances_train.json")
    images = tuple(image for image in annotations.images if image.name == name)
    assert len(images) == 1
    return dataclasses.replace(annotations, images=images), ImageFiles(MINI / "coco_mini_train.tar")


@needs_mini
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture", "epochs"),
    [
        ("000000000034.jpg", "c4", 64),  # a zebra
        ("000000000034.jpg", "fpn", 64),
        ("000000000263.jpg", "fpn", 192),  # two elephants, one before the other
    ],
)
def test_a_real_image_is_learnt_by_heart(tmp_path: Path, name: str, architecture: str, epochs: int) -> None:
    settings = override(DetectionSettings(), [*REAL, f"architecture={architecture}", f"epochs={epochs}"])
    result = learn(tmp_path, *real(name), open_backbone("random", architecture="resnet18", seed=0), settings)
    assert result["box"]["AP50"] >= 0.9 and result["mask"]["AP50"] >= 0.9, result


@needs_mini
@pytest.mark.slow
def test_the_published_size_runs(tmp_path: Path) -> None:
    """ResNet-50, C4, images of 640 pixels and more: one iteration, and the scoring at 800 pixels."""
    settings = override(DetectionSettings(), ["batch_size=1", "epochs=1", "precise_bn=1", "workers=0", "detections=10"])
    result = learn(tmp_path, *real("000000000034.jpg"), open_backbone("random", architecture=None, seed=0), settings)
    assert result["images"] == 1 and 0 <= result["box"]["AP"] <= 1


def test_statistics_of_batch_norm_are_means_over_iterations(tmp_path: Path) -> None:
    """The statistics of the first layer's inputs, collected by a hook, beside what ``refine_batch_norm`` leaves."""
    settings = override(DetectionSettings(), [*TINY, "epochs=1", "workers=0"])
    training = make_training(*drawn(tmp_path, images=4), thin_backbone(), settings)
    first: nn.BatchNorm2d = training.module.backbone.bn1
    before = {name: p.clone() for name, p in training.module.named_parameters()}
    moments: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook: Callable[..., None] = lambda _, inputs: moments.append((inputs[0].mean((0, 2, 3)), variance(inputs[0])))  # noqa: E731
    first.register_forward_pre_hook(hook)
    first.running_mean.fill_(99)
    training.refine_batch_norm(tmp_path, 5, nothing)
    assert len(moments) == 5 and first.momentum == 0.1
    means, variances = (torch.stack(values).mean(0) for values in zip(*moments, strict=True))
    torch.testing.assert_close(first.running_mean, means)
    torch.testing.assert_close(first.running_var, variances)
    assert all(torch.equal(p, before[name]) for name, p in training.module.named_parameters())


def variance(x: torch.Tensor) -> torch.Tensor:
    """Of every channel, unbiased."""
    return x.transpose(0, 1).flatten(1).var(1)
