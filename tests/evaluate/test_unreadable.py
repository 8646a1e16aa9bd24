"""Images that an evaluation cannot read: all are listed at once, and an option accepts the loss."""

import json
from pathlib import Path

import pytest
import torch

from matrix_ssl.api import evaluation
from matrix_ssl.data import open_source
from matrix_ssl.encoder import architectures
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate import protocols
from matrix_ssl.evaluate.trained.linear_sgd import LinearSGD
from matrix_ssl.evaluate.trained.protocols import EvaluationSettings
from matrix_ssl.runs.checkpoint import save_encoder
from tests.support.encoder_runs import make_run
from tests.support.runs import make_images

DAMAGED = 24  # of 60 test images, of which ten may be unreadable


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A labelled dataset, in whose test split files are damaged throughout; encoders take small images."""
    monkeypatch.setattr(architectures, "IMAGE_SIZE", 24)
    for split, count in (("train", 8), ("test", 30)):
        for name in ("ant", "bee"):
            paths = make_images(tmp_path / "photos" / split / name, count)
            for path in paths[: DAMAGED // 2] if split == "test" else ():
                path.write_text("<html>404</html>")
    return tmp_path / "photos"


def evaluate(data: Path, protocol: str, **options: float) -> evaluation.Evaluated:
    settings = EvaluationSettings(linear_sgd=LinearSGD(epochs=1))
    return evaluation.evaluate(
        "random/tiny_resnet", str(data), out=data.parent / "r", protocols=[protocol], settings=settings, quiet=True,
        report=False, device="cpu", **options,
    )  # fmt: skip


def listed(data: Path) -> list[str]:
    (path,) = (data.parent / "r" / "evaluation").glob("*/skipped.jsonl")
    return [json.loads(line)["where"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("protocol", ["knn", "linear-sgd"])
def test_all_are_listed_at_once_and_an_option_accepts_the_loss(data: Path, protocol: str) -> None:
    with pytest.raises(DataError) as error:
        evaluate(data, protocol)
    assert str(error.value).startswith(f"{DAMAGED} of 60 images cannot be read, and at most 10 may be unreadable. All ")
    assert "skipped.jsonl; fix or remove those files, or accept the loss with --max-unreadable 0.4." in str(error.value)
    assert len(set(listed(data))) == DAMAGED and all("/test/" in where for where in listed(data))
    results = evaluate(data, protocol, max_unreadable=0.4).results
    assert results is not None and results.tables()
    assert len(listed(data)) == DAMAGED


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """A dataset without labels, of whose 40 files 12 are damaged."""
    for path in make_images(tmp_path / "photos", 40)[:12]:
        path.write_text("<html>404</html>")
    return tmp_path / "photos"


def test_images_without_labels_are_listed_too(unlabelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("network.encoder=tiny_resnet", "network.width=8", "data.image_size=8", "data.workers=0")
    run, method = make_run(unlabelled.parent / "r", *settings)
    save_encoder(run, method.encoder)
    monkeypatch.setattr(protocols, "write_map", lambda *_: None)
    skipped, said = run / "evaluation" / "skipped.jsonl", list[str]()

    def describe(max_unreadable: float | None = None) -> None:
        protocols.describe_images(
            run, open_source(str(unlabelled), split="train", data_root=None), weights="student",
            device=torch.device("cpu"), on_progress=lambda done, total: None, say=said.append,
            max_unreadable=max_unreadable,
        )  # fmt: skip

    with pytest.raises(DataError, match=r"12 of 40 images cannot be read.*accept the loss with --max-unreadable 0\.3"):
        describe()
    assert len(skipped.read_text().splitlines()) == 12
    (unlabelled / "000.jpg").unlink()
    describe(0.3)
    assert len(skipped.read_text().splitlines()) == 11
    assert (
        said[-1].startswith("Left out because they cannot be read: 11 of the images. The first is")
        and f"All are in {skipped}." in said[-1]
    )


@pytest.mark.slow
def test_the_command_lists_them(unlabelled: Path) -> None:
    with pytest.raises(DataError, match=r"12 of 40 images cannot be read.*accept the loss with --max-unreadable 0\.3"):
        evaluate(unlabelled, "knn")
    evaluate(unlabelled, "knn", max_unreadable=0.3)
    assert len((unlabelled.parent / "r" / "evaluation" / "skipped.jsonl").read_text().splitlines()) == 12


def test_an_output_inside_the_images_is_refused_before_the_work(data: Path) -> None:
    with pytest.raises(DataError, match="is inside the images' folder"):
        evaluation.evaluate(
            "random/tiny_resnet", str(data), out=data / "r", protocols=["knn"], settings=EvaluationSettings()
        )
    assert not (data / "r").exists()
