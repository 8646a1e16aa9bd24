"""``matrix-ssl evaluate`` as a whole: what it writes, what it keeps, how it goes on, what it refuses."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from matrix_ssl.api import evaluation
from matrix_ssl.config import override
from matrix_ssl.data import open_source
from matrix_ssl.encoder import architectures, load_encoder
from matrix_ssl.evaluate import protocols
from matrix_ssl.evaluate.features import extract
from matrix_ssl.evaluate.probes.knn import knn_predict
from matrix_ssl.evaluate.trained.protocols import EvaluationSettings
from matrix_ssl.runs.checkpoint import digest, encode, read_safetensors
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.runs.folder import identity, read_config
from tests.support import runs
from tests.support.runs import BARE, fail, from_files, make_images, succeed, tiny

QUICK = ["linear_sgd.epochs=8", "linear_sgd.batch_size=128", "linear_sgd.optimizer=sgd", "linear_sgd.rate=10",
         "linear_sgd.view.crop_scale=1,1", "linear_sgd.view.flip=0",
         "fine_tune.epochs=1", "semi_supervised.epochs=2", "semi_supervised.rates=0.01,0.5"]  # fmt: skip


def evaluate(*protocols: str, settings: list[str] = QUICK) -> list[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return ["evaluate", "r", "--device", "cpu", "--protocol", ",".join(protocols), *words]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run ``r`` on handwritten digits."""
    folder = tmp_path_factory.mktemp("done")
    succeed(folder, tiny(epochs=2), before=BARE)
    return folder


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(done / "r", tmp_path / "r")
    return tmp_path / "r"


