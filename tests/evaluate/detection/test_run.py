"""Whole detection runs: what is written, resuming to the bit, signals, several processes, and what goes wrong."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.files import read_lines
from tests.support import runs
from tests.support.drawn_coco import THINLY, arguments, write_set
from tests.support.runs import PATIENCE, check_failure, fail, lines, start, start_processes, succeed

EPOCHS = "epochs=4"  # 12 iterations
SMALL = ("precise_bn=0", "train_sizes=64", "test_size=64", "regions=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    ended = succeed(folder, arguments(data, EPOCHS), before=THINLY)
    assert "Average precision in % on 3 images" in ended.out and "2 of 2 classes" in ended.out
    return folder / "r"


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def content(run: Path) -> dict[str, Any]:
    """Everything that the clock does not decide: weights and moments, lines of metrics, detections, scores."""
    found, problems = checkpoint.load_newest(run)
    assert found is not None and not problems
    moments = {f"{i}.{k}": v for i, state in found.optimizer["state"].items() for k, v in state.items()}
    timeless = [
        {k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "run")} for line in lines(run)
    ]
    scores = {k: v for k, v in result(run).items() if "second" not in k and k not in ("places", "environment")}
    return {
        "tensors": {k: v.numpy().tobytes() for k, v in {**found.model, **moments}.items()},
        "detector": (run / "detector.safetensors").read_bytes(),
        "predictions": (run / "predictions.json").read_text(),
        "metrics": timeless,
        "scores": scores,
    }


@pytest.mark.parametrize("architecture", ["c4", pytest.param("fpn", marks=pytest.mark.slow)])
def test_boxes_alone(tmp_path: Path, data: Path, architecture: str) -> None:
    """Annotations without masks are learned from and scored."""
    for name in ("train", "val"):
        value = json.loads((data / f"{name}.json").read_text())
        value["annotations"] = [{**one, "segmentation": []} for one in value["annotations"]]
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "train").symlink_to(data / "train")
    (tmp_path / "val.tar").symlink_to(data / "val.tar")
    words = arguments(tmp_path, "epochs=1", *SMALL, architecture=architecture)
    ended = succeed(tmp_path, [*words, "--no-masks"], before=THINLY)
    assert f"Faster R-CNN {architecture}" in ended.err and "mask" not in ended.out
    found = result(tmp_path / "r")
    assert "mask" not in found and set(found["interval_95"]) == {"box"} and found["box"]["AR_100"] is not None
    assert "segmentation" not in (tmp_path / "r/predictions.json").read_text()
    assert "loss_mask" not in lines(tmp_path / "r")[0]


@pytest.mark.parametrize(
    ("before", "architecture", "parameters"),
    [(THINLY, "thin", 1e5), pytest.param("", "resnet18", 1.1e7, marks=pytest.mark.slow)],
)
def test_a_run_writes_everything(tmp_path: Path, data: Path, before: str, architecture: str, parameters: float) -> None:
    ended = succeed(tmp_path, arguments(data, "epochs=1", "checkpoint_every=9", *SMALL), before=before)
    assert architecture in ended.err and "3 iterations of batch 2" in ended.err
    run = tmp_path / "r"
    assert {p.name for p in run.iterdir()} >= {
        "result.json", "predictions.json", "detections.png", "detector.safetensors", "metrics.jsonl", "config.json",
        "environment.json", "checkpoints",
    }  # fmt: skip
    found = result(run)
    assert found["finished"] and found["iterations"] == 3 and found["bad_steps"] == 0 and found["images"] == 3
    assert set(found["box"]) == set(found["mask"]) and 0 <= found["box"]["AP"] <= 1
    assert [(row["id"], row["name"], row["objects"]) for row in found["per_class"]] == [
        (3, "disc", 3),
        (7, "square", 3),
    ]
    assert found["counts"]["train"]["instances"] == 12 and found["counts"]["val"]["instances"] == 6
    assert found["settings"]["batch_size"] == 2 and found["encoder"]["architecture"] == architecture
    assert len(found["encoder"]["sha256"]) == 64 and found["environment"]["device"] == "cpu"
    assert found["images_per_second"] > 0 and found["parameters"] > parameters
    with Image.open(run / "detections.png") as image:
        assert image.width == 968 and image.height > 3 * 400
    for item in json.loads((run / "predictions.json").read_text()):
        assert item.keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
        assert item["image_id"] in (100, 101, 102) and item["category_id"] in (3, 7)
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    assert lines(run)[-1]["loss"] == pytest.approx(sum(lines(run)[-1][k] for k in lines(run)[-1] if k[:5] == "loss_"))


class TestAgain:
    def test_the_same_command_says_that_it_is_complete(self, whole: Path, data: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
        ended = succeed(whole.parent, arguments(data, EPOCHS, "workers=0", "log_every=7"), before=THINLY)
        assert "r is complete. Use --fresh to start over." in ended.err and "Average precision" in ended.out
        assert {path: path.stat().st_mtime_ns for path in before} == before

    @pytest.mark.parametrize(
        ("change", "message"),
        [("learning_rate=0.5", "settings.learning_rate: 0.08 -> 0.5"), ("seed=1", "settings.seed: 0 -> 1")],
    )
    def test_other_settings_are_refused(self, whole: Path, data: Path, change: str, message: str) -> None:
        error = fail(whole.parent, arguments(data, EPOCHS, change), before=THINLY)
        assert message in error and "choose another folder, or use --fresh" in error

    def test_other_annotations_are_refused(self, whole: Path, tmp_path: Path) -> None:
        other = write_set(tmp_path)
        succeed(whole.parent, arguments(other, EPOCHS), before=THINLY)  # the same images in another place
        (other / "val.json").write_text((other / "val.json").read_text() + " ")
        error = fail(whole.parent, arguments(other, EPOCHS), before=THINLY)
        assert "val.annotations_sha256" in error

    @pytest.mark.slow  # quick: cli/test_main.py
    def test_a_fresh_start_keeps_the_old_run(self, tmp_path: Path, data: Path) -> None:
        succeed(tmp_path, arguments(data, "epochs=0.4", "precise_bn=0"), before=THINLY)
        ended = succeed(tmp_path, [*arguments(data, "epochs=0.7", "precise_bn=0"), "--fresh"], before=THINLY)
        assert "Kept the previous run as r.1" in ended.err
        assert (result(tmp_path / "r.1")["iterations"], result(tmp_path / "r")["iterations"]) == (1, 2)

    @pytest.mark.slow
    def test_another_seed_is_another_run(self, tmp_path: Path, whole: Path, data: Path) -> None:
        succeed(tmp_path, [*arguments(data, "epochs=0.4", "precise_bn=0"), "--seed", "1"], before=THINLY)
        assert lines(tmp_path / "r")[0]["loss"] != lines(whole)[0]["loss"]


def wait_for_lines(run: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError("no line came")


# a step takes long enough for a signal to arrive in it
SLOWLY = (
    f"{THINLY}\nimport time, matrix_ssl.training.engine as e; real = e.Engine.update\n"
    "def slow(self, *rest): time.sleep(0.1); return real(self, *rest)\ne.Engine.update = slow"
)


class TestResuming:
    @pytest.mark.slow  # quick: a kill after the training, whose resumed run has the bits of another
    def test_the_same_seed_gives_the_same_bits(self, tmp_path: Path, whole: Path, data: Path) -> None:
        succeed(tmp_path, arguments(data, EPOCHS, "workers=0"), before=THINLY)
        mine, expected = content(tmp_path / "r"), content(whole)
        for each in (mine, expected):
            del each["scores"]["settings"]["workers"]
        assert mine == expected

    @pytest.mark.slow  # quick: one kill, after the training; in the middle: training/test_engine.py
    def test_kills_leave_no_trace(self, tmp_path: Path, whole: Path, data: Path) -> None:
        resumed = []
        for count in (1, 4, 7, 9):
            command = start(tmp_path, arguments(data, EPOCHS), before=SLOWLY)
            wait_for_lines(tmp_path / "r", count)
            command.send(signal.SIGKILL)
            ended = command.wait()
            assert ended.code == -signal.SIGKILL, ended.err
            resumed += [line for line in ended.err.splitlines() if line.startswith("Resuming after")]
        assert len(set(resumed)) >= 2, resumed
        succeed(tmp_path, arguments(data, EPOCHS), before=THINLY)
        assert content(tmp_path / "r") == content(whole)
        assert not list((tmp_path / "r").rglob("*.tmp"))

    @pytest.mark.slow  # quick: training/test_engine.py
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_after_a_checkpoint(self, tmp_path: Path, whole: Path, data: Path, number: int) -> None:
        command = start(tmp_path, arguments(data, EPOCHS, "checkpoint_every=100"), before=SLOWLY)
        wait_for_lines(tmp_path / "r", 3)
        command.send(number)
        ended = command.wait()
        assert ended.code == 128 + number, ended.err
        assert f"Stopped by {signal.Signals(number).name} after step" in check_failure(ended)
        found, _ = checkpoint.load_newest(tmp_path / "r")
        assert found is not None and 3 <= found.step < 12
        succeed(tmp_path, arguments(data, EPOCHS), before=THINLY)
        assert content(tmp_path / "r") == content(whole)

    @pytest.mark.slow
    def test_a_kill_after_the_training_scores_again(self, tmp_path: Path, whole: Path, data: Path) -> None:
        killed = "import os, matrix_ssl.evaluate.detection.run as r; r.score = lambda *_, **__: os.kill(os.getpid(), 9)"
        dying = f"{THINLY}\n{killed}"
        command = start(tmp_path, arguments(data, EPOCHS), before=dying)
        assert command.wait().code == -signal.SIGKILL and not (tmp_path / "r" / "result.json").exists()
        ended = succeed(tmp_path, arguments(data, EPOCHS), before=THINLY)
        assert "Resuming after step 12 of 12" in ended.err
        assert content(tmp_path / "r") == content(whole)

    @pytest.mark.slow  # quick: training/test_resume.py
    def test_one_at_a_time(self, tmp_path: Path, data: Path) -> None:
        command = start(tmp_path, arguments(data, EPOCHS), before=SLOWLY)
        wait_for_lines(tmp_path / "r", 1)
        assert "is being written by another process" in fail(tmp_path, arguments(data, EPOCHS), before=THINLY)
        command.send(signal.SIGKILL)
        command.wait()


# images of one size, and always the first two matching and eight other places instead of a random choice: then the
# mean over two processes of mean losses is that of one process
EQUAL = f"""{THINLY}
import torch
from torchvision.models.detection import _utils
def first(self, labels):
    chosen = []
    for label in labels:
        right, wrong = torch.where(label >= 1)[0][:2], torch.where(label == 0)[0][:8]
        assert len(right) == 2 and len(wrong) == 8
        chosen.append([torch.zeros_like(label, dtype=torch.uint8).index_fill(0, k, 1) for k in (right, wrong)])
    return tuple(map(list, zip(*chosen)))
