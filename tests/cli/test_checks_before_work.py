"""What can be known before images are read is refused before, by the commands that work for hours."""

import sys
from pathlib import Path

import click
import pytest

from matrix_ssl.cli import stages
from matrix_ssl.cli.chain import chain
from matrix_ssl.cli.compare import compare
from matrix_ssl.cli.evaluate import evaluate
from matrix_ssl.cli.pretrain import pretrain
from matrix_ssl.cli.serve import serve
from matrix_ssl.cli.worth import worth
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, RunFolderError
from tests.support.runs import make_images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images, of which no command reads one."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("images are read")

    for module in (
        "compare.job.with_measured",
        "training.start.start_from",
        "cli.stages.run_stages",
        "api.pretraining.with_statistics",
    ):
        monkeypatch.setattr(f"matrix_ssl.{module}", read)
    monkeypatch.chdir(tmp_path)
    make_images(Path("photos"), 2)
    for name in ("ant", "bee"):
        make_images(Path("labelled", name), 1)
    Path("full").mkdir()
    Path("full", "precious").touch()
    return tmp_path


@pytest.mark.parametrize(("command", "words"), [(compare, []), (worth, ["--from", "random/tiny_resnet"])])
def test_before_statistics_are_measured(folder: Path, command: click.Command, words: list[str]) -> None:
    before = sorted(folder.rglob("*"))
    words = ["images", "--data", "photos", *words]
    with pytest.raises(DataError, match="photos/x is inside the images' folder photos"):
        command.main([*words, "--out", "photos/x"], standalone_mode=False)
    with pytest.raises(RunFolderError, match=r"full is not empty and has no .*\.json: choose another folder"):
        command.main([*words, "--out", "full"], standalone_mode=False)
    if command is compare:
        for more, message in (
            (["--methods", "simsiem"], "Did you mean 'simsiam'"),
            (["--methods", "simsiam", "--reference", "mec"], "is not among the methods"),
            (["--methods", "simsiam", "--set", "method.ridge=1"], "none of the methods has this option"),
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=message):
                command.main([*words, *more], standalone_mode=False)
        with pytest.raises(MatrixSSLError, match="absent"):
            command.main([*words, "--methods", "simsiam", "--baseline", "./absent"], standalone_mode=False)
    assert sorted(folder.rglob("*")) == before


def test_before_the_first_stage_of_a_chain(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    words = ["demo", "--protocol", "knn"]
    for more, message in (
        (["--transfer", "absent"], "'absent' is not a file or folder here"),
        (["--transfer", "photos"], "'photos' has no labels"),
        (["--transfer", "labelled", "--out", "labelled/r"], "labelled/r is inside the images' folder labelled"),
        (["--architecture", "fpn", "--processes", "3"], "batch_size=16 does not divide by 3 processes"),
    ):  # fmt: skip
        with pytest.raises(MatrixSSLError, match=message):
            chain.main([*words, *more], standalone_mode=False)
    coco = ["--train-images", "photos", "--val-images", "photos"]
    with pytest.raises(DataError, match="photos/r is inside the images' folder photos"):
        stages.check_stages(Path("photos/r"), transfer=[], coco=coco, encoder=None, data_root=None)
    with pytest.raises(ConfigError, match="A detector cannot be built on the encoder 'tiny_resnet'"):
        stages.check_stages(Path("r"), transfer=[], coco=coco, encoder="tiny_resnet", data_root=None)
    assert sorted(folder.rglob("*")) == before


def test_before_an_index_is_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MatrixSSLError, match="The package 'uvicorn' is not installed"):
        serve.main(["absent", "--data", "photos", "--check"], standalone_mode=False)


def test_before_the_mean_is_measured(folder: Path) -> None:
    with pytest.raises(DataError, match="'photos' has no labels"):
        pretrain.main(["images", "--data", "photos", "--out", "r", "--online", "--device", "cpu",
                       "--set", "data.mean=[]", "--set", "data.std=[]"], standalone_mode=False)  # fmt: skip
    assert not Path("r").exists()


@pytest.mark.parametrize("option", ["--max-unreadable", "--max-hours"])
def test_a_number_that_is_none(folder: Path, option: str) -> None:
    with pytest.raises(click.BadParameter, match="nan is not in the range"):
        evaluate.main(["random/tiny_resnet", "--data", "photos", option, "nan"], standalone_mode=False)
