"""Classifiers trained by gradient steps: the published linear evaluation, fine-tuning, and every way to be stopped."""

import dataclasses
import io
import json
import math
import os
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from torch import nn

from matrix_ssl import distributed, networks
from matrix_ssl.config import DataConfig, ViewConfig
from matrix_ssl.data import open_source
from matrix_ssl.data.base import MemorySource, Places
from matrix_ssl.data.loading import TrainingBatches
from matrix_ssl.errors import ConfigError, DataError, Diverged, RunFolderError
from matrix_ssl.evaluate.probes.accuracy import accuracy
from matrix_ssl.evaluate.trained.classifier import linear_head
from matrix_ssl.evaluate.trained.fine_tune import ALL_LABELS, PUBLISHED_RATES, FineTune, fine_tune
from matrix_ssl.evaluate.trained.linear_sgd import MEC, LinearSGD, linear_sgd
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training.engine import Engine
from tests.support import runs
from tests.support.unreadable import PartlyUnreadable

CPU = torch.device("cpu")
SIDE = 8
DATA = DataConfig(image_size=SIDE, mean=(0.3,), std=(0.38,), crop_fraction=1.0, workers=0)
PLAIN = ViewConfig(crop_ratio=(1.0, 1.0))  # the image itself
CROPS = ViewConfig(crop_scale=(0.5, 1.0))  # a flipped digit is no digit
FEW = {"epochs": 5, "batch_size": 16, "view": CROPS}  # on the 50 images of ``small``: three steps an epoch
STEPS = 15
LINEAR = LinearSGD(**FEW, rate=100.0)  # large: the trust coefficient makes the steps of weights small
TUNE = FineTune(**FEW, rates=((0.1, 1.0),))
SETTINGS = {"linear": LINEAR, "tune": TUNE}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(split="train"):
    return open_source("digits", split=split, data_root=None)


def small(n=50, *, split="train"):
    """The first ``n`` digits."""
    return digits(split).subset(np.arange(n))


def tiny_encoder(seed=0):
    torch.manual_seed(seed)
    encoder, width = networks.build_encoder("tiny_resnet", channels=1, image_size=SIDE, stem="auto", width=8)
    with torch.no_grad():  # statistics of a trained network, so that evaluation mode is a mode of its own
        encoder.train()(torch.randn(64, 1, SIDE, SIDE))
    return encoder, width


def quiet():
    return Display(quiet=True)


def evaluate(folder, settings, *, encoder=None, train=None, test=None, data=DATA, seed=0, display=None):
    """One of the protocols, by its settings, on a few digits."""
    network, width = encoder or tiny_encoder()
    protocol = fine_tune if isinstance(settings, FineTune) else linear_sgd
    return protocol(
        network, width, train or small(), test or small(30, split="test"), data,
        settings=settings, folder=Path(folder), device=CPU, display=display or quiet(), seed=seed,
    )  # fmt: skip


def lines(folder):
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def weights(folder):
    """Every tensor of the newest checkpoint."""
    found, problems = checkpoint.load_newest(Path(folder))
    assert found is not None and not problems
    moments = {f"{i}.{k}": v for i, state in found.optimizer["state"].items() for k, v in state.items()}
    return found.step, found.model | moments


def assert_same_training(folder, expected):
    (step, found), (last, tensors) = weights(folder), weights(expected)
    assert step == last and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    assert lines(folder) == lines(expected)


