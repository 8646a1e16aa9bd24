"""Runs that start from weights: what they take over, that they resume without the source, and what is refused."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from matrix_ssl.api.pretraining import train
from matrix_ssl.config import DataConfig, split_assignment
from matrix_ssl.data import open_source
from matrix_ssl.encoder import load_encoder
from matrix_ssl.encoder.exporting import export
from matrix_ssl.encoder.opening import open_encoder
from matrix_ssl.errors import CheckpointError, ConfigError, MatrixSSLError, RunFolderError
from matrix_ssl.evaluate.online import OnlineEvaluation
from matrix_ssl.methods.matrix_ssl import MatrixSSL
from matrix_ssl.report import write_report
from matrix_ssl.runs import checkpoint, devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import read_config
from matrix_ssl.training import setup
from matrix_ssl.training.configure import configure
from matrix_ssl.training.engine import Engine
from matrix_ssl.training.start import Start, start_from
from tests.support import runs
from tests.support.runs import BARE, TINY, tensors, timeless

SETTINGS = (*TINY, "epochs=1", "log_every=1", "data.subset=384", "optimizer.learning_rate=0.001")  # 6 steps
HALVES = ("optimizer.frozen_epochs=0.5", "optimizer.layer_decay=0.5")
CPU = torch.device("cpu")
WHOLE = ("data.subset=0",)  # a dataset whose held-out fifth tells one accuracy from another
OWN = ("network.width",)  # of the settings above, what the weights decide


class Stop(Exception):
    """Ends a run as a kill does: nothing is written any more."""


def assignments(start: Path | str | None, *settings: str) -> list[str]:
    mine = [*SETTINGS, *settings, *([f"start.reference={start}"] if start else [])]
    return [each for each in mine if not start or split_assignment(each)[0] not in OWN or each in settings]


def pretrain(folder: Path, *settings: str, start: Path | str | None = None, **options: Any) -> Path:
    """A whole run as the command trains it."""
    words = assignments(start, *settings)
    chosen = [split_assignment(word)[0] for word in words]
    train(configure("demo", None, words), folder, chosen=chosen, report=False, device="cpu", **options)
    return folder


def begin(start: Path | str, *settings: str, method: str | None = None) -> Start:
    words = assignments(start, *settings)
    return start_from(
        configure("demo", None, words, method=method), chosen=[split_assignment(word)[0] for word in words], run=None
    )


def before(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[Any], None]) -> None:
    """Lets the engine act before it calls one of its functions."""
    real = getattr(Engine, name)

    def acting(self: Any, *rest: Any) -> Any:
        action(self)
        return real(self, *rest)

    monkeypatch.setattr(Engine, name, acting)


def stop(_: Any) -> None:
    raise Stop


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run whose weights the others start from."""
    return pretrain(tmp_path_factory.mktemp("first") / "first")


@pytest.mark.parametrize("wider", [False, True])
def test_the_networks_begin_at_the_weights_bit_for_bit(first: Path, wider: bool) -> None:
    start = begin(first, *(["method.hidden_dim=48"] if wider else []))
    source = open_source("digits", split="train", data_root=None)
    training = setup.prepare(start.config, source=source, device=CPU, display=Display(quiet=True), start=start.tensors)
    method, frozen = training.method, load_encoder(first)
    assert isinstance(method, MatrixSSL)
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    devices.MixedPrecision.choose("float32", CPU).place(frozen)  # as training keeps its weights
    expected = frozen(images)
    for encoder in (method.encoder, method.teacher_encoder()):
        assert encoder is not None and torch.equal(encoder.eval()(images), expected)
        assert all(tensor.equal(frozen.state_dict()[name]) for name, tensor in encoder.state_dict().items())
    newest, _ = checkpoint.load_newest(first)
    assert newest is not None
    own = {name: tensor for name, tensor in method.state_dict().items() if name.startswith(("projector", "predictor"))}
    theirs = setup.build_method(start.config).state_dict() if wider else newest.model
    assert len(own) > 10 and all(tensor.equal(theirs[name]) for name, tensor in own.items())
    for name, tensor in method.projector.state_dict().items():
        assert tensor.equal(method.teacher["projector"].state_dict()[name])
    heads = f"The {len(own)} tensors of the heads are new." if wider else f"Its heads as well: {len(own)} of {len(own)}"
    assert start.text.startswith(f"Starting from {first}: 36 of 36 tensors of tiny_resnet") and heads in start.text
    assert start.config.start.heads == (0 if wider else len(own)) and start.config.start.tensors == 36


def test_a_different_method_gets_new_heads(first: Path) -> None:
    assert begin(first, "method.hidden_dim=32", method="simsiam").config.start.heads == 0


