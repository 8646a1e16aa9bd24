"""Settings that save memory: mistakes, a training that is stopped and resumed, and two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from matrix_ssl.config import override
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import open_source
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.signals import Interrupted
from matrix_ssl.training import setup
from matrix_ssl.training.engine import Engine
from tests.support import runs
from tests.support.runs import BARE, TINY, timeless

SHORT = [*TINY, "data.subset=256", "epochs=1", "log_every=1", "optimizer.frozen_statistics=true"]


def prepare(*settings: str) -> Any:
    config = setup.complete(override(find_recipe("demo"), [*SHORT, *settings]))
    source = open_source("digits", split="train", data_root=None)
    return setup.prepare(config, source=source, device=torch.device("cpu"), display=Display(quiet=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["batch_parts=2", "optimizer.frozen_statistics=false"],
            "has BatchNorm, whose .* Use --set recompute_blocks=true instead",
        ),
        (["batch_parts=2", "compile=true"], "batch_parts=2 does not go together with compile=true"),
        (["recompute_blocks=true", "compile=true"], "recompute_blocks=true does not go together with compile=true"),
        (["recompute_blocks=true", "data.image_size=4"], "has no sequence of blocks of one kind"),
    ],
)
def test_mistakes(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(*settings)


def test_parts_are_the_plain_training_and_resume(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", "precision=float64")
    whole = train(tmp_path / "whole", "precision=float64", "batch_parts=3")
    for line, expected in zip(timeless(tmp_path / "whole"), timeless(tmp_path / "plain"), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    for name, tensor in plain.model.items():
        torch.testing.assert_close(whole.model[name], tensor, rtol=1e-7, atol=1e-9)

    task = prepare("precision=float64", "batch_parts=3")
    (tmp_path / "stopped").mkdir()
    engine = Engine(task, tmp_path / "stopped")
    real = engine.update

    def update(batch: Any, received: Any = ()) -> Any:
        return real(batch, [15] if task.step == 1 else received)

    engine.update = update  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        engine.run()
    resumed = train(tmp_path / "stopped", "precision=float64", "batch_parts=3")
    assert all(torch.equal(resumed.model[name], tensor) for name, tensor in whole.model.items())


def train(folder: Path, *settings: str) -> checkpoint.Checkpoint:
    folder.mkdir(exist_ok=True)
    Engine(prepare(*settings), folder).run()
    newest, _ = checkpoint.load_newest(folder)
    assert newest is not None and newest.step == 4
    return newest


def test_two_processes_in_parts_are_one(tmp_path: Path) -> None:
    settings = [*SHORT, "precision=float64", "batch_parts=2"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = ["pretrain", "demo", "--out", "two", "--device", "cpu", *words]
    commands = runs.start_processes(tmp_path, command, count=2, before=BARE)
    assert [each.wait().code for each in commands] == [0, 0]
    one = train(tmp_path / "one", "precision=float64")
    two, _ = checkpoint.load_newest(tmp_path / "two")
    assert two is not None
    for name, tensor in one.model.items():
        torch.testing.assert_close(two.model[name], tensor, rtol=1e-7, atol=1e-8)