class TestPublishedLinearEvaluation:
    """Against the schedule of SimSiam's main_lincls.py and the LARC of apex, in NumPy."""

    EPOCHS, BATCH, RATE, CLASSES = 6, 16, 1500.0, 10

    def settings(self, **changes):
        base = {"epochs": self.EPOCHS, "batch_size": self.BATCH, "rate": self.RATE, "precision": "float64"}
        return LinearSGD(**(base | {"view": PLAIN} | changes))

    def textbook(self, x, y, order, *, batch_norm=False, scale_bias=True):
        """Gradient steps on ``x`` (n, d) in the order of ``order``, a list of index arrays for every epoch."""
        head = linear_head(x.shape[1], self.CLASSES, seed=7)
        weight, bias = head.weight.detach().double().numpy().copy(), np.zeros(self.CLASSES)
        speeds = [np.zeros_like(weight), np.zeros_like(bias)]
        for epoch in range(self.EPOCHS):
            rate = self.RATE * self.BATCH / 256 * 0.5 * (1 + math.cos(math.pi * epoch / self.EPOCHS))
            for chosen in order[epoch]:
                rows = x[chosen]
                if batch_norm:
                    rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-6)
                scores = rows @ weight.T + bias
                error = np.exp(scores - scores.max(1, keepdims=True))
                error /= error.sum(1, keepdims=True)
                error[np.arange(len(chosen)), y[chosen]] -= 1
                gradients = [error.T @ rows / len(chosen), error.mean(0)]
                for p, g, speed in zip((weight, bias), gradients, speeds, strict=True):
                    norm, size = np.linalg.norm(p), np.linalg.norm(g)
                    if norm != 0 and size != 0 and (scale_bias or p is weight):
                        g = g * (0.001 * norm / (size + 1e-8))
                    speed[...] = 0.9 * speed + g
                    p -= rate * speed
        return weight, bias

    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_ends_with_the_same_weights(self, tmp_path, batch_norm):
        train = small()
        evaluate(tmp_path, self.settings(batch_norm=batch_norm), encoder=(nn.Flatten(), 64), train=train, seed=7)
        batches = TrainingBatches(
            train, DATA, (PLAIN,), batch_size=16, seed=7, rank=0, world_size=1, device=CPU, dtype=torch.float64
        )
        order = [[batches.samples(3 * epoch + step)[1] for step in range(3)] for epoch in range(self.EPOCHS)]
        x = (train.images.double().flatten(1).numpy() / 255 - 0.3) / 0.38
        weight, bias = self.textbook(x, train.labels, order, batch_norm=batch_norm)
        step, found = weights(tmp_path)
        prefix = "1." if batch_norm else ""
        assert step == 18
        np.testing.assert_allclose(found[f"{prefix}weight"].numpy(), weight, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found[f"{prefix}bias"].numpy(), bias, rtol=1e-6, atol=1e-6)
        start = linear_head(64, 10, seed=7).weight.detach().double().numpy()
        assert np.linalg.norm(weight - start) > np.linalg.norm(start)  # the weights went far enough to differ
        _, other = self.textbook(x, train.labels, order, batch_norm=batch_norm, scale_bias=False)
        assert np.abs(other - bias).max() > 1e-2

    def test_the_rate_falls_between_epochs_and_follows_the_batch(self, tmp_path):
        evaluate(tmp_path, LINEAR)
        found = lines(tmp_path)
        assert [line["epoch"] for line in found] == [1, 2, 3, 4, 5]
        assert [line["step"] for line in found] == [3, 6, 9, 12, 15]
        expected = [100 * 16 / 256 / 2 * (1 + math.cos(math.pi * e / 5)) for e in range(5)]
        np.testing.assert_allclose([line["learning_rate"] for line in found], expected)

    def test_defaults(self):
        settings = LinearSGD()
        assert (settings.epochs, settings.batch_size, settings.rate, settings.optimizer) == (90, 4096, 0.1, "lars")
        assert (settings.momentum, settings.weight_decay) == (0.9, 0.0)
        assert settings.view == ViewConfig(crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5)
        assert (MEC.epochs, MEC.rate, MEC.batch_norm, MEC.batch_size) == (100, 0.03, True, 4096)

    def test_the_head_starts_small_and_is_a_function_of_the_seed(self):
        head = linear_head(500, 200, seed=1)
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.02) and head.weight.mean().abs() < 1e-4
        assert not head.bias.any()
        assert torch.equal(head.weight, linear_head(500, 200, seed=1).weight)
        assert not torch.equal(head.weight, linear_head(500, 200, seed=2).weight)