def test_what_follows_from_the_weights_and_what_the_user_sets(first: Path) -> None:
    theirs = read_config(first)
    own = begin(first, "data.mean=0.25", "data.std=0.5").config
    assert own.network == theirs.network and own.data.image_size == theirs.data.image_size
    assert (own.data.mean, own.data.std) == ((0.25,), (0.5,)) and own.data.crop_fraction == theirs.data.crop_fraction


def test_defaults_of_weights_that_have_learned(first: Path) -> None:
    words = [word for word in assignments(first) if not word.startswith("optimizer.")]
    recipe = configure("demo", None, words)
    own = start_from(recipe, chosen=[], run=None).config.optimizer
    assert own == replace(recipe.optimizer, learning_rate=0.1 * recipe.optimizer.learning_rate, frozen_statistics=True)
    chosen = ["optimizer.learning_rate", "optimizer.frozen_statistics"]
    assert start_from(recipe, chosen=chosen, run=None).config.optimizer == recipe.optimizer
    untrained = replace(recipe, start=replace(recipe.start, reference="random/tiny_resnet"))
    assert start_from(untrained, chosen=[], run=None).config.optimizer == recipe.optimizer


def test_the_source_is_recorded(first: Path, tmp_path: Path) -> None:
    found = read_json(pretrain(tmp_path / "r", start=first) / "config.json")["start"]
    digest = hashlib.sha256((first / "encoder.safetensors").read_bytes()).hexdigest()
    assert found == {"reference": str(first), "sha256": digest, "tensors": 36, "heads": 24,
                     "origin": f"36 of 36 tensors of tiny_resnet (student) from {first}."}  # fmt: skip


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_killed_run_resumes_without_the_source(
    first: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while the encoder is frozen and while it learns, with nothing but the checkpoint before the first step."""
    weights = tmp_path / "weights"
    shutil.copytree(first, weights)
    whole = pretrain(tmp_path / "whole", *HALVES, start=weights)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        before(patch, "update", lambda engine: stop(engine) if engine.task.step == steps else None)
        pretrain(tmp_path / "killed", *HALVES, start=weights)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "killed")] == ["step-000000000.safetensors"]
    weights.rename(tmp_path / "moved")
    capsys.readouterr()
    pretrain(tmp_path / "killed", *HALVES, start=weights)
    said = capsys.readouterr().err
    assert f"{weights} cannot be opened; the run has its own checkpoint and does not need it." in said
    assert "Resuming after step 0 of 6." in said
    assert tensors(tmp_path / "killed") == tensors(whole) and timeless(tmp_path / "killed") == timeless(whole)
    assert read_config(tmp_path / "killed") == read_config(whole)
    pretrain(tmp_path / "killed", *HALVES, start=tmp_path / "moved")  # the same weights, elsewhere
    assert "is complete" in capsys.readouterr().err


def test_a_kill_before_the_first_checkpoint(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "first"
    source.symlink_to(first)
    whole = pretrain(tmp_path / "whole", start=source, online=True)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        before(patch, "save", stop)  # after the line of step 0
        pretrain(tmp_path / "killed", start=source, online=True)
    source.unlink()
    with pytest.raises(MatrixSSLError, match=r"first.*has no checkpoint yet, so it still needs these weights\.$"):
        pretrain(tmp_path / "killed", start=source, online=True)
    source.symlink_to(first)
    pretrain(tmp_path / "killed", start=source, online=True)
    assert tensors(tmp_path / "killed") == tensors(whole) and timeless(tmp_path / "killed") == timeless(whole)


def test_different_weights_are_a_different_run(first: Path, tmp_path: Path) -> None:
    pretrain(tmp_path / "r", start=first)
    other = pretrain(tmp_path / "other", "seed=1")
    with pytest.raises(RunFolderError, match=r"was started with other settings .*start\.sha256: "):
        pretrain(tmp_path / "r", start=other)
    with pytest.raises(RunFolderError, match="was started with other settings"):
        pretrain(tmp_path / "r", "network.width=8")
    with pytest.raises(CheckpointError, match="nowhere"):
        pretrain(tmp_path / "r", start=tmp_path / "nowhere")
    moved = [path.name for path in tmp_path.iterdir()]
    pretrain(tmp_path / "r", start=other, fresh=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*moved, "r.1"])


def test_heads_first(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first half the weights of the encoder stay, its running statistics and the heads do not."""
    states: list[dict[str, torch.Tensor]] = []
    before(monkeypatch, "update", lambda engine: states.append(
        {name: tensor.clone() for name, tensor in engine.task.method.state_dict().items()}
    ))  # fmt: skip
    pretrain(tmp_path / "r", "optimizer.frozen_epochs=0.5", "optimizer.frozen_statistics=false", start=first)
    weights = {name for name, _ in load_encoder(first).named_parameters()}
    changed = [
        {name for name in now if not now[name].equal(earlier[name])} for earlier, now in itertools.pairwise(states)
    ]
    for step, names in enumerate(changed):
        moved = {name.removeprefix("encoder.") for name in names if name.startswith("encoder.")}
        assert bool(moved & weights) is (step >= 3)
        assert any(name.endswith("running_mean") for name in moved)
        assert "projector.0.weight" in names


def test_the_encoder_learns_at_last(first: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.frozen_epochs=1 leaves none of the 1 epochs for the encoder"):
        pretrain(tmp_path / "r", "epochs=1", "optimizer.frozen_epochs=1", start=first)
    with pytest.raises(ConfigError, match=r"frozen_epochs=0\.95 leaves none of the 1 epochs .* at \d steps? an epoch"):
        pretrain(tmp_path / "r", "epochs=1", "optimizer.frozen_epochs=0.95", start=first)  # the last step, rounded
    assert not (tmp_path / "r").exists()


def test_statistics_that_stay(first: Path, tmp_path: Path) -> None:
    """Student and teacher normalise by the running statistics of the start; heads by the batch."""
    run = pretrain(tmp_path / "r", *WHOLE, start=first, online=True)
    newest, _ = checkpoint.load_newest(run)
    assert newest is not None
    running = {name: t for name, t in load_encoder(first).state_dict().items() if "running" in name or "num_b" in name}
    for part in ("encoder.", "teacher.encoder."):
        assert all(newest.model[part + name].equal(tensor) for name, tensor in running.items())
    assert not newest.model["encoder.stem.0.weight"].equal(load_encoder(first).state_dict()["stem.0.weight"])
    assert int(newest.model["projector.1.num_batches_tracked"]) == 2 * (newest.step + 8 - 2)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("network.width=16",), "network.width=16: this makes a different network than that of {first}"),
        (("data.image_size=16",), "data.image_size=16: this makes a different network than that of {first}"),
        (("data.mean=0.5,0.5,0.5", "data.std=1,1,1"), "data.mean=.*this makes a different network"),
        (("network.encoder=resnet18",), "network.encoder='resnet18': the run {first} has 'tiny_resnet'"),
    ],
)
def test_settings_that_do_not_fit_the_weights(first: Path, tmp_path: Path, settings: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message.format(first=first)):
        pretrain(tmp_path / "r", *settings, start=first)
    assert files(tmp_path) == []