def test_protocols_that_train(run: Path) -> None:
    ended = succeed(run.parent, evaluate("linear", "linear-sgd", "semi-supervised", "fine-tune"), before=BARE)
    folder = run / "evaluation" / "digits"
    for name in ("linear-sgd", "fine-tuned, 1 %", "fine-tuned, 10 %", "fine-tuned, all", "linear-sgd minus linear"):
        assert name in ended.out + ended.err
    probe = read_json(folder / "linear-sgd.json")["measures"]["linear_sgd"]
    assert probe["accuracy"] > 0.3  # guessing gives a tenth
    assert [line["epoch"] for line in probe["curve"]] == list(range(1, 9)) and probe["settings"]["batch_size"] == 128
    few = read_json(folder / "semi-supervised.json")["measures"]
    assert (few["semi_supervised_1"]["labelled"], few["semi_supervised_10"]["labelled"]) == (10, 142)
    listed = {name: set((folder / f"{name}.txt").read_text().split()) for name in few}
    assert listed["semi_supervised_1"] < listed["semi_supervised_10"]
    against = read_json(folder / "linear-sgd-against-linear.json")
    first, second = (np.load(folder / f"{name}.npz")[name.replace("-", "_")][0] for name in ("linear-sgd", "linear"))
    answers = np.load(folder / "linear.npz")["labels"]
    assert against["difference"] == pytest.approx((first == answers).mean() - (second == answers).mean())
    assert not (folder / "training").exists() and not (folder / "features").exists()

    again = succeed(run.parent, evaluate("linear-sgd"), before=BARE)
    assert "linear-sgd has been measured on 'digits': --fresh measures it again." in again.err
    assert "step" not in again.err
    fresh = succeed(run.parent, [*evaluate("linear-sgd"), "--fresh"], before=BARE)
    assert "step" in fresh.err
    assert read_json(folder / "linear-sgd.json")["measures"]["linear_sgd"]["accuracy"] == probe["accuracy"]
    stored = [*evaluate("semi-supervised"), "--label-list", str(folder / "semi_supervised_10.txt")]
    succeed(run.parent, stored, before=BARE)
    by_list = read_json(folder / "semi-supervised.json")["measures"]["semi_supervised_list"]
    assert by_list["labelled"] == 142 and by_list["accuracy"] == few["semi_supervised_10"]["accuracy"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_stopped_training_goes_on_and_ends_alike(run: Path, done: Path, number: int) -> None:
    stop = (
        "import os, matrix_ssl.training.engine as e; step = e.Engine.update\n"
        "e._SECONDS_BETWEEN_CHECKPOINTS = 0.0\n"
        "def stop(self, *rest):\n"
        f"    if self.task.step == 14: os.kill(os.getpid(), {int(number)})\n"
        "    return step(self, *rest)\n"
        "e.Engine.update = stop\n" + BARE
    )
    command = evaluate("linear-sgd")
    ended = runs.run(run.parent, command, before=stop)
    assert ended.code == (128 + number if number == signal.SIGTERM else -number), ended.err
    assert not (run / "evaluation" / "digits" / "linear-sgd.json").exists()
    assert "Resuming after step" in succeed(run.parent, command, before=BARE).err
    undisturbed = run.parent / "undisturbed"
    shutil.copytree(done / "r", undisturbed / "r")
    succeed(undisturbed, command, before=BARE)
    one, other = (np.load(r / "evaluation" / "digits" / "linear-sgd.npz") for r in (run, undisturbed / "r"))
    assert one["linear_sgd"].tolist() == other["linear_sgd"].tolist()


def test_other_images_leave_the_page_of_the_run_alone(tmp_path: Path) -> None:
    for name in ("insects/ant", "insects/bee", "birds/train/owl", "birds/train/jay", "birds/val/owl", "birds/val/jay"):
        make_images(tmp_path / name, 20)
    succeed(tmp_path, from_files("insects"), before=BARE)
    succeed(tmp_path, evaluate("knn"), before=BARE)
    run = tmp_path / "r"
    before = (run / "summary.json").read_bytes(), (run / "evaluation.npz").read_bytes()
    ended = succeed(tmp_path, [*evaluate("transfer", "knn"), "--data", "birds"], before=BARE)
    assert "transfer" in ended.out and "40 test images of 2 classes" in ended.out
    found = read_json(run / "evaluation" / "birds" / "transfer.json")["measures"]["transfer"]
    assert found["classes"].keys() == {"owl", "jay"} and found["settings"].keys() == {"l2"}
    assert before == ((run / "summary.json").read_bytes(), (run / "evaluation.npz").read_bytes())


def test_public_encoders_beside_that_of_the_run(run: Path) -> None:
    """A copy of the run, and one that takes larger images, stand for encoders of other people."""
    for name, size in (("same", 8), ("large", 12)):
        shutil.copytree(run, run.parent / name)
        config = read_json(run / "config.json")
        config["data"]["image_size"] = size
        write_json(run.parent / name / "config.json", config)
        tensors, metadata = read_safetensors(run / "encoder.safetensors")
        kept = {key: value for key, value in metadata.items() if key != "sha256"}
        owner = {**kept, "run": identity(run.parent / name)}
        (run.parent / name / "encoder.safetensors").write_bytes(encode(tensors, owner))
    public = ["--baseline", "same", "--baseline", "large", "--baseline-size", "both"]
    ended = succeed(run.parent, [*evaluate("knn"), *public])
    assert "Baseline large, 12 px: " in ended.err and "This encoder minus public encoders on digits" in ended.out
    values = read_json(run / "evaluation" / "digits" / "knn.json")
    assert list(values["public"]) == ["same, 8 px", "large, 12 px", "large, 8 px"]
    for one in values["public"].values():
        assert one["sha256"] == digest(load_encoder(run).state_dict()) and one["feature_seconds"] > 0
        assert "tensors of tiny_resnet" in one["tensors"] and one["measures"].keys() == values["measures"].keys()
    most = 1 - 0.025 ** (1 / 360)  # of the images that may have another difference, where all 360 have none
    for name in ("same, 8 px", "large, 8 px"):
        assert all(
            d == {"difference": 0, "interval": pytest.approx([-most, most]), "draws": 1, "p": 1}
            for d in values["public"][name]["differences"].values()
        )

    data = override(read_config(run), ["data.image_size=12"]).data
    train, test = (
        extract({"": load_encoder(run)}, open_source("digits", split=split, data_root=None), data,
                device=torch.device("cpu"))
        for split in ("train", "test")
    )  # fmt: skip
    right = knn_predict(train.vectors[""], train.labels, test.vectors[""], k=20) == test.labels
    large, stored = values["public"]["large, 12 px"], np.load(run / "evaluation" / "digits" / "knn.npz")
    assert large["measures"]["knn_20"]["accuracy"] == pytest.approx(right.double().mean().item())
    gain = (stored["knn_20"][0] == stored["labels"]).astype(float) - right.numpy()
    difference = large["differences"]["knn_20"]
    assert difference["difference"] == pytest.approx(gain.mean()) and gain.any()
    half = 1.96 * gain.std() / len(gain) ** 0.5  # the normal approximation of the paired bootstrap
    assert difference["interval"] == pytest.approx([gain.mean() - half, gain.mean() + half], abs=0.2 * half)

    for name, measures in values["baselines"].items():
        for key, paired in values["differences"][name].items():
            expected = values["measures"][key]["accuracy"] - measures[key]["accuracy"]
            assert paired["difference"] == pytest.approx(expected) and 0 <= paired["p"] <= 1

    assert "large, 12 px" in (run / "report.html").read_text()
    succeed(run.parent, ["export", "r", "--format", "safetensors", "--out", "e.safetensors"])
    card = (run.parent / "e.safetensors.md").read_text()
    assert "minus public encoders" in card and "| large, 12 px |" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "knm"], "--protocol 'knm' does not exist. Did you mean 'knn'?"),
        (["--protocol", ","], "--protocol is empty. Choose from knn, linear"),
        (["--set", "linear_sgd.epoch=3"], "Unknown setting 'linear_sgd.epoch'. Did you mean 'linear_sgd.epochs'?"),
        (["--set", "fine_tune.rates=1,2,3"], "fine_tune.rates"),
        (["--baseline", "absent"], "absent"),
        (["--baseline", "r", "--baseline", "r"], "--baseline r is given twice"),
        (["--baseline", "r", "--protocol", "fine-tune"], "--baseline is for the protocols on frozen features"),
        (["--label-list", "names.txt"], "--label-list is for --protocol semi-supervised."),
        (["--protocol", "semi-supervised", "--label-list", "names.txt"], "names.txt does not exist."),
    ],
)
def test_mistakes(run: Path, arguments: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert message in fail(run.parent, ["evaluate", "r", "--device", "cpu", *arguments])
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_an_untrained_encoder_is_its_own_baseline_and_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos/ant", "photos/bee"):
        make_images(tmp_path / name, 10)
    networks: list[list[str]] = []
    monkeypatch.setattr(architectures, "IMAGE_SIZE", 24)
    monkeypatch.setattr(protocols, "extract", lambda of, *a, **o: (networks.append([*of]), extract(of, *a, **o))[1])
    evaluation.evaluate(
        "random/tiny_resnet", str(tmp_path / "photos"), out=tmp_path / "r", protocols=["knn"],
        settings=EvaluationSettings(), quiet=True, report=False, device="cpu",
    )  # fmt: skip
    assert networks == [["encoder", "raw_pixels"]] * 2
    values = read_json(tmp_path / "r" / "evaluation" / "photos" / "knn.json")
    untrained = values["baselines"]["random_network"]
    assert untrained.keys() == values["measures"].keys()
    assert all(untrained[name]["accuracy"] == one["accuracy"] for name, one in values["measures"].items())
    assert {one["difference"] for one in values["differences"]["random_network"].values()} == {0}


def test_why_there_are_no_labels_is_said_once(tmp_path: Path) -> None:
    for name in ("photos/train", "photos/train/ant", "photos/train/bee", "photos/test", "photos/test/ant"):
        make_images(tmp_path / name, 2)
    words = ["evaluate", "random/tiny_resnet", "--data", "photos", "--out", "r", "--device", "cpu"]
    ended = succeed(tmp_path, words, before=BARE)
    assert ended.err.count("no labels") == ended.err.count("Writing only the embedding map") == 1
    assert "train has no labels: 2 of 6 images are beside the class folders" in ended.err


def test_a_run_without_images_asks_for_some(run: Path) -> None:
    config = read_json(run / "config.json")
    config["data"]["source"] = ""
    write_json(run / "config.json", config)
    assert fail(run.parent, evaluate("knn")) == "r does not name a dataset: give --data FOLDER."
