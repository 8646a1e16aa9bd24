"""A chain of commands: what it would run, that it runs it, and that it goes on where it was stopped."""

import shutil
import signal
import sys
from pathlib import Path

import pytest

from matrix_ssl.cli import stages
from matrix_ssl.cli.stages import Stage
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.runs.files import read_json
from tests.support import runs
from tests.support.comparisons import FORKED, at_step, contents, signal_comparison
from tests.support.runs import BARE, check_failure, succeed, tiny

COCO = [
    "--train-images", "train.tar", "--train-annotations", "train.json",
    "--val-images", "val.tar", "--val-annotations", "val.json",
]  # fmt: skip


def make_plan(**changes: object) -> list[Stage]:
    given = {
        "pretrain": ["demo"], "device": "cpu", "protocols": [["knn", "linear"], ["fine-tune"]],
        "transfer": ["a/birds"], "coco": COCO, "architectures": ["fpn", "c4"],
        "evaluate_settings": ["fine_tune.epochs=2"], "detect_settings": ["epochs=3"],
    }  # fmt: skip
    return stages.plan(Path("r"), **(given | changes))  # type: ignore[arg-type]


def test_the_stages_and_their_commands() -> None:
    plan = make_plan()
    assert [stage.name for stage in plan] == [
        "pre-training", "knn, linear", "fine-tune", "transfer to birds", "detection, fpn", "detection, c4", "report",
    ]  # fmt: skip
    assert stages.summary(plan[:4]).splitlines() == [
        "matrix-ssl pretrain demo --out r --device cpu",
        "matrix-ssl evaluate r --protocol knn,linear --device cpu",
        "matrix-ssl evaluate r --protocol fine-tune --set fine_tune.epochs=2 --device cpu",
        "matrix-ssl evaluate r --protocol transfer --data a/birds --device cpu",
    ]
    detect = plan[4].arguments
    assert detect[:9] == ("detect", *COCO) and "--encoder r" in " ".join(detect)
    assert " ".join(detect).endswith("--out r/detection/fpn --set epochs=3 --device cpu")


def test_several_processes_for_what_can_use_them() -> None:
    launched = {stage.name: "torch.distributed.run" in stage.command(8) for stage in make_plan()}
    assert [name for name, several in launched.items() if several] == [
        "pre-training", "fine-tune", "detection, fpn", "detection, c4",
    ]  # fmt: skip
    assert "--nproc-per-node=8" in make_plan()[0].command(8)
    assert make_plan()[0].command(1)[:3] == [sys.executable, "-m", "matrix_ssl"]


def test_a_finished_encoder_needs_no_pretraining_and_no_detection_set_no_detection() -> None:
    plan = make_plan(pretrain=[], data=["--data", "cats"], coco=[])
    assert [stage.name for stage in plan] == ["knn, linear", "fine-tune", "transfer to birds", "report"]
    assert "--data cats" in " ".join(plan[0].arguments)


def test_protocols_on_features_share_a_command() -> None:
    assert stages.group_protocols("knn,fine-tune, linear,knn", []) == [["knn", "linear"], ["fine-tune"]]
    with pytest.raises(ConfigError, match="Did you mean 'knn'"):
        stages.group_protocols("knm", [])
    with pytest.raises(ConfigError, match=r"Unknown setting 'fine_tune\.epoch'"):
        stages.group_protocols("knn", ["fine_tune.epoch=1"])
    with pytest.raises(ConfigError, match="architecture=fpm"):
        stages.check_detection("fpm", [])
    with pytest.raises(ConfigError, match="Unknown setting 'epoch'"):
        stages.check_detection("fpn", ["epoch=1"])


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (["train2017/", "val2017/", "annotations/instances_train2017.json", "annotations/instances_val2017.json"],
         ("train2017", "val2017")),
        (["x_train.tar", "x_val.tar", "instances_train.json", "instances_val.json"], ("x_train.tar", "x_val.tar")),
    ],
)  # fmt: skip
def test_a_detection_set_is_found(tmp_path: Path, names: list[str], images: tuple[str, str]) -> None:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.mkdir() if name.endswith("/") else path.touch()
    options = stages.find_coco(tmp_path)
    assert options[::2] == COCO[::2]
    train, train_annotations, val, val_annotations = map(Path, options[1::2])
    assert (train.name, val.name) == images
    assert train_annotations.exists() and "train" in train_annotations.name
    assert val_annotations.exists() and "val" in val_annotations.name
    (tmp_path / "old_train").mkdir()
    with pytest.raises(DataError, match=r"expected one folder or \.tar of images \*train\*, found old_train, "):
        stages.find_coco(tmp_path)
    with pytest.raises(DataError, match="found none"):
        stages.find_coco(tmp_path / "old_train")