def test_files_that_hold_no_fitting_encoder(tmp_path: Path) -> None:
    colour = open_encoder("random/tiny_resnet", image_size=32).encoder.state_dict()
    torch.save(colour, tmp_path / "colour.pth")
    save_file({"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}, tmp_path / "head.safetensors")
    torch.save({name: tensor for name, tensor in colour.items() if "blocks.0" not in name}, tmp_path / "part.pth")
    kept = files(tmp_path)
    for name, settings, kind, message in (
        ("head.safetensors", (), CheckpointError, "has no known encoder: none of its 2 tensors"),
        ("colour.pth", (), CheckpointError, "read as resnet18, matches 1 of 120 tensors"),
        ("colour.pth", ("network.encoder=tiny_resnet",), ConfigError,
         "'digits' has 1-channel images, but the encoder of .*colour.pth takes 3-channel images"),
        ("part.pth", ("network.encoder=tiny_resnet",), CheckpointError, "matches 60 of 72 tensors"),
        ("absent.pth", (), CheckpointError, "absent.pth"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            pretrain(tmp_path / "r", *settings, start=tmp_path / name)
        assert files(tmp_path) == kept


def test_only_pretraining_starts_from_weights(first: Path) -> None:
    config = configure("demo", None, assignments(first))
    source = open_source("digits", split="train", data_root=None)
    with pytest.raises(ConfigError, match="this command starts no training from weights"):
        setup.prepare(config, source=source, device=CPU, display=Display(quiet=True))


def test_the_guard_speaks_where_the_features_became_worse(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnlineEvaluation, "moments", 2)
    good = pretrain(tmp_path / "good", "optimizer.learning_rate=1e-5", *WHOLE, start=first, online=True)
    assert "Worse than the start" not in capsys.readouterr().err
    bad = pretrain(tmp_path / "bad", "optimizer.learning_rate=3", *WHOLE, start=first, online=True)
    assert capsys.readouterr().err.count("Worse than the start: 20 nearest neighbours were right on") == 1
    for run in (good, bad):
        lines = timeless(run)
        assert lines[0].keys() == {"step", "epoch", "online_knn"} and lines[0]["step"] == 0
        assert lines[0]["online_knn"] == timeless(good)[0]["online_knn"]
        alarms = [text for line in lines for text in line.get("alarm", []) if text.startswith("Worse than the start")]
        assert len(alarms) == (run == bad)
    page = write_report(bad).read_text()
    assert "Worse than the start" in page and f"<dd>{first}</dd>" in page
    export(bad, form="safetensors")
    origin = f"| Started from | {first}, SHA-256 {read_config(bad).start.sha256}: "
    assert origin in (bad / "export.safetensors.md").read_text()


def test_the_verdict_is_that_of_mcnemar() -> None:
    """Two standard deviations of the images that only one of two encoders gets right: √33 and √34."""
    source = open_source("digits", split="train", data_root=None)
    online = OnlineEvaluation(source, DataConfig(image_size=8, mean=(0.5,), std=(0.5,)), device=CPU)
    assert online.verdict() == [] and online.state_dict() == {}
    for lost, gained, spoken in ((22, 11, False), (23, 11, True), (11, 24, False), (0, 0, False)):
        right = torch.tensor([True] * (100 + lost) + [False] * (100 + gained))
        now = torch.tensor([True] * 100 + [False] * (lost + 100) + [True] * gained)
        online.load_state_dict({"start": right})
        online._right = now
        assert bool(online.verdict()) is spoken
        assert online.state_dict()["start"].equal(right)


def test_the_command_names_its_folder_and_says_where_it_starts(first: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(first)
    command = ["pretrain", "demo", "--from", "elsewhere", "--device", "cpu", *_pairs(assignments(first))]
    ended = runs.succeed(tmp_path, command, before=BARE)
    assert ended.err.startswith("Starting from elsewhere: 36 of 36 tensors of tiny_resnet")
    assert (tmp_path / "runs" / "demo-from-elsewhere" / "encoder.safetensors").exists()


def _pairs(settings: list[str]) -> list[str]:
    return [word for each in settings if not each.startswith("start.") for word in ("--set", each)]


def test_two_processes_equal_one(first: Path, tmp_path: Path) -> None:
    settings = (*HALVES, "precision=float64")
    one = pretrain(tmp_path / "one", *settings, start=first)
    command = ["pretrain", "demo", "--from", str(first), "--out", "two", "--device", "cpu"]
    commands = runs.start_processes(tmp_path, [*command, *_pairs(assignments(first, *settings))], count=2)
    assert [each.wait().code for each in commands] == [0, 0]
    (ours, _), (theirs, _) = checkpoint.load_newest(tmp_path / "two"), checkpoint.load_newest(one)
    assert ours is not None and theirs is not None and ours.step == theirs.step == 6
    for name, tensor in theirs.model.items():
        torch.testing.assert_close(ours.model[name], tensor, rtol=1e-8, atol=1e-8)
    assert read_config(tmp_path / "two").start == read_config(one).start


def test_published_weights(tmp_path: Path) -> None:
    """EfficientNet-Lite0 as its package publishes it: the features before the first step are the published ones."""
    folder, name = os.environ.get("MATRIX_SSL_WEIGHTS"), "efficientnet-lite0-57934424.pth"
    paths = sorted(Path(folder).rglob(name)) if folder else []
    if not paths:
        pytest.skip(f"MATRIX_SSL_WEIGHTS does not name a folder with {name}")
    runs.make_images(tmp_path / "photos", 40)
    words = ["start.reference=" + str(paths[0]), "data.image_size=32", "batch_size=8", "epochs=1", "log_every=1",
             "checkpoint_every=3", "method.hidden_dim=32", "method.output_dim=16", "data.workers=0"]  # fmt: skip
    chosen = [split_assignment(word)[0] for word in words]
    config = configure("images", str(tmp_path / "photos"), words)
    start = start_from(config, chosen=chosen, run=None)
    source = open_source(str(tmp_path / "photos"), split="train", data_root=None)
    training = setup.prepare(start.config, source=source, device=CPU, display=Display(quiet=True), start=start.tensors)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    published = open_encoder(paths[0]).encoder.to(memory_format=torch.channels_last)
    assert torch.equal(training.method.encoder.eval()(images), published(images))
    assert start.config.start.tensors == 294 and start.config.start.sha256.startswith("57934424")

    train(config, tmp_path / "whole", chosen=chosen, report=False, device="cpu")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        before(patch, "update", lambda engine: stop(engine) if engine.task.step == 4 else None)
        train(config, tmp_path / "killed", chosen=chosen, report=False, device="cpu")
    train(config, tmp_path / "killed", chosen=chosen, report=False, device="cpu")
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["network"]["encoder"].startswith("timm/tf_")
