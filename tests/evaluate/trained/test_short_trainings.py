"""Trainings with labels of few steps: statistics of BatchNorm, a head that is fitted first, rates of any scale."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from matrix_ssl.config import ViewConfig
from matrix_ssl.data.base import MemorySource, Places
from matrix_ssl.data.loading import TrainingBatches
from matrix_ssl.errors import Diverged
from matrix_ssl.evaluate.features import extract
from matrix_ssl.evaluate.trained.classifier import Classifier, linear_head
from matrix_ssl.evaluate.trained.fine_tune import FineTune, attach_head, tune
from matrix_ssl.evaluate.trained.first_head import frozen_features
from matrix_ssl.evaluate.trained.supervised import fit
from matrix_ssl.runs.display import Display
from matrix_ssl.training import batch_norm
from tests.evaluate.trained.test_supervised import (
    CPU,
    DATA,
    PLAIN,
    TUNE,
    digits,
    lines,
    one_thread,
    small,
    tiny_encoder,
    weights,
)

__all__ = ["one_thread"]  # a fixture of every test here
PRECISE = dataclasses.replace(TUNE, precision="float64")
GENTLE = dataclasses.replace(PRECISE, head="regression", statistics="kept", scale="unit", rates=((0.1, 1.0),))


def trained(folder: Path, settings: FineTune = PRECISE, *, encoder: nn.Module | None = None, n: int = 50) -> Classifier:
    """A classifier after its training on the first digits, whose folder has the checkpoint."""
    network, width = tiny_encoder()
    return tune(
        encoder or network, width, small(n), DATA,
        settings=[settings], folder=folder, device=CPU, display=Display(quiet=True),
    ).classifier  # fmt: skip


class TestStatistics:
    def test_are_computed_anew_over_random_views(self, tmp_path: Path) -> None:
        """Means over batches of the moments of every layer's inputs, which hooks collect in forwards of our own."""
        classifier = trained(tmp_path)
        _, stored = weights(tmp_path)
        learner = copy.deepcopy(classifier.learner)
        learner.load_state_dict({k: v for k, v in stored.items() if not k[0].isdigit() or k in learner.state_dict()})
        layers = [module for module in learner.modules() if isinstance(module, nn.BatchNorm2d)]
        moments: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
        for layer, own in zip(layers, moments, strict=True):
            layer.register_forward_pre_hook(lambda _, inputs, own=own: own.append(both(inputs[0])))
        batches = TrainingBatches(
            small(), DATA, (TUNE.view,), batch_size=16, seed=0, rank=0, world_size=1, device=CPU, dtype=torch.float64
        )  # fmt: skip
        learner.double().train()
        for batch in batches.iterate(15, 15 + 64):  # 64 batches of 16 are 1,024 views
            learner(batch.views[0])
        for name, module in classifier.learner.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                means, variances = (torch.stack(rows).mean(0) for rows in zip(*moments.pop(0), strict=True))
                torch.testing.assert_close(module.running_mean, means, rtol=1e-9, atol=1e-12)
                torch.testing.assert_close(module.running_var, variances, rtol=1e-9, atol=1e-12)
                assert module.momentum == 0.1
                assert not torch.allclose(stored[f"{name}.running_var"], variances, rtol=1e-3)
        assert not moments
        for name, parameter in classifier.learner.named_parameters():
            assert torch.equal(parameter, stored[name])

    def test_of_a_training_that_is_long_enough_are_the_running_ones(self, tmp_path: Path) -> None:
        settings = dataclasses.replace(PRECISE, epochs=15)  # 45 steps
        classifier = trained(tmp_path, settings)
        _, stored = weights(tmp_path)
        assert all(torch.equal(stored[name], tensor) for name, tensor in classifier.learner.state_dict().items())

    @pytest.mark.parametrize(
        ("momentum", "steps", "stale"),
        [(0.1, 43, True), (0.1, 44, False), (0.01, 458, True), (0.01, 459, False), (0.0, 1, False), (None, 1, False)],
    )
    def test_are_old_while_a_hundredth_is_of_the_start(self, momentum: float | None, steps: int, stale: bool) -> None:
        layer = nn.BatchNorm2d(3, momentum=momentum)
        assert batch_norm.are_stale(nn.Sequential(nn.Conv2d(3, 3, 1), layer), steps) == stale
        if momentum:  # the running mean of constant inputs of 1, from 0
            for _ in range(steps):
                layer(torch.ones(2, 3, 1, 1))
            assert bool(1 - layer.running_mean[0] >= 0.01) == stale

    def test_without_batch_norm_nothing_is_old(self) -> None:
        assert not batch_norm.are_stale(nn.Linear(3, 3), 1)
        assert not batch_norm.are_stale(nn.BatchNorm1d(3, track_running_stats=False), 1)

    def test_that_are_kept_are_used_in_training(self, tmp_path: Path) -> None:
        network, _ = tiny_encoder()
        classifier = trained(tmp_path, GENTLE)
        moved = 0
        for name, tensor in classifier.learner[0].state_dict().items():
            before = network.state_dict()[name]
            if "running" in name or "tracked" in name:
                assert torch.equal(tensor.to(before.dtype), before)
            else:
                moved += not torch.equal(tensor, before.double())
        assert moved > 10

    def test_that_are_kept_normalise_in_training(self, tmp_path: Path) -> None:
        """The first loss of a training that hardly moves is that of the classifier in evaluation mode."""
        settings = dataclasses.replace(GENTLE, rates=((1e-12, 1e-12),), batch_size=50, view=PLAIN, epochs=1)
        learner = trained(tmp_path, settings).learner.eval()
        pixels = (small().images.double() / 255 - 0.3) / 0.38
        expected = nn.functional.cross_entropy(learner(pixels), torch.from_numpy(small().labels))
        assert lines(tmp_path)[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-3)


