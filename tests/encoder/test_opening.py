"""Encoders by reference, and imported runs under every command of the command line."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.encoder import initialise_encoder, load_encoder
from matrix_ssl.encoder.importing import import_run
from matrix_ssl.encoder.opening import open_checkpoint, open_encoder
from matrix_ssl.errors import CheckpointError, ConfigError, RunFolderError
from matrix_ssl.runs.checkpoint import load_strictly
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import read_config
from tests.support import published_layouts as published
from tests.support import runs
from tests.support.encoder_runs import make_run
from tests.support.runs import fail, succeed

MADE = {".lock", "config.json", "encoder.safetensors", "summary.json", "README.md"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "moco_v2_200ep.pth.tar"
    torch.save(published.moco_v2(published.resnet()), path)
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of which one tensor is missing."""
    path = tmp_path_factory.mktemp("few") / "few.pth"
    torch.save({n: t for n, t in published.resnet().state_dict().items() if n != "layer4.1.bn2.bias"}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the imported run ``runs/moco_v2_200ep`` and ``photos`` of two classes."""
    folder = tmp_path_factory.mktemp("imported")
    ended = succeed(folder, ["import", str(checkpoint), "--image-size", "32"])
    assert ended.out.startswith("runs/moco_v2_200ep: 120 of 120 tensors of resnet18 matched")
    assert "To measure accuracy: matrix-ssl evaluate runs/moco_v2_200ep --data FOLDER" in ended.err
    for path in runs.make_images(folder / "photos", 24):
        label = folder / "photos" / ("even" if int(path.stem) % 2 else "odd")
        label.mkdir(exist_ok=True)
        path.rename(label / path.name)
    return folder


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


class TestOpenEncoder:
    def test_a_run_folder(self, tmp_path: Path) -> None:
        run, method = make_run(tmp_path / "run", "network.width=8", base=find_recipe("demo"))
        student, teacher = open_encoder(run), open_encoder(str(run), weights="teacher", architecture="tiny_resnet")
        assert equal(student.encoder, method.encoder) and not student.encoder.training
        assert equal(teacher.encoder, method.teacher["encoder"])
        assert student.config == read_config(run)
        assert student.text == f"36 of 36 tensors of tiny_resnet (student) from {run}."
        with pytest.raises(ConfigError, match=r"architecture='resnet18': the run .* has 'tiny_resnet'"):
            open_encoder(run, architecture="resnet18")
        with pytest.raises(ConfigError, match=r"image_size=32: the run .* has 8"):
            open_encoder(run, image_size=32)
        (tmp_path / "other").mkdir()
        with pytest.raises(RunFolderError, match="is not a run folder"):
            open_encoder(tmp_path / "other")

    def test_a_checkpoint(self, checkpoint: Path) -> None:
        student, teacher = (open_encoder(checkpoint, image_size=96, weights=w) for w in ("student", "teacher"))
        assert student.text.startswith("120 of 120 tensors of resnet18 matched under 'state_dict.module.encoder_q'")
        assert student.config.data.image_size == 96 and not student.encoder.training
        assert not equal(student.encoder, teacher.encoder)
        assert student.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()

    def test_random(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        first, again, other = (
            open_encoder("random", architecture="resnet18", seed=s, image_size=64) for s in (1, 1, 2)
        )
        assert torch.equal(torch.rand(3), expected)  # the numbers of the caller stay
        assert equal(first.encoder, again.encoder) and not equal(first.encoder, other.encoder)
        assert equal(first.encoder, initialise_encoder(first.config)[0])
        assert first.text == "resnet18 at its initialisation, seed 1."

    @pytest.mark.parametrize("reference", ["random", "torchvision"])
    def test_an_architecture_that_is_missing(self, reference: str) -> None:
        with pytest.raises(ConfigError, match=f"'{reference}' needs an architecture"):
            open_encoder(reference)

    def test_torchvision(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        published_weights = torchvision.models.ResNet18_Weights.DEFAULT
        cache = tmp_path / "checkpoints"
        with pytest.raises(
            CheckpointError, match=r"ResNet18_Weights\.IMAGENET1K_V1 is not on this machine, in"
        ) as caught:
            open_encoder("torchvision", architecture="resnet18")
        remedy = f"{cache / 'resnet18-f37072fd.pth'}; add --download to fetch it from {published_weights.url}."
        assert str(caught.value).endswith(remedy)
        with pytest.raises(ConfigError, match="torchvision has no weights of 'tiny_resnet'"):
            open_encoder("torchvision/tiny_resnet")
        cache.mkdir()
        model = published.resnet()
        torch.save(model.state_dict(), cache / "resnet18-f37072fd.pth")
        with pytest.raises(CheckpointError, match="its SHA-256 does not begin with f37072fd; remove it and"):
            open_encoder("torchvision", architecture="resnet18")
        digest = hashlib.sha256((cache / "resnet18-f37072fd.pth").read_bytes()).hexdigest()
        name = f"resnet18-{digest[:8]}.pth"
        (cache / "resnet18-f37072fd.pth").rename(cache / name)
        stand_in = SimpleNamespace(url=f"https://x.org/{name}", transforms=published_weights.transforms)
        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: SimpleNamespace(DEFAULT=stand_in))
        opened = open_encoder("torchvision", architecture="resnet18")
        load_strictly(opened.encoder, {k: v for k, v in model.state_dict().items() if k[:3] != "fc."}, "torchvision")
        data = opened.config.data
        assert (data.image_size, data.crop_fraction, data.mean) == (224, 224 / 256, (0.485, 0.456, 0.406))
        assert "120 of 120 tensors" in opened.text and "2 ignored: 2 of the head (fc)" in opened.text


class TestImportedRuns:
    def test_the_folder(self, folder: Path, checkpoint: Path) -> None:
        run = folder / "runs" / "moco_v2_200ep"
        assert {path.name for path in run.iterdir()} >= MADE
        config, summary = read_config(run), read_json(run / "summary.json")
        assert (config.recipe, config.data.source, config.network.encoder) == ("imported", "", "resnet18")
        assert summary["finished"] and summary["parameters"] == 11176512 and summary["seconds_training"] == 0
        assert summary["imported"]["file"] == "moco_v2_200ep.pth.tar"
        assert summary["imported"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert summary["imported"]["tensors"]["tensors"] == 120
        assert summary["imported"]["tensors"]["beside"] == {"queue": 2, "teacher": 124, "head": 4}
        assert summary["imported"]["sha256"] in (run / "README.md").read_text()
        assert equal(load_encoder(run), open_checkpoint(checkpoint).encoder)

    @pytest.mark.slow
    def test_every_command_takes_it(self, folder: Path) -> None:
        run = "runs/moco_v2_200ep"
        assert "give --data FOLDER" in fail(folder, ["evaluate", run])
        evaluated = succeed(folder, ["evaluate", run, "--data", "photos", "--protocol", "knn", "--device", "cpu"])
        assert "untrained" in evaluated.out and f"report  {run}/report.html" in evaluated.out
        succeed(folder, ["embed", run, "--data", "photos", "--out", "x.npz", "--device", "cpu"])
        with np.load(folder / "x.npz") as file:
            assert file["features"].shape == (24, 512) and np.isfinite(file["features"]).all()
        succeed(folder, ["report", run])
        exported = succeed(folder, ["export", run, "--format", "torchvision", "--out", "x.pth"])
        assert "x.pth: 120 of 120 tensors of resnet18 (student)" in exported.out
        assert equal(open_checkpoint(folder / "x.pth").encoder, load_encoder(folder / run))
        card = (folder / "x.pth.md").read_text()
        assert "| Imported from | moco_v2_200ep.pth.tar, SHA-256 " in card and "| this encoder |" in card
        assert "matrix_ssl," not in card  # the method that trained it is not known
        assert "runs/moco_v2_200ep has no teacher" in fail(folder, ["export", run, "--weights", "teacher"])

    def test_a_baseline_at_its_initialisation(self, tmp_path: Path) -> None:
        words = ["import", "random", "--architecture", "resnet18", "--image-size", "32"]
        assert "resnet18 at its initialisation, seed 0." in succeed(tmp_path, words).out
        run = tmp_path / "runs" / "random-resnet18"
        assert {path.name for path in run.iterdir()} == MADE
        made, expected = load_encoder(run), initialise_encoder(read_config(run))[0]
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in made.state_dict().items())
        assert "needs an architecture" in fail(tmp_path, ["import", "random"])
        assert "are for checkpoint files" in fail(tmp_path, [*words, "--mean", "0.5"])

    def test_options(self, checkpoint: Path, tmp_path: Path) -> None:
        settings = ["--mean", "0.5,0.5,0.5", "--std", "0.2, 0.2, 0.2", "--crop-fraction", "1", "--branch", "teacher"]
        succeed(tmp_path, ["import", str(checkpoint), "--out", "r", "--architecture", "resnet18", *settings])
        data = read_config(tmp_path / "r").data
        assert (data.mean, data.std, data.crop_fraction, data.image_size) == ((0.5,) * 3, (0.2,) * 3, 1.0, 224)
        assert equal(load_encoder(tmp_path / "r"), open_checkpoint(checkpoint, branch="teacher").encoder)
        assert read_json(tmp_path / "r" / "summary.json")["imported"]["branch"] == "teacher"

    @pytest.mark.parametrize(("arguments", "code", "message"), [
        (["absent.pth"], 1, "absent.pth: the file does not exist; name a checkpoint file."),
        (["few.pth"], 1, "few.pth, read as resnet18, matches 119 of 120 tensors of the network; 1 missing: "
                         "layer4.1.bn2.bias."),
        (["page.pth"], 1, "page.pth is a web page, not a checkpoint; download the file that the page links to."),
        (["few.pth", "--mean", "a"], 2, "--mean 'a': expected numbers with commas between, such as 0.5,0.5,0.5."),
        (["few.pth", "--architecture", "resnet19"], 2, "network.encoder='resnet19' is not an architecture. "
                                                       "Did you mean 'resnet18'?"),
    ])  # fmt: skip
    def test_a_mistake_is_one_sentence_and_leaves_nothing(
        self, tmp_path: Path, few: Path, arguments: list[str], code: int, message: str
    ) -> None:
        (tmp_path / "few.pth").symlink_to(few)
        (tmp_path / "page.pth").write_text("<!doctype html>")
        before = sorted(tmp_path.rglob("*"))
        assert fail(tmp_path, ["import", *arguments], code=code) == message
        assert sorted(tmp_path.rglob("*")) == before

    def test_folders_that_are_taken(self, folder: Path, checkpoint: Path, tmp_path: Path) -> None:
        message = fail(folder, ["import", str(checkpoint), "--image-size", "32"])
        assert message == "runs/moco_v2_200ep is complete: choose another folder, or use --fresh to start over."
        assert "is not empty and has no config.json" in fail(folder, ["import", str(checkpoint), "--out", "photos"])
        shutil.copytree(folder / "runs" / "moco_v2_200ep", tmp_path / "r")
        (tmp_path / "r" / "summary.json").unlink()  # as a kill leaves it
        opened = open_checkpoint(checkpoint)
        with pytest.raises(RunFolderError, match="was started with other settings"):  # with other settings
            import_run(opened, tmp_path / "r", branch="student")
        (tmp_path / "r" / "encoder.safetensors").write_bytes(b"cut")
        opened = open_checkpoint(checkpoint, image_size=32)
        import_run(opened, tmp_path / "r", branch="student")
        assert equal(load_encoder(tmp_path / "r"), opened.encoder)
        assert json.loads((tmp_path / "r" / "summary.json").read_text())["finished"] is True
        succeed(tmp_path, ["import", str(checkpoint), "--image-size", "32", "--out", "r", "--fresh"])
        assert all((tmp_path / name / "summary.json").exists() for name in ("r", "r.1"))

    def test_a_full_disk(self, checkpoint: Path, small_disk: Path) -> None:
        message = fail(small_disk, ["import", str(checkpoint), "--out", "r"])
        assert (
            message
            == "Cannot write r/encoder.safetensors: No space left on device; free space there or choose another place."
        )
        assert {path.name for path in (small_disk / "r").iterdir()} == {".lock", "config.json"}
