"""A second folder of the same name with as many images is never taken for the first one."""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matrix_ssl import config
from matrix_ssl.data import open_source
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import read_config
from tests.support import comparisons, runs
from tests.support.drawn_coco import THINLY, arguments, write_set
from tests.support.runs import BARE, fail, from_files, make_images, succeed, without_identity

PROBE = ["linear_sgd.epochs=1", "linear_sgd.batch_size=8", "linear_sgd.optimizer=sgd"]


def change(path: Path) -> None:
    """Writes another image of as many bytes into a file."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # before the two bytes that end a JPEG file
    path.write_bytes(content)


def make_classes(folder: Path) -> Path:
    """Writes ten images of each of two classes."""
    for name in ("ant", "bee"):
        make_images(folder / name, 10)
    return folder


def evaluate(data: str, protocol: str) -> list[str]:
    settings = [word for setting in PROBE for word in ("--set", setting)] if protocol == "linear-sgd" else []
    return ["evaluate", "r", "--data", data, "--protocol", protocol, "--device", "cpu", *settings]


def digest(path: Path) -> str:
    return open_source(str(path), split="train", data_root=None).digest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run ``r`` on ``A/set``, and ``B/set`` with the same names and one byte that differs."""
    make_classes(tmp_path / "A" / "set")
    shutil.copytree(tmp_path / "A", tmp_path / "B")
    change(tmp_path / "B" / "set" / "ant" / "004.jpg")
    succeed(tmp_path, from_files("A/set"), before=BARE)
    return tmp_path / "r"


def test_a_run_knows_its_data_by_content(run: Path) -> None:
    folder, before = run.parent, (run / "encoder.safetensors").read_bytes()
    first, second = (digest(folder / name / "set") for name in ("A", "B"))
    assert first != second and read_config(run).data.digest == first
    message = fail(folder, from_files("B/set"))
    assert f"(data.digest: '{first}' -> '{second}' (the data are different))" in message and "--fresh" in message
    assert message.endswith("To train its encoder further on these images, start a second run from it: --from r.")
    shutil.move(folder / "A" / "set", folder / "moved")
    assert "r is complete" in succeed(folder, from_files("moved"), before=BARE).err
    assert (run / "encoder.safetensors").read_bytes() == before
    ended = succeed(folder, [*from_files("B/set"), "--fresh"], before=BARE)
    assert "r.1" in ended.err and read_config(run).data.digest == second