class Shared(nn.Module):
    """An encoder that is not copied, and notes how it was used."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.modes = encoder, set()

    def __deepcopy__(self, _):
        return self

    def forward(self, x):
        self.modes.add((self.encoder.training, torch.is_grad_enabled()))
        return self.encoder(x)


class TestTheEncoder:
    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_stays_bit_for_bit_under_a_linear_layer(self, tmp_path, batch_norm):
        network, width = tiny_encoder()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        assert any("running_mean" in name for name in before)
        shared = Shared(network.train())
        settings = dataclasses.replace(LINEAR, batch_norm=batch_norm)
        evaluate(tmp_path, settings, encoder=(shared, width))
        assert shared.modes == {(False, False)}
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
        assert not any("conv" in name for name in weights(tmp_path)[1])  # it is not in the checkpoints either

    @pytest.mark.parametrize("settings", [LINEAR, dataclasses.replace(TUNE, precision="float64")])
    def test_of_the_caller_is_left_alone(self, tmp_path, settings):
        network, width = tiny_encoder()
        network.train()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        evaluate(tmp_path, settings, encoder=(network, width))
        assert network.training and {p.dtype for p in network.parameters()} == {torch.float32}
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    def test_is_trained_in_every_weight_and_statistic_by_fine_tuning(self, tmp_path):
        network, width = tiny_encoder()
        evaluate(tmp_path, TUNE, encoder=(network, width))
        _, found = weights(tmp_path)
        for name, tensor in network.state_dict().items():
            assert not torch.equal(found[f"0.{name}"], tensor), name

    def test_has_a_rate_of_its_own(self, tmp_path):
        """Steps of plain gradient descent are proportional to the rates."""
        network, width = tiny_encoder()
        settings = FineTune(epochs=1, batch_size=50, momentum=0.0, view=PLAIN, precision="float64")
        moved = []
        for rates in ((0.01, 0.01), (0.02, 0.05)):
            folder = tmp_path / str(rates)
            evaluate(folder, dataclasses.replace(settings, rates=(rates,)), encoder=(network, width))
            _, found = weights(folder)
            start = linear_head(width, 10, seed=0).weight.double()
            first = next(name for name, _ in network.named_parameters())
            moved.append((found[f"0.{first}"] - network.get_parameter(first).double(), found["1.weight"] - start))
        torch.testing.assert_close(moved[1][0], 2 * moved[0][0], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(moved[1][1], 5 * moved[0][1], rtol=1e-6, atol=1e-12)


class TestLearning:
    def test_converged_on_frozen_features_it_agrees_with_sklearn(self, tmp_path):
        train, test = digits(), digits("test")
        decay = 1e-3
        settings = LinearSGD(
            optimizer="sgd", epochs=150, batch_size=256, rate=0.1, weight_decay=decay, view=PLAIN, precision="float32"
        )
        found = evaluate(tmp_path, settings, encoder=(nn.Flatten(), 64), train=train, test=test)
        x, x_test = ((part.images.flatten(1).numpy() / 255 - 0.3) / 0.38 for part in (train, test))
        probe = LogisticRegression(C=1 / (decay * len(x)), max_iter=5000).fit(x, train.labels)
        assert abs(accuracy(found.scores.argmax(1), found.labels) - probe.score(x_test, test.labels)) <= 0.01
        probabilities = found.scores.softmax(1).numpy()
        assert np.abs(probabilities - probe.predict_proba(x_test)).mean() < 0.005
        assert found.train_accuracy == pytest.approx(probe.score(x, train.labels), abs=0.01)

    @pytest.mark.slow
    def test_fine_tuning_learns_from_two_hundred_digits_what_a_frozen_network_cannot(self, tmp_path):
        train, test = small(200), digits("test")
        view = ViewConfig(crop_scale=(0.7, 1.0))
        settings = FineTune(epochs=30, batch_size=20, view=view, rates=((1.0, 1.0),))
        tuned = evaluate(tmp_path / "tuned", settings, train=train, test=test)
        frozen = LinearSGD(epochs=30, batch_size=20, view=view, rate=1.0, optimizer="sgd")
        probed = evaluate(tmp_path / "frozen", frozen, train=train, test=test)
        right, baseline = (accuracy(found.scores.argmax(1), found.labels) for found in (tuned, probed))
        assert right > 0.8 > 0.4 > baseline > 0.1
        assert lines(tmp_path / "tuned")[-1]["loss"] < 0.5 * lines(tmp_path / "tuned")[0]["loss"]

    @pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
    def test_in_other_precisions(self, tmp_path, precision):
        full = evaluate(tmp_path / "float32", TUNE)
        other = evaluate(tmp_path / precision, dataclasses.replace(TUNE, precision=precision))
        assert other.scores.dtype == torch.float32
        difference = (other.scores - full.scores).abs().max()
        assert 0 < difference < (0.3 if precision == "bfloat16" else 1e-3)
        assert weights(tmp_path / precision)[1]["1.weight"].dtype == getattr(
            torch, "float64" if precision == "float64" else "float32"
        )


class TestRates:
    GRID = ((1e-4, 1e-4), (0.5, 0.5), (1e30, 1e30))

    def grid(self, **changes):
        return FineTune(epochs=4, batch_size=20, view=CROPS, rates=self.GRID, **changes)

    def test_are_chosen_without_the_test_images(self, tmp_path):
        train, test = small(200), small(100, split="test")
        found = evaluate(tmp_path / "a", self.grid(), train=train, test=test)
        assert found.rates == (0.5, 0.5)
        assert len(found.held_out) == 3 and found.held_out[1] == max(found.held_out) > found.held_out[0]
        assert found.held_out[2] == 0.0  # it diverged
        wrong = MemorySource(
            "digits", test.images, Places.whole(["digits"], [100]), labels=(test.labels + 1) % 10, classes=test.classes
        )
        other = evaluate(tmp_path / "b", self.grid(), train=train, test=wrong)
        assert (other.rates, other.held_out) == (found.rates, found.held_out)
        assert torch.equal(other.scores, found.scores)
        alone = evaluate(tmp_path / "c", dataclasses.replace(self.grid(), rates=((0.5, 0.5),)), train=train, test=test)
        assert torch.equal(alone.scores, found.scores) and alone.held_out == ()
        assert found.seconds > alone.seconds > 0

    def test_a_single_pair_is_not_searched(self, tmp_path):
        found = evaluate(tmp_path, TUNE)
        assert found.rates == (0.1, 1.0) and found.held_out == ()
        assert not list(tmp_path.glob("candidate-*"))

    def test_that_all_diverge(self, tmp_path):
        settings = dataclasses.replace(self.grid(), rates=((1e30, 1e30), (1e31, 1e31)))
        with pytest.raises(Diverged, match="none of the pairs of learning rates can be used"):
            evaluate(tmp_path, settings, train=small(200))

    def test_published(self):
        assert FineTune().rates == PUBLISHED_RATES[:1] == ((0.002, 0.5),)
        assert (FineTune().epochs, FineTune().batch_size, FineTune().weight_decay) == (20, 256, 0.0)
        assert ALL_LABELS.epochs == 30 and len(ALL_LABELS.rates) == 1


HERE = f"import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
HERE += "import tests.evaluate.trained.test_supervised as t; t.torch.set_num_threads(1)\n"


def die_at(moment):
    """Code that makes a process save after every epoch and die at a moment of the training."""
    start = HERE + "import matrix_ssl.training.engine as e; e._SECONDS_BETWEEN_CHECKPOINTS = 0.0\n"
    if moment == "step":
        return start + (
            "real = t.Engine.update\n"
            "def update(self, *rest):\n"
            "    if self.task.step == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(self, *rest)\n"
            "t.Engine.update = update\n"
        )
    return start + (
        "real = t.Engine.save\n"
        "def save(self):\n"
        "    if self.task.step == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self)\n"
        "t.Engine.save = save\n"
    )


@pytest.fixture(scope="module", params=["linear", "tune"])
def whole(request, tmp_path_factory):
    """Kind, folder and outcome of a training that was left alone."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.set_num_threads(1)
    outcome = evaluate(folder, SETTINGS[request.param])
    assert weights(folder)[0] == STEPS
    return request.param, folder, outcome