def chain_command(*more: str) -> list[str]:
    words = tiny("data.subset=320")[1:]
    words[words.index("r")] = "c"
    return ["chain", *words, "--protocol", "knn,linear-sgd", "--evaluate-set", "linear_sgd.epochs=2",
            "--evaluate-set", "linear_sgd.batch_size=256", *more]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chain that was stopped in its first stage and went on to its end."""
    folder = tmp_path_factory.mktemp("chain")
    stop = at_step("c", 2, signal_comparison(signal.SIGTERM))
    stopped = runs.run(folder, chain_command(), before=FORKED + stop)
    assert stopped.code == 128 + signal.SIGTERM and "Traceback" not in stopped.err
    assert "error: Stopped by SIGTERM after step 3" in stopped.err  # the stage
    assert stopped.err.endswith("Stopped by SIGTERM during a chain. Run the same command to resume.\n")
    assert (folder / "c" / "metrics.jsonl").exists() and not (folder / "c" / "chain.json").exists()
    ended = succeed(folder, chain_command(), before=FORKED)
    assert "Resuming after step 3 of 5" in ended.err and "done before" not in ended.err
    return folder


def test_a_stopped_chain_goes_on(finished: Path) -> None:
    folder = finished / "c"
    assert read_json(folder / "chain.json").keys() == {"pre-training", "knn", "linear-sgd", "report"}
    evaluation = folder / "evaluation" / "digits"
    assert (evaluation / "knn.json").exists() and (evaluation / "linear-sgd.json").exists()
    assert "linear-sgd" in (folder / "report.html").read_text()
    assert succeed(finished, chain_command(), before=FORKED).err.count("already done") == 3


def test_fresh_keeps_the_old_chain(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "c", tmp_path / "c")
    before = contents(tmp_path / "c")
    failing = "import matrix_ssl.cli.stages as stages; stages._run = lambda command: 3"
    fresh = runs.run(tmp_path, chain_command("--fresh"), before=failing)
    assert "[1/4] pre-training: matrix-ssl pretrain demo " in fresh.err  # its first stage is done again
    assert check_failure(fresh).startswith("Stage 'pre-training' failed with exit code 3")
    assert contents(tmp_path / "c.1") == before and "c.1" in fresh.err
    assert not (tmp_path / "c" / "chain.json").exists()
    assert "already done" not in runs.run(tmp_path, chain_command(), before=failing).err


def test_a_stage_that_fails_is_named(tmp_path: Path) -> None:
    succeed(tmp_path, tiny("data.subset=64"), before=BARE)
    shutil.copytree(tmp_path / "r", tmp_path / "c")
    message = runs.run(tmp_path, ["chain", "--encoder", "c", "--data", "absent", "--protocol", "knn"], before=FORKED)
    assert message.code == 1
    first, last = (line for line in message.err.splitlines() if line.startswith("error: "))
    assert "'absent' is not a file or folder here" in first
    assert last == "error: Stage 'knn' failed with exit code 1 (see above). Run the same command to resume."
    assert not (tmp_path / "c" / "chain.json").exists()


def test_mistakes_are_told_before_anything_runs(tmp_path: Path) -> None:
    for words, message in (
        (["--protocol", "knm"], "Did you mean 'knn'"),
        (["--detect-set", "epoch=1"], "Unknown setting 'epoch'"),
        (["--coco", "absent"], "expected one folder or .tar of images"),
        (["--encoder", "absent"], "remove --out"),
    ):
        assert message in runs.fail(tmp_path, chain_command(*words))
    assert "absent does not exist; name a run folder" in runs.fail(tmp_path, ["chain", "--encoder", "absent"])
    assert not any(tmp_path.iterdir())
    assert "matrix-ssl pretrain demo" in succeed(tmp_path, ["chain", "demo", "--dry-run"]).out
    assert not any(tmp_path.iterdir())
