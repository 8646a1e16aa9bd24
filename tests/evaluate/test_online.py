"""Accuracy during training: the training does not notice, and the numbers are those of an evaluation afterwards."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from matrix_ssl.config import DataConfig
from matrix_ssl.data import open_source
from matrix_ssl.encoder import load_encoder
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.features import extract
from matrix_ssl.evaluate.online import OnlineEvaluation
from matrix_ssl.evaluate.probes.accuracy import accuracy
from matrix_ssl.evaluate.probes.knn import knn_predict
from matrix_ssl.evaluate.trained.label_subsets import stratified
from matrix_ssl.runs.folder import read_config
from tests.support import runs
from tests.support.runs import BARE, fail, from_files, lines, make_images, succeed, tensors, tiny

CPU = torch.device("cpu")
ONLINE = {"online_train", "online_linear", "online_knn", "online_mir", "online_hdr"}


def without_online(folder: Path) -> list[dict]:
    """Metrics without times and without what the observer wrote."""
    return [{k: v for k, v in line.items() if k not in ONLINE} for line in runs.timeless(folder)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was observed."""
    folder = tmp_path_factory.mktemp("observed")
    succeed(folder, [*tiny("log_every=1", "checkpoint_every=9", epochs=2), "--online"], before=BARE)
    return folder / "r"


def test_the_training_is_the_same_to_the_bit(observed: Path, tmp_path: Path) -> None:
    succeed(tmp_path, tiny("log_every=1", "checkpoint_every=9", epochs=2), before=BARE)
    assert tensors(tmp_path / "r") == tensors(observed)
    assert without_online(tmp_path / "r") == without_online(observed)


def test_what_is_measured(observed: Path) -> None:
    found = lines(observed)
    assert all("online_train" in line for line in found)
    moments = [line["step"] for line in found if "online_knn" in line]
    assert moments[0] == 1 and moments[-1] == 44 and len(moments) == 21
    first, last = found[0], found[-1]
    assert last["online_linear"] > first["online_linear"] + 0.1
    assert 0.15 < last["online_train"] <= 1
    assert all(0 < line[name] < 1 for line in (first, last) for name in ("online_mir", "online_hdr"))

    source, data = open_source("digits", split="train", data_root=None), read_config(observed).data
    learned = stratified(source, 0.8)
    held_out = np.setdiff1d(np.arange(len(source)), learned)
    bank, queries = (
        extract({"": load_encoder(observed)}, source.subset(part), data, device=CPU, on_progress=lambda *_: None)
        for part in (learned, held_out)
    )
    expected = accuracy(knn_predict(bank.vectors[""], bank.labels, queries.vectors[""], k=20), queries.labels)
    assert last["online_knn"] == expected


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_numbers(observed: Path, tmp_path: Path) -> None:
    command = [*tiny("log_every=1", "checkpoint_every=9", epochs=2), "--online"]
    kill = (
        "import os, matrix_ssl.training.engine as e; step = e.Engine.update\n"
        "def stop(self, *rest):\n"
        f"    if self.task.step == 31: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "    return step(self, *rest)\n"
        "e.Engine.update = stop\n" + BARE
    )
    assert runs.run(tmp_path, command, before=kill).code == -signal.SIGKILL
    assert "Resuming after step 27" in succeed(tmp_path, command, before=BARE).err
    assert runs.timeless(tmp_path / "r") == runs.timeless(observed) and tensors(tmp_path / "r") == tensors(observed)


def test_it_can_be_switched_on_and_off_between_parts_of_a_run(observed: Path, tmp_path: Path) -> None:
    plain = tiny("log_every=1", "checkpoint_every=9", epochs=2)
    stop = (
        "import os, matrix_ssl.training.engine as e; step = e.Engine.update\n"
        "def stop(self, *rest):\n"
        "    if self.task.step in (20, 40) and not os.path.exists(f'stopped{self.task.step}'):\n"
        f"        open(f'stopped{{self.task.step}}', 'w').close(); os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
        "    return step(self, *rest)\n"
        "e.Engine.update = stop\n" + BARE
    )
    assert runs.run(tmp_path, plain, before=stop).code == 128 + signal.SIGTERM
    assert runs.run(tmp_path, [*plain, "--online"], before=stop).code == 128 + signal.SIGTERM
    succeed(tmp_path, plain, before=stop)
    assert tensors(tmp_path / "r") == tensors(observed)
    assert [line["step"] for line in lines(tmp_path / "r") if "online_train" in line] == list(range(22, 42))


def test_it_draws_no_random_numbers_and_leaves_what_it_is_given() -> None:
    source = open_source("digits", split="train", data_root=None)
    online = OnlineEvaluation(source, DataConfig(image_size=8, mean=(0.5,), std=(0.5,)), device=CPU)
    features = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    before, state = features.clone(), torch.get_rng_state()
    for _ in range(3):
        online.learn(features, np.arange(64))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(features, before) and not features.requires_grad


def test_labels_that_are_held_out_are_not_learned() -> None:
    source = open_source("digits", split="train", data_root=None)
    online = OnlineEvaluation(source, DataConfig(image_size=8, mean=(0.5,), std=(0.5,)), device=CPU)
    held_out = np.setdiff1d(np.arange(len(source)), stratified(source, 0.8))
    online.learn(torch.randn(len(held_out), 4), held_out)
    assert online.recent() == {} and online.state_dict() == {}


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "photos", 20)
    message = fail(tmp_path, [*from_files("photos"), "--online"])
    assert message.startswith("'photos' has no labels: put each class in a folder of its own, or name a .csv table")
    assert os.listdir(tmp_path) == ["photos"]  # noqa: PTH208
    few = open_source("digits", split="train", data_root=None).subset(range(10))
    with pytest.raises(DataError, match="too few images"):
        OnlineEvaluation(few, DataConfig(image_size=8, mean=(0.5,), std=(0.5,)), device=CPU)