def both(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of every channel."""
    channels = x.detach().double().transpose(0, 1).flatten(1)
    return channels.mean(1), channels.var(1)


class TestFirstHead:
    def test_is_the_regression_of_scikit_learn(self) -> None:
        encoder, width = tiny_encoder()
        features = frozen_features(encoder, small(), DATA, device=CPU, statistics="kept")
        weight, bias = features.regression()
        x = extract({"": encoder}, small(), DATA, device=CPU).vectors[""].double().numpy()
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1 / 5, tol=1e-10, max_iter=10_000))
        pipeline.fit(x, small().labels)
        scores = x @ weight.double().numpy().T + bias.double().numpy()
        expected = pipeline.decision_function(x)
        np.testing.assert_allclose(
            scores - scores.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-3
        )
        assert features.square_norm == pytest.approx((x**2).sum(1).mean(), rel=1e-6)
        assert weight.shape == (10, width)

    def test_starts_the_training(self, tmp_path: Path) -> None:
        """Steps of length zero in all but name: what remains is the start."""
        settings = dataclasses.replace(GENTLE, rates=((1e-12, 1e-12),))
        head = trained(tmp_path, settings).learner[1]
        encoder, _ = tiny_encoder()
        weight, bias = frozen_features(encoder, small(), DATA, device=CPU, statistics="kept").regression()
        torch.testing.assert_close(head.weight, weight.double(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(head.bias, bias.double(), rtol=1e-6, atol=1e-6)

    def test_of_a_class_without_readable_images_is_finite(self) -> None:
        source = digits().subset(np.arange(50))
        fewer = MemorySource(
            "digits", source.images, Places.whole(["digits"], [50]),
            labels=source.labels, classes=[*source.classes, "x"],
        )  # fmt: skip
        encoder, _ = tiny_encoder()
        weight, bias = frozen_features(encoder, fewer, DATA, device=CPU, statistics="kept").regression()
        assert weight.isfinite().all() and bias.isfinite().all() and bias[10] == bias.min()

    def test_of_an_encoder_that_has_diverged(self, tmp_path: Path) -> None:
        encoder, _ = tiny_encoder()
        with torch.no_grad():
            next(encoder.parameters()).fill_(math.nan)
        with pytest.raises(Diverged, match=r"features of the encoder are not finite: it has diverged itself\."):
            trained(tmp_path, GENTLE, encoder=encoder)


def test_features_under_the_statistics_of_the_batch() -> None:
    """Those of the module in training mode, where the images are one batch; the encoder does not change."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten()).eval()
    batch, kept = (
        frozen_features(encoder, small(), DATA, device=CPU, statistics=kind) for kind in ("batch", "kept")
    )  # fmt: skip
    assert encoder[1].running_mean.eq(0).all() and not encoder.training
    pixels = (small().images / 255 - 0.3) / 0.38
    torch.testing.assert_close(batch.features.vectors[""], copy.deepcopy(encoder).train()(pixels).detach())
    torch.testing.assert_close(kept.features.vectors[""], encoder(pixels).detach())
    assert batch.square_norm > 2 * kept.square_norm
    single = frozen_features(encoder, small(1), DATA, device=CPU, statistics="batch")
    torch.testing.assert_close(single.features.vectors[""], encoder(pixels[:1]).detach())


class Louder(nn.Module):
    """An encoder whose features are a multiple of another's."""

    def __init__(self, encoder: nn.Module, factor: float):
        super().__init__()
        self.encoder, self.factor = encoder, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.encoder(x)


@pytest.mark.parametrize("statistics", ["batch", "kept"])
def test_a_rate_for_unit_norm_fits_features_of_any_scale(tmp_path: Path, statistics: str) -> None:
    """With x -> 64 x, weights of the head and their steps are 64 times smaller, and nothing else changes."""
    settings = dataclasses.replace(GENTLE, statistics=statistics)
    encoder, _ = tiny_encoder()
    images = (torch.rand(9, 1, 8, 8, dtype=torch.float64) - 0.3) / 0.38
    scores = [
        trained(tmp_path / str(factor), settings, encoder=Louder(encoder, factor)).learner.eval()(images)
        for factor in (1.0, 64.0)
    ]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=1e-4)
    untrained = attach_head(encoder, 16, 10, rates=(1.0, 1.0), seed=0).learner.double().eval()(images)
    assert (scores[0] - untrained).abs().max() > 0.1


