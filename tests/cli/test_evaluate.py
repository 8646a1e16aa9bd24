"""``matrix-ssl evaluate`` as a whole: what it writes, what it keeps, how it goes on, what it refuses."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from matrix_ssl.runs.files import read_json, write_json
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "knm"], "--protocol 'knm' does not exist. Did you mean 'knn'?"),
        (["--protocol", ","], "--protocol is empty. Choose from knn, linear"),
        (["--set", "linear_sgd.epoch=3"], "Unknown setting 'linear_sgd.epoch'. Did you mean 'linear_sgd.epochs'?"),
        (["--set", "fine_tune.rates=1,2,3"], "fine_tune.rates"),
        (["--label-list", "names.txt"], "--label-list is for --protocol semi-supervised."),
        (["--protocol", "semi-supervised", "--label-list", "names.txt"], "names.txt does not exist."),
    ],
)
def test_mistakes(run: Path, arguments: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert message in fail(run.parent, ["evaluate", "r", "--device", "cpu", *arguments])
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_run_without_images_asks_for_some(run: Path) -> None:
    config = read_json(run / "config.json")
    config["data"]["source"] = ""
    write_json(run / "config.json", config)
    assert fail(run.parent, evaluate("knn")) == "r does not name a dataset: give --data FOLDER."
