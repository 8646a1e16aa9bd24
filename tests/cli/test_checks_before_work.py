"""What can be known before images are read is refused before, by the commands that work for hours."""

import re
import sys
from pathlib import Path

import click
import pytest

from matrix_ssl.cli import stages
from matrix_ssl.cli.chain import chain
from matrix_ssl.cli.compare import compare
from matrix_ssl.cli.detect import detect
from matrix_ssl.cli.evaluate import evaluate
from matrix_ssl.cli.pretrain import pretrain
from matrix_ssl.cli.serve import serve
from matrix_ssl.cli.worth import worth
from matrix_ssl.config import check_agreement
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
        (["--architecture", "fpn", "--processes", "3"], "batch_size=16 is not divisible by 3 processes"),
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


COMPARE, WORTH = (compare, ["demo", "--methods", "simsiam"]), (worth, ["demo", "--from", "random/tiny_resnet"])
COCO = ["--train-images", "t", "--train-annotations", "t.json", "--val-images", "v", "--val-annotations", "v.json"]
DETECT = (detect, [*COCO, "--encoder", "random/resnet18", "--out", "d"])


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (pretrain, ["demo", "--method", "simclr", "--set", "method.name=byol"],
         "method.name=byol and --method simclr contradict each other"),
        (pretrain, ["--data", "photos", "--set", "data.source=labelled"],
         "data.source=labelled and --data photos contradict each other"),
        (pretrain, ["demo", "--from", "a", "--set", "start.reference=b"], "start.reference=b and --from a contradict"),
        (pretrain, ["demo", "--deterministic", "--set", "deterministic=false"],
         "deterministic=false and --deterministic true contradict"),
        (chain, ["demo", "--method", "simclr", "--set", "method.name=byol"], "contradict each other"),
        (chain, ["demo", "--encoder", "runs/x"], "is already trained; remove the recipe 'demo'"),
        (chain, ["demo", "--detect-set", "architecture=c4"], "architecture=c4 and --architecture fpn contradict"),
        (DETECT[0], [*DETECT[1], "--seed", "1", "--set", "seed=2"], "seed=2 and --seed 1 contradict each other"),
        (DETECT[0], [*DETECT[1], "--no-masks", "--set", "masks=true"], "masks=true and --no-masks false contradict"),
        (WORTH[0], [*WORTH[1], "--epochs", "3", "--set", "epochs=4"], "epochs=4 and --epochs 3 contradict each other"),
        (WORTH[0], [*WORTH[1], "--set", "seed=4"], "--set seed=4: this command trains with the seeds 0, 1, 2"),
        (evaluate, ["random/tiny_resnet", "--data", "photos", "--set", "data.max_unreadable=0.5"],
         "--set data.max_unreadable=0.5: 'data.max_unreadable' is not a setting of this command: use its option "
         "--max-unreadable."),
        (evaluate, ["random/tiny_resnet", "--data", "photos", "--set", "weights=teacher"], "use its option --weights."),
        (pretrain, ["demo", "--set", "max_hours=2"], "use its option --max-hours."),
        (COMPARE[0], [*COMPARE[1], "--set", "budget=2"], "use its option --budget."),
        (COMPARE[0], [*COMPARE[1], "--set", "seed=4"], "--set seed=4: this command trains with the seeds 0, 1, 2"),
        (COMPARE[0], [*COMPARE[1], "--budget", "3", "--set", "epochs=4"], "epochs=4 and --budget 3 contradict"),
        (COMPARE[0], [*COMPARE[1], "--trials", "1", "--tuning-set", "network.width=8"],
         "--tuning-set is for trials, and --trials 1 makes none"),
        (COMPARE[0], [*COMPARE[1], "--trials", "1", "--trial-seeds", "2"], "--trial-seeds is for trials"),
        (COMPARE[0], [*COMPARE[1], "--trials", "1", "--tuning-budget", "2"], "--tuning-budget is for trials"),
        (COMPARE[0], [*COMPARE[1], "--tuning-set", "epochs=3"], "epochs=3: the plan of the comparison decides it; use "
         "--tuning-budget"),
        (COMPARE[0], [*COMPARE[1], "--tuning-set", "seed=3"], "use --trial-seeds"),
        (COMPARE[0], [*COMPARE[1], "--tuning-set", "optimizer.learning_rate=3"], "from which the trials start"),
    ],
)  # fmt: skip
def test_what_contradicts_or_would_be_ignored(
    folder: Path, command: click.Command, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        command.main(words, standalone_mode=False)


def test_a_setting_of_a_protocol_that_is_not_asked_for_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MatrixSSLError):
        evaluate.main(["absent", "--data", "photos", "--set", "fine_tune.epochs=3"], standalone_mode=False)
    assert "--set fine_tune.epochs=3 changes nothing: it is for --protocol linear-sgd, semi" in capsys.readouterr().err


def test_what_agrees_is_given_twice(folder: Path) -> None:
    check_agreement(["epochs=3", "data.source=a,b", "masks=false"], {
        "epochs": ("--epochs", 3), "data.source": ("--data", ("a", "b")), "masks": ("--no-masks", False),
        "seed": ("--seed", None),
    })  # fmt: skip


def test_a_chain_downloads_what_its_pre_training_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain.main(["cifar10", "--data-root", "sets", "--download", "--dry-run"], standalone_mode=False)
    assert "matrix-ssl pretrain cifar10 --download --out runs/cifar10" in capsys.readouterr().out