_utils.BalancedPositiveNegativeSampler.__call__ = first
"""


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one size."""
    return write_set(tmp_path_factory.mktemp("even"), train=6, val=5, sizes=((88, 88),))


class TestProcesses:
    def test_two_learn_as_one(self, tmp_path: Path, even: Path) -> None:
        settings = ("epochs=0.7", "train_sizes=64", "learning_rate=0.01", "precise_bn=3")  # two iterations
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        succeed(tmp_path / "one", arguments(even, *settings), before=EQUAL)
        for command in start_processes(tmp_path / "two", arguments(even, *settings), count=2, before=EQUAL):
            ended = command.wait()
            assert ended.code == 0, ended.err
        one, two = tmp_path / "one" / "r", tmp_path / "two" / "r"
        for mine, expected in zip(lines(two), lines(one), strict=True):
            for key, value in expected.items():
                if key not in ("seconds", "images_per_second", "run"):
                    assert mine[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
        assert len(lines(one)) == 2
        ours, theirs = (checkpoint.read_safetensors(run / "detector.safetensors")[0] for run in (two, one))
        for name, tensor in theirs.items():
            assert (ours[name] - tensor).abs().max() <= 1e-4 * (1 + tensor.abs().max()), name
        assert result(two)["environment"]["processes"] == 2
        assert result(two)["box"]["AP"] == pytest.approx(result(one)["box"]["AP"], abs=0.02)

    @pytest.mark.slow
    def test_images_to_score_are_shared_out_and_the_results_gathered(self, tmp_path: Path, even: Path) -> None:
        """An untrained detector finds the same on two processes as on one."""
        frozen = f"{THINLY}\nimport matrix_ssl.training.engine as e; e.Engine.run = lambda *_: None"
        shared = ("epochs=1", "precise_bn=0", "score_threshold=0.02")
        counted = (
            f"{frozen}\nimport torchvision, matrix_ssl.evaluate.detection.predict as p; real = p.read_pixels\n"
            "def read(image, files):\n"
            " print(f'read {image.name}\\n', end='', flush=True)\n"
            " return real(image, files)\n"
            "p.read_pixels = read"
        )
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        succeed(tmp_path / "one", arguments(even, *shared), before=frozen)
        read = []
        for command in start_processes(tmp_path / "two", arguments(even, *shared), count=2, before=counted):
            ended = command.wait()
            assert ended.code == 0, ended.err
            read.append(sorted(re.findall(r"read (\S+\.png)", ended.out)))  # gloo writes to the same lines
        assert read == [["000.png", "002.png", "004.png"], ["001.png", "003.png"]]
        one, two = ((tmp_path / name / "r" / "predictions.json").read_text() for name in ("one", "two"))
        assert one == two and len(json.loads(one)) >= 5
        assert result(tmp_path / "two" / "r")["mask"] == result(tmp_path / "one" / "r")["mask"]

    def test_an_error_of_all_is_told_once(self, tmp_path: Path, even: Path) -> None:
        commands = start_processes(tmp_path, arguments(even, "batch_size=3"), count=2, before=THINLY)
        first = commands[0].wait()
        commands[1].send(signal.SIGTERM)
        commands[1].wait()
        assert first.code == 2 and "batch_size=3 is not divisible by 2 processes" in check_failure(first)


class TestFaults:
    def test_a_loss_that_is_not_finite_is_skipped_and_then_ends_the_run(self, tmp_path: Path, data: Path) -> None:
        ended = runs.run(tmp_path, arguments(data, EPOCHS, "learning_rate=1e15"), before=THINLY)
        error = check_failure(ended)
        assert "bad steps in a row: 3" in error and "Lower the learning rate" in error
        assert ended.err.count("loss or gradient is not finite") == 2
        assert not (tmp_path / "r" / "result.json").exists()

    def test_a_single_bad_iteration_is_skipped_and_counted(self, tmp_path: Path, data: Path) -> None:
        once = (
            f"{THINLY}\nimport matrix_ssl.evaluate.detection.heads as h; real = h.mask_cross_entropy; count = [0]\n"
            "def bad(*values):\n count[0] += 1\n return real(*values) * (float('nan') if count[0] == 2 else 1)\n"
            "h.mask_cross_entropy = bad"
        )
        ended = succeed(tmp_path, arguments(data, "epochs=1"), before=once)
        assert "skipped step 2" in ended.err
        assert result(tmp_path / "r")["bad_steps"] == 1
        assert [line["step"] for line in lines(tmp_path / "r")] == [1, 3]

    def test_images_that_cannot_be_used(self, tmp_path: Path) -> None:
        data = write_set(tmp_path)
        (data / "train" / "001.png").write_bytes(b"")
        (data / "val" / "002.png").write_bytes(b"GIF89a")
        words = arguments(data, "epochs=2")
        words[words.index(str(data / "val.tar"))] = str(data / "val")
        ended = succeed(tmp_path, words, before=THINLY)
        assert "Skipped " in ended.err and "002.png" in ended.err
        found = result(tmp_path / "r")
        assert found["images"] == 2
        assert [Path(item["where"]).name for item in found["unreadable"]["train"]] == ["001.png"]
        assert [Path(item["where"]).name for item in found["unreadable"]["val"]] == ["002.png"]

    def test_many_images_that_cannot_be_scored_are_named_by_their_reason_and_listed(self, tmp_path: Path) -> None:
        data = write_set(tmp_path, train=2, val=14)
        for number in range(12):
            (data / "val" / f"{number:03d}.png").write_bytes(b"")
        words = arguments(data, "epochs=1", "precise_bn=0")
        words[words.index(str(data / "val.tar"))] = str(data / "val")
        ended = runs.run(tmp_path, words, before=THINLY)
        assert ended.err.count("Skipped ") == 1 and "Skipped 12 images, such as " in ended.err
        error = check_failure(ended)
        assert "12 of 14 images cannot be read, and at most 10 may be unreadable. All are in r/skipped-val" in error
        assert len(read_lines(tmp_path / "r" / "skipped-val.jsonl")) == 12
        succeed(tmp_path, [*words, "--set", "max_unreadable=0.86"], before=THINLY)
        assert result(tmp_path / "r")["unreadable"]["val"] == read_lines(tmp_path / "r" / "skipped-val.jsonl")

    @staticmethod
    def replace(words: list[str], option: str, value: object) -> list[str]:
        words[words.index(option) + 1] = str(value)
        return words

    CHANGES: tuple[tuple[Callable[[list[str], Path], list[str]], str, int], ...] = (
        (lambda w, d: TestFaults.replace(w, "--train-annotations", d / "none.json"), "none.json: the file does not", 1),
        (lambda w, d: TestFaults.replace(w, "--val-annotations", d / "val.tar"), "val.tar is not JSON", 1),
        (lambda w, d: TestFaults.replace(w, "--train-images", d / "none"), "none does not exist; name a folder", 1),
        (lambda w, d: TestFaults.replace(w, "--train-images", d), "lacks 6 of 6 images", 1),
        (lambda w, d: TestFaults.replace(w, "--backbone", "vit_b_16"), "cannot be built on the encoder 'vit_b_16'", 2),
        (lambda w, d: TestFaults.replace(w, "--encoder", d), "", 1),
        (lambda w, d: TestFaults.replace(w, "--architecture", "c5"), "'c5' is not one of 'c4', 'fpn'", 2),
        (lambda w, d: [*w, "--schedule", "3x"], "'3x' is not one of '1x', '2x'", 2),
        (lambda w, d: [*w, "--set", "epoch=3"], "Unknown setting 'epoch'. Did you mean 'epochs'?", 2),
        (lambda w, d: [*w, "--set", "regions=1"], "regions=1: expected an integer of at least 4", 2),
        (lambda w, d: [*w[:-1], "checkpoint_every"], "write key=value", 2),
        (lambda w, d: [*w[:5], *w[7:]], "Missing option '--val-images'", 2),
    )  # fmt: skip

    @pytest.mark.parametrize("place", range(len(CHANGES)))
    def test_wrong_commands_write_nothing(self, tmp_path: Path, data: Path, place: int) -> None:
        change, message, code = self.CHANGES[place]
        error = fail(tmp_path, change(arguments(data), data), code=code)
        assert message in error, error
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_no_run(self, tmp_path: Path, data: Path) -> None:
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "thesis.txt").write_text("mine")
        assert "is not empty and has no config.json" in fail(tmp_path, arguments(data), before=THINLY)
        assert [path.name for path in (tmp_path / "r").iterdir()] == ["thesis.txt"]

    def test_without_pycocotools(self, tmp_path: Path, data: Path) -> None:
        absent = f"{THINLY}\nsys.modules['pycocotools'] = None"
        error = fail(tmp_path, arguments(data), before=absent)
        assert error.startswith("The package 'pycocotools' is not installed") and "'.[detection]'" in error
        assert list(tmp_path.iterdir()) == []