class TestStopping:
    @pytest.mark.parametrize(
        ("moment", "kept", "written"), [pytest.param("step", 6, 2, marks=pytest.mark.slow), ("save", 6, 3)]
    )
    def test_a_killed_process_goes_on_to_the_same_bits(self, tmp_path, whole, moment, kept, written):
        kind, folder, expected = whole
        call = f"t.evaluate('e', t.SETTINGS[{kind!r}]); raise SystemExit(0)"
        ended = runs.start(tmp_path, [], before=die_at(moment) + call).wait()
        assert ended.code == -signal.SIGKILL, ended.err
        assert weights(tmp_path / "e")[0] == kept and len(lines(tmp_path / "e")) == written
        found = evaluate(tmp_path / "e", SETTINGS[kind])
        assert_same_training(tmp_path / "e", folder)
        assert torch.equal(found.scores, expected.scores) and found.train_accuracy == expected.train_accuracy

    @pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
    def test_a_signal_saves_at_the_step_boundary(self, tmp_path, whole, number):
        kind, folder, expected = whole
        real = Engine.update

        def update(self, *rest):
            if self.task.step == 7:
                os.kill(os.getpid(), number)
            return real(self, *rest)

        before = signal.getsignal(number)
        with (
            mock.patch.object(Engine, "update", update),
            pytest.raises(Interrupted, match=f"Stopped by {number.name} after step 8") as caught,
        ):
            evaluate(tmp_path, SETTINGS[kind])
        assert caught.value.exit_code == 128 + number and signal.getsignal(number) == before
        assert weights(tmp_path)[0] == 8 and len(lines(tmp_path)) == 2
        text = io.StringIO()
        found = evaluate(tmp_path, SETTINGS[kind], display=Display(Console(file=text)))
        assert f"Resuming after step 8 of {STEPS}" in text.getvalue()
        assert_same_training(tmp_path, folder)
        assert torch.equal(found.scores, expected.scores)

    def test_a_finished_training_is_not_done_again(self, whole):
        kind, folder, expected = whole
        with mock.patch.object(Engine, "update", side_effect=AssertionError):
            found = evaluate(folder, SETTINGS[kind])
        assert torch.equal(found.scores, expected.scores)
        assert (found.train_accuracy, found.seconds) == (expected.train_accuracy, expected.seconds)

    @pytest.mark.parametrize("what", ["settings", "weights", "images", "seed", "data"])
    def test_the_folder_of_another_training_is_refused(self, tmp_path, what):
        evaluate(tmp_path, LINEAR)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        changes = {
            "settings": {"settings": dataclasses.replace(LINEAR, rate=1.0)},
            "weights": {"encoder": tiny_encoder(seed=1)},
            "images": {"train": digits().subset(np.arange(1, 51))},
            "seed": {"seed": 1},
            "data": {"data": dataclasses.replace(DATA, std=(0.4,))},
        }
        sentence = rf"was started with other settings \(.*{what}.*\): choose another folder"
        with pytest.raises(RunFolderError, match=sentence):
            evaluate(tmp_path, **({"settings": LINEAR} | changes[what]))
        assert {path: path.read_bytes() for path in before} == before


