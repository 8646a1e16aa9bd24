"""Held-out rows and the checkpoint that they choose, in runs that are stopped and resumed."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from matrix_ssl.llm.finetune.trainer import Recorder
from matrix_ssl.runs.files import read_json, read_lines
from matrix_ssl.runs.signals import Interrupted
from tests.llm.test_finetune import command, sets, weights, write
from tests.support import llm_toys

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PLATEAU = ("lr_scheduler_type=reduce_lr_on_plateau", 'lr_scheduler_kwargs={"patience": 0}')


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Words of a run of 6 steps an epoch, whose loss of other rows is lowest at step 2 and rises after it."""
    folder = tmp_path_factory.mktemp("data")
    others = [{"question": f"Ann has {i} pens?", "answer": "XYZ QQ!"[: 3 + i]} for i in range(4)]
    return ["--model", llm_toys.save_llama(folder / "base"), "--template", "plain",
            "--data", write(folder / "sums.jsonl", llm_toys.questions(24)),
            "--eval-data", write(folder / "others.jsonl", others),
            *sets("batch_size=4", "epochs=1", "learning_rate=0.05", "lr_scheduler_type=constant")]  # fmt: skip


def stop_once(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Sends SIGTERM in the step ``at`` of the next training."""
    begin = Recorder.on_step_begin

    def interrupt(self: Recorder, args: Any, state: Any, control: Any, **more: Any) -> None:
        begin(self, args, state, control, **more)
        if state.global_step == at - 1:
            monkeypatch.setattr(Recorder, "on_step_begin", begin)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "on_step_begin", interrupt)


def kept(run: Path) -> Any:
    return read_json(run / "finetune.json")["held_out"]["kept"]


@pytest.mark.parametrize(
    ("at", "settings"),
    [
        (2, ()),
        (6, ("epochs=2",)),
        (6, ("epochs=2", "save_strategy=no", *PLATEAU)),
        (4, ("max_steps=4",)),
        (5, ("save_strategy=best", "eval_strategy=steps", "eval_steps=1")),
    ],
    ids=["within an epoch", "at its end", "and the rate follows the measures", "at the last step", "not the best"],
)
def test_a_stopped_run_measures_and_keeps_what_an_uninterrupted_one_does(at, settings, words, tmp_path, monkeypatch):
    command(*words, *sets(*settings), "--out", tmp_path / "through")
    stop_once(monkeypatch, at=at)
    stopped = [*words, *sets(*settings), "--out", tmp_path / "stopped"]
    with pytest.raises(Interrupted, match=f"after a checkpoint at step {at}"):
        command(*stopped)
    assert (tmp_path / "stopped" / "checkpoints" / f"checkpoint-{at}").exists()
    command(*stopped)
    through, again = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("through", "stopped"))
    assert again == through
    for name, tensor in weights(tmp_path / "through").items():
        assert torch.equal(weights(tmp_path / "stopped")[name], tensor), name
    assert kept(tmp_path / "stopped") == kept(tmp_path / "through")


@pytest.mark.parametrize("settings", [("eval_strategy=steps", "eval_steps=2"), ("save_strategy=no",), ()])
def test_the_model_that_is_kept_is_measured_also_if_the_training_ends_before_the_first_measurement(
    settings, words, tmp_path, capsys
):
    command(*words, *sets("eval_delay=100", *settings), "--out", tmp_path / "r")
    lines = [line for line in read_lines(tmp_path / "r" / "metrics.jsonl") if "eval_loss" in line]
    assert [line["step"] for line in lines] == [0, 6]
    assert kept(tmp_path / "r") == lines[-1] and lines[0]["eval_loss"] != lines[-1]["eval_loss"]
    assert "at step 6, the model that is kept" in " ".join(capsys.readouterr().err.split())


def test_the_model_that_is_kept_is_named_also_where_the_best_checkpoint_is_lost(words, tmp_path, monkeypatch):
    run = [*words, *sets("save_strategy=steps", "save_steps=2"), "--out", tmp_path / "run"]
    stop_once(monkeypatch, at=4)
    with pytest.raises(Interrupted):
        command(*run)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    command(*run)
    measured = {line["step"]: line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line}
    assert min(measured, key=lambda step: measured[step]["eval_loss"]) == 2
    assert kept(tmp_path / "run") == measured[6]
