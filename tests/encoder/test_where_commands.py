"""The commands that take WHERE: an encoder that is not a run becomes one, and nothing is written elsewhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import matrix_ssl
from matrix_ssl import pretrain
from matrix_ssl.encoder import load_encoder
from matrix_ssl.encoder.exporting import export
from matrix_ssl.encoder.importing import as_run, import_run
from matrix_ssl.encoder.opening import open_checkpoint, open_encoder
from matrix_ssl.errors import CheckpointError, ConfigError
from matrix_ssl.runs.checkpoint import list_checkpoints
from matrix_ssl.runs.folder import read_config
from tests.support import published_layouts as published
from tests.support import runs
from tests.support.runs import fail, succeed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos`` of two classes and the checkpoint ``files/tiny.safetensors`` for images of 32 pixels."""
    folder = tmp_path_factory.mktemp("where")
    for path in runs.make_images(folder / "photos", 24):
        label = folder / "photos" / ("even" if int(path.stem) % 2 else "odd")
        label.mkdir(exist_ok=True)
        path.rename(label / path.name)
    (folder / "files").mkdir()
    import_run(open_encoder("random/tiny_resnet", image_size=32), folder / "other", branch="student")
    export(folder / "other", folder / "files" / "tiny.safetensors", form="safetensors")
    (folder / "files" / "tiny.safetensors.md").unlink()
    encoder = open_encoder("random/tiny_resnet", image_size=32, seed=1)
    import_run(encoder, folder / "another", branch="student")
    return folder


def evaluate(*words: str) -> list[str]:
    return ["evaluate", *words, "--data", "photos", "--protocol", "knn", "--device", "cpu", "--no-report"]


def test_evaluate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = succeed(folder, evaluate("files/tiny.safetensors"))
    assert first.err.splitlines()[0].startswith(
        "files/tiny.safetensors has its results in the run runs/tiny. 72 of 72 tensors of tiny_resnet matched"
    )
    assert "20-NN" in first.out and [path.name for path in (folder / "files").iterdir()] == ["tiny.safetensors"]
    assert (folder / "runs" / "tiny" / "evaluation").is_dir()
    written = (folder / "runs" / "tiny" / "encoder.safetensors").stat().st_mtime_ns
    monkeypatch.chdir(folder)
    assert as_run("files/tiny.safetensors", say=lambda _: None) == (Path("runs/tiny"), "student")  # the same run again
    assert (folder / "runs" / "tiny" / "encoder.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow  # quick: test_opening.py
def test_the_teacher_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(published.moco_v2(published.resnet()), "moco.pth.tar")
    for weights, name in (("student", "moco"), ("teacher", "moco-teacher")):
        run, network = as_run("moco.pth.tar", weights=weights, say=lambda _: None)  # type: ignore[arg-type]
        assert (run, network) == (Path("runs") / name, "student")
        expected = open_checkpoint(Path("moco.pth.tar"), branch=weights).encoder.state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(tensor, expected[key]) for key, tensor in load_encoder(run).state_dict().items())
    assert as_run(Path("runs/moco"), weights="teacher") == (Path("runs/moco"), "teacher")
    (tmp_path / "runs" / "moco" / "summary.json").unlink()  # as a kill leaves it
    (tmp_path / "runs" / "moco" / "encoder.safetensors").write_bytes(b"cut")
    assert as_run("moco.pth.tar", say=lambda _: None)[0] == Path("runs/moco")
    load_encoder("runs/moco")


def test_mistakes_of_evaluate(folder: Path) -> None:
    assert fail(folder, ["evaluate", "files/tiny.safetensors"]).startswith(
        "files/tiny.safetensors does not name a dataset"
    )
    assert fail(folder, evaluate("absent")).startswith("absent does not exist; name a run folder, a checkpoint file, ")
    assert "photos is not a run folder" in fail(folder, evaluate("photos"))
    assert fail(folder, evaluate("timm/resnet18.x")).startswith("timm/resnet18 has no weights 'x'")
    message = fail(folder, evaluate("files/tiny.safetensors", "--out", "another"))
    assert message == "another holds a different encoder than files/tiny.safetensors; choose another folder with --out."
    message = fail(folder, evaluate("other", "--out", "more"))
    assert message == "--out more: the run other keeps its results in its own folder; remove --out."
    assert not (folder / "more").exists()