def spread(kind):
    """One process's part of a training by several; it writes its scores."""
    distributed.start("cpu")
    settings = dataclasses.replace(SETTINGS[kind], precision="float64")
    display = Display(quiet=not distributed.is_main())
    found = evaluate("e", settings, train=Some(bad=(3, 4)), test=Some(30, split="test"), display=display)
    np.savez(f"{distributed.rank()}.npz", scores=found.scores.numpy(), train_accuracy=found.train_accuracy)
    distributed.stop()
    raise SystemExit(0)


class TestSeveralProcesses:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["tune", "linear"])
    def test_do_what_one_does(self, tmp_path, kind):
        settings = dataclasses.replace(SETTINGS[kind], precision="float64")
        single = evaluate(tmp_path / "one", settings, train=Some(bad=(3, 4)), test=Some(30, split="test"))
        for command in runs.start_processes(tmp_path, [], count=2, before=HERE + f"t.spread({kind!r})"):
            ended = command.wait()
            assert ended.code == 0, ended.err
        for rank in range(2):
            with np.load(tmp_path / f"{rank}.npz") as found:
                np.testing.assert_allclose(found["scores"], single.scores.numpy(), rtol=1e-5, atol=1e-6)
                assert float(found["train_accuracy"]) == pytest.approx(single.train_accuracy, abs=1e-6)
        (_, found), (_, expected) = weights(tmp_path / "e"), weights(tmp_path / "one")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=1e-8, atol=1e-10, err_msg=name)
        for line, other in zip(lines(tmp_path / "e"), lines(tmp_path / "one"), strict=True):
            assert line == pytest.approx(other, rel=1e-6)