def test_a_rate_can_decrease_between_steps(tmp_path: Path) -> None:
    head = linear_head(64, 10, seed=0)
    classifier = Classifier(nn.Flatten(), head, [{"params": list(head.parameters()), "rate": 1.0}])
    settings = dataclasses.replace(TUNE, epochs=2, decay="step", view=ViewConfig(), batch_size=25)
    fit(
        classifier, small(), DATA, settings=settings, folder=tmp_path, device=CPU, display=Display(quiet=True), seed=0
    )  # fmt: skip
    expected = [25 / 256 * (1 + math.cos(math.pi * step / 4)) / 2 for step in (1, 3)]  # steps 2 and 4, from 0
    assert [line["learning_rate"] for line in lines(tmp_path)] == pytest.approx(expected)


def test_several_kinds_of_training_are_candidates(tmp_path: Path) -> None:
    """A kind that cannot learn loses against one that can, wherever it stands."""
    bad = dataclasses.replace(PRECISE, rates=((1e-9, 1e-9),))
    for number, kinds in enumerate(([bad, GENTLE], [GENTLE, bad])):
        tuned = tune(
            tiny_encoder()[0], 16, small(200), DATA,
            settings=kinds, folder=tmp_path / str(number), device=CPU, display=Display(quiet=True),
        )  # fmt: skip
        assert tuned.settings == GENTLE and len(tuned.held_out) == 2
        assert tuned.classifier.keeps_statistics