def test_embed_writes_its_file_alone(folder: Path, tmp_path: Path) -> None:
    words = ["--data", str(folder / "photos"), "--out", "x.npz", "--device", "cpu"]
    succeed(tmp_path, ["embed", str(folder / "files" / "tiny.safetensors"), *words])
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    with np.load(tmp_path / "x.npz") as file:
        assert file["features"].shape == (24, 256)
    assert "does not name a dataset" in fail(tmp_path, ["embed", "random/resnet18", "--out", "y.npz"])


def test_export(folder: Path, tmp_path: Path) -> None:
    checkpoint = str(folder / "files" / "tiny.safetensors")
    ended = succeed(tmp_path, ["export", checkpoint, "--out", "x.safetensors"])
    assert "x.safetensors: 72 of 72 tensors of tiny_resnet" in ended.out and ended.err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors", "x.safetensors.md"]
    assert "Imported from | tiny.safetensors, SHA-256" in (tmp_path / "x.safetensors.md").read_text()
    succeed(tmp_path, ["export", "random/resnet18", "--format", "torchvision"])
    assert (tmp_path / "runs" / "random-resnet18" / "export.pth").exists()
    assert read_config(tmp_path / "runs" / "random-resnet18").network.encoder == "resnet18"


def test_chain_in_a_dry_run_imports_nothing(folder: Path, tmp_path: Path) -> None:
    words = ["chain", "--encoder", str(folder / "files" / "tiny.safetensors"), "--data", "photos", "--protocol", "knn"]
    assert "matrix-ssl evaluate runs/tiny --protocol knn" in succeed(tmp_path, [*words, "--dry-run"]).out
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pretrain(
        "digits", recipe="demo", method="matrix_ssl", out=tmp_path / "digits", report=False, quiet=True, device="cpu",
        epochs=3, width=8, batch_size=32, settings={"data.subset": 64, "keep_checkpoints": 3},
    )  # fmt: skip
    run, steps = matrix_ssl.open("digits"), list_checkpoints(tmp_path / "digits")
    assert [path.name for path in steps] == [f"step-{step:09d}.safetensors" for step in (2, 4, 6)]
    images = torch.rand(3, 1, 8, 8)
    earlier, last = (matrix_ssl.open(path) for path in (steps[0], steps[-1]))
    for weights in ("student", "teacher"):
        expected = load_encoder("digits", weights=weights)(images)  # type: ignore[arg-type]
        assert last.encoder(weights=weights)(images).equal(expected)
        assert not earlier.encoder(weights=weights)(images).equal(expected)
    assert earlier.config.data == run.config.data  # the images of the run, and how it reads them
    assert last.embed(split="test").features.tobytes() == run.embed(split="test").features.tobytes()

    name = "digits/checkpoints/step-000000004.safetensors"
    ended = succeed(tmp_path, ["evaluate", name, "--protocol", "knn", "--device", "cpu", "--no-report"])
    assert ended.err.startswith(f"{name} has its results in the run runs/digits-step-000000004. 36 of 36 tensors of ")
    imported = matrix_ssl.open("runs/digits-step-000000004").encoder()
    assert imported(images).equal(matrix_ssl.open(steps[1]).encoder()(images))
    with pytest.raises(ConfigError, match=r"architecture='resnet18': the run .*digits has 'tiny_resnet'"):
        open_encoder(steps[0], architecture="resnet18")
    shutil.copy(steps[0], "alone.safetensors")
    with pytest.raises(
        CheckpointError, match=r"^alone\.safetensors is a checkpoint of a run, whose config\.json .*: name"
    ):
        open_encoder("alone.safetensors")
    steps[0].write_bytes(steps[0].read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"step-000000002\.safetensors"):
        open_encoder(steps[0])
    load_encoder("digits")  # what is opened is not changed