def test_a_run_of_an_older_version_is_accepted_if_all_else_agrees(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    del values["data"]["digest"]
    (run / "config.json").write_text(json.dumps(values))
    without_identity(run)
    assert "r is complete" in succeed(run.parent, from_files("A/set"), before=BARE).err
    succeed(run.parent, evaluate("A/set", "knn"), before=BARE)
    assert read_json(run / "evaluation" / "set" / "knn.json")["pretraining_images"]
    make_images(run.parent / "A" / "set" / "ant", 12)
    assert "data.images: 20 -> 22" in fail(run.parent, from_files("A/set"))


def test_settings_without_a_digest_agree_with_any() -> None:
    base = config.RunConfig()
    known, other = (dataclasses.replace(base, data=dataclasses.replace(base.data, digest=d)) for d in ("ab", "cd"))
    assert config.differences(base, known) == [] == config.differences(known, known)
    assert config.differences(known, other) == ["data.digest: 'ab' -> 'cd' (the data are different)"]
    assert config.changes({"val": {}}, {"val": {"images_digest": "ab"}}, but=[]) == []


def test_results_of_two_datasets_of_one_name_lie_apart(run: Path) -> None:
    folder = run.parent
    succeed(folder, evaluate("A/set", "linear-sgd"), before=BARE)
    succeed(folder, evaluate("A/set", "knn"), before=BARE)
    summary = (run / "summary.json").read_text()
    (first,) = (run / "evaluation").iterdir()
    before = comparisons.contents(first)
    for protocol in ("linear-sgd", "knn"):
        ended = succeed(folder, evaluate("B/set", protocol), before=BARE)
        assert "has been measured" not in ended.err
    second = next(path for path in (run / "evaluation").iterdir() if path != first)
    assert first.name == "set" and second.name.startswith("set-") and len(second.name) == len("set-1a2b3c4d")
    assert comparisons.contents(first) == before and comparisons.contents(second).keys() == before.keys()
    assert (run / "summary.json").read_text() == summary  # that of the images of the pre-training
    for name in ("A", "B"):
        assert (
            "linear-sgd has been measured on 'set'"
            in succeed(folder, evaluate(f"{name}/set", "linear-sgd"), before=BARE).err
        )
    change(folder / "B" / "set" / "bee" / "007.jpg")
    assert "has been measured" not in succeed(folder, evaluate("B/set", "linear-sgd"), before=BARE).err
    assert len(list((run / "evaluation").iterdir())) == 3


def test_features_say_which_dataset_they_are_of(run: Path) -> None:
    for name in ("A", "B"):
        succeed(run.parent, ["embed", "r", "--data", f"{name}/set", "--out", f"{name}.npz", "--device", "cpu"])
        with np.load(run.parent / f"{name}.npz") as found:
            assert str(found["data_digest"]) == digest(run.parent / name / "set")


@pytest.mark.slow
def test_a_comparison_knows_its_data_by_content(tmp_path: Path) -> None:
    make_classes(tmp_path / "set")
    settings = ("network.encoder=tiny_resnet", "data.image_size=16", "data.workers=0", "batch_size=8")
    words = [word for setting in (*runs.TINY, *settings) for word in ("--set", setting)]
    command = ["compare", "images", "--data", "set", "--methods", "simsiam", "--seeds", "1", "--trials", "1",
               "--budget", "1", "--out", "c", "--device", "cpu", "--jobs", "1", *words]  # fmt: skip
    comparisons.compare(tmp_path, command)
    assert "(2 done)" in comparisons.compare(tmp_path, command).err
    change(tmp_path / "set" / "ant" / "004.jpg")
    message = comparisons.fail(tmp_path, command)
    assert message.startswith("c has compared other images (") and "_digest: " in message
    path = tmp_path / "c" / "compare.json"
    results = json.loads(path.read_text())
    del results["data"]["train_digest"], results["data"]["test_digest"]  # as an older version wrote it
    path.write_text(json.dumps(results))
    comparisons.compare(tmp_path, command)


@pytest.mark.parametrize("part", [pytest.param("train", marks=pytest.mark.slow), "val"])
def test_a_detection_run_knows_its_images_by_content(tmp_path: Path, part: str) -> None:
    data = write_set(tmp_path / "data")
    command = arguments(data, "epochs=0.4", "precise_bn=0")
    succeed(tmp_path, command, before=THINLY)
    image = data / part / "001.png"
    Image.open(image).rotate(180).save(image)
    with tarfile.open(data / "val.tar", "w") as archive:
        archive.add(data / "val", "val")
    assert f"{part}.images_digest: " in fail(tmp_path, command, before=THINLY)


@pytest.mark.slow  # quick: the run that its first stage is
def test_a_finished_stage_of_a_chain_is_done_again_for_other_data(tmp_path: Path) -> None:
    make_classes(tmp_path / "set")
    words = from_files("set")[1:]
    words[words.index("--out") + 1] = "c"
    command = ["chain", *words, "--protocol", "knn"]
    succeed(tmp_path, command, before=comparisons.FORKED)
    assert succeed(tmp_path, command, before=comparisons.FORKED).err.count("already done") == 2
    change(tmp_path / "set" / "ant" / "004.jpg")
    ended = runs.run(tmp_path, command, before=comparisons.FORKED)
    assert ended.code == 1 and "already done" not in ended.err and "data.digest: " in ended.err