class Some(PartlyUnreadable):
    """Digits that are read one by one, some of which cannot be."""

    def __init__(self, n=50, *, bad=(), split="train"):
        whole = small(n, split=split)
        super().__init__("some", whole.images.clone(), bad=bad, labels=whole.labels.copy(), classes=whole.classes)


class TestUnreadable:
    def test_training_images_are_replaced_with_their_labels(self, tmp_path):
        bad = Some(bad=(3, 4, 20))
        mended = Some()
        for index, other in ((3, 5), (4, 5), (20, 21)):
            assert mended.labels[index] != mended.labels[other]
            mended.pixels[index], mended.labels[index] = mended.pixels[other], mended.labels[other]
        text = io.StringIO()
        found = evaluate(tmp_path / "bad", LINEAR, train=bad, display=Display(Console(file=text, width=500)))
        expected = evaluate(tmp_path / "mended", LINEAR, train=mended)
        assert torch.equal(found.scores, expected.scores)
        assert "Replaced 3 unreadable training images, the first one some/" in text.getvalue()

    def test_test_images_are_left_out(self, tmp_path):
        found = evaluate(tmp_path / "a", LINEAR, test=Some(30, bad=(0, 7), split="test"))
        whole = evaluate(tmp_path / "b", LINEAR, test=Some(30, split="test"))
        kept = [i for i in range(30) if i not in (0, 7)]
        assert found.indices.tolist() == kept and whole.indices.tolist() == list(range(30))
        assert torch.equal(found.labels, whole.labels[kept])
        torch.testing.assert_close(found.scores, whole.scores[kept])
        assert found.unreadable == [("some/0", "cut short"), ("some/7", "cut short")] and whole.unreadable == []

    def test_without_any_test_image(self, tmp_path):
        with pytest.raises(DataError, match="none of the 30 images of 'some' can be read"):
            evaluate(tmp_path, LINEAR, test=Some(30, bad=range(30), split="test"))


class TestMistakes:
    def test_a_small_set_is_one_batch_with_a_lower_rate(self, tmp_path):
        text = io.StringIO()
        settings = dataclasses.replace(LINEAR, batch_size=4096)
        found = evaluate(tmp_path, settings, display=Display(Console(file=text, width=500)))
        assert found.batch_size == 50
        assert "Batch size reduced from 4096 to 50" in text.getvalue()
        assert lines(tmp_path)[0]["learning_rate"] == pytest.approx(100 * 50 / 256)
        assert weights(tmp_path)[0] == 5

    def test_rates_that_are_too_high(self, tmp_path):
        with pytest.raises(Diverged, match=r"not finite .* Lower the learning rate \(1e\+30, 1e\+30\)"):
            evaluate(tmp_path, dataclasses.replace(TUNE, rates=((1e30, 1e30),)))

    def test_an_encoder_that_has_diverged(self, tmp_path):
        network, width = tiny_encoder()
        with torch.no_grad():
            next(network.parameters()).fill_(math.nan)
        sentence = "The loss or its gradient is not finite in step 1 .*has diverged itself"
        with pytest.raises(Diverged, match=sentence):
            evaluate(tmp_path, LINEAR, encoder=(network, width))
        assert checkpoint.list_checkpoints(tmp_path) == []

    @pytest.mark.parametrize("settings", [LINEAR, TUNE])
    def test_images_that_do_not_fit(self, tmp_path, settings):
        labelled, whole = small(), digits()
        places, classes = Places.whole(["digits"], [50]), labelled.classes

        def made(images, labels, names):
            return MemorySource("digits", images, places, labels=labels, classes=names)

        without = made(labelled.images, None, None)
        fewer = made(labelled.images, np.minimum(labelled.labels, 8), classes[:9])
        single = made(labelled.images, np.zeros(50, np.int64), ["zero"])
        colour = made(labelled.images.expand(-1, 3, -1, -1), labelled.labels, classes)
        no_sevens = whole.subset(np.flatnonzero(whole.labels != 7))
        for parts, sentence in (
            ((without, labelled), "'digits' has no labels"),
            ((labelled, without), "the test images of 'digits' have no labels"),
            ((fewer, labelled), "training and test images have different classes: 9"),
            ((single, single), "'digits' has the single class 'zero': a classifier needs two or more"),
            ((no_sevens, labelled), r"1 of the 10 classes of 'digits' have no training image \('7'\)"),
            (
                (colour, labelled),
                "'digits' has 3-channel training images, but the encoder was trained on 1-ch",
            ),
        ):
            with pytest.raises((DataError, ConfigError), match=sentence):
                evaluate(tmp_path / "e", settings, train=parts[0], test=parts[1])
        assert not (tmp_path / "e").exists()

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [({"epochs": 0}, "epochs=0: expected an integer of at least 1"),
         ({"batch_size": 0}, "batch_size=0: expected an integer of at least 1"),
         ({"momentum": 1.5}, "momentum=1.5: expected a number from 0 to 1"),
         ({"weight_decay": math.nan}, "weight_decay=nan: expected a finite number of at least 0"),
         ({"rate": 0.0}, "rate=0.0: expected a finite number above 0"),
         ({"rates": ((0.1, math.inf),)}, r"rates=\(\(0.1, inf\),\): .* each a finite number above 0"),
         ({"rates": ()}, r"rates=\(\): .* each a finite number above 0")],
    )  # fmt: skip
    def test_settings(self, settings, sentence):
        with pytest.raises(ConfigError, match=sentence):
            dataclasses.replace(TUNE if "rates" in settings else LINEAR, **settings)

    def test_a_class_with_one_image_leaves_nothing_to_choose_rates_on(self, tmp_path):
        few = digits().subset([int(np.flatnonzero(digits().labels == label)[0]) for label in range(10)])
        with pytest.raises(DataError, match="every class has a single image, so none can be held out"):
            evaluate(tmp_path, dataclasses.replace(TUNE, rates=PUBLISHED_RATES), train=few)

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(RunFolderError, match=r"Cannot write .*file"):
            evaluate(tmp_path / "file" / "e", LINEAR)
