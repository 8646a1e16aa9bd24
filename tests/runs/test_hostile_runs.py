"""Run folders from elsewhere: links, pipes, JSON of any kind, and parts of a different run."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from matrix_ssl.encoder import load_encoder
from matrix_ssl.encoder.exporting import export
from matrix_ssl.errors import CheckpointError, MatrixSSLError, RunFolderError
from matrix_ssl.report import write_report
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.checkpoint import Checkpoint, load_newest, save_checkpoint, save_encoder
from matrix_ssl.runs.files import append_line, write_json, write_text
from matrix_ssl.runs.folder import identity, lock
from matrix_ssl.runs.metrics import MetricsWriter, read_metrics
from tests.support.encoder_runs import make_run

SETTINGS = ("network.encoder=tiny_resnet", "network.width=8", "data.image_size=8", "data.mean=0.5", "data.std=0.5")
JSON_FILES = ("config.json", "summary.json")
WRONG = (
    "[" * 100_000,
    '{"a":' * 100_000,
    "[]",
    "3",
    "null",
    "{",
    '{"a": 1, "a": 2}',
    '{"seed": ' + "9" * 400 + "}",
    "\0",
)


def finished(folder: Path, seed: int) -> Path:
    """A run folder with every file, without a training."""
    run, method = make_run(folder, *SETTINGS, f"seed={seed}")
    save_encoder(run, method.encoder)
    writer = MetricsWriter(run, after_step=0)
    writer.write({"step": 1, "loss": 1.0})
    writer.close(finished=True)
    summary = {"run": identity(run), "finished": True, "steps": 2, "data": {"name": "digits", "images": 9}}
    write_json(run / "summary.json", summary)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs with the same shapes and different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    return finished(folder / "a", 0), finished(folder / "b", 1)


@pytest.fixture
def run(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run."""
    return Path(shutil.copytree(runs[0], tmp_path / "r"))


def refused(kind: type[MatrixSSLError], words: str) -> Any:
    return pytest.raises(kind, match=words)


@pytest.mark.parametrize("name", [".lock", "config.json", "metrics.jsonl", "evaluation", "checkpoints", "x/y"])
def test_a_link_out_of_a_run_is_not_followed(run: Path, name: str) -> None:
    victim = run.parent / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    path = run / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(victim if name in ("evaluation", "checkpoints") else victim / "file")
    with refused(RunFolderError, "link"), lock(run):
        raise AssertionError("the run was opened")
    assert [p.name for p in victim.iterdir()] == ["file"] and (victim / "file").read_text() == "precious"


def test_links_within_a_run_stay(run: Path) -> None:
    (run / "logs").symlink_to("checkpoints")
    with lock(run):
        pass


@pytest.mark.parametrize("name", [".lock", "config.json", "metrics.jsonl", "evaluation/digits/knn.json"])
def test_a_pipe_in_a_run_is_not_waited_for(run: Path, name: str) -> None:
    path = run / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with refused(RunFolderError, "pipe"), lock(run):
        raise AssertionError("the run was opened")


def test_an_export_follows_no_link(run: Path) -> None:
    (run.parent / "victim").mkdir()
    (run / "export-huggingface").symlink_to(run.parent / "victim")
    with refused(RunFolderError, "link"):
        export(run, form="safetensors")


@pytest.mark.parametrize("name", ["encoder.safetensors", "checkpoints/step-000000002.safetensors"])
def test_weights_in_a_pipe_are_an_error(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with refused(CheckpointError, "pipe"):
        load_encoder(run, weights="student" if name.startswith("encoder") else "teacher")


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("name", JSON_FILES)
def test_wrong_json_is_one_sentence(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    with refused(RunFolderError, name):
        if name == "config.json":
            load_encoder(run)
        else:
            export(run, form="safetensors")


@pytest.mark.parametrize("text", WRONG[:-1])
def test_wrong_results_become_a_note_of_the_page(run: Path, text: str) -> None:
    results = run / "evaluation" / "digits"
    results.mkdir(parents=True)
    for path in (run / "summary.json", run / "environment.json", run / "metrics.jsonl", results / "knn.json"):
        path.write_text(text)
    assert "damaged" in write_report(run).read_text()


@pytest.mark.parametrize(
    "setting, value",
    [("seed", 2**70), ("seed", -1), ("epochs", 0), ("views", 3), ("network.width", 10**12), ("network.width", "x"),
     ("data.image_size", 10**6), ("data.mean", [1e400]), ("method.options", [1]), ("network", None)],
)  # fmt: skip
def test_settings_that_no_run_can_have(run: Path, setting: str, value: object) -> None:
    config = json.loads((run / "config.json").read_text())
    group, _, name = setting.rpartition(".")
    (config[group] if group else config)[name] = value
    (run / "config.json").write_text(json.dumps(config))
    with refused(RunFolderError, f"{name}|an integer of 22 digits"):
        load_encoder(run)


def test_an_encoder_larger_than_the_memory_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((run / "config.json").read_text())
    config["network"]["width"] = 4096
    (run / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("matrix_ssl.config.system.memory", lambda: (2**30, 2**28))
    with refused(MatrixSSLError, "GiB for its weights"):
        load_encoder(run)


VALUES = ("x", "[]", "{}", '{"step":"a"}', '{"step":2}', '{"step":{}}', "[" * 100_000, '{"step":true}',
          '{"step":2,"counters":{"a":"b"},"param_groups":[]}',
          '{"step":2,"counters":{},"param_groups":[1]}')  # fmt: skip


@pytest.mark.parametrize("values", VALUES)
def test_other_values_in_a_checkpoint_are_an_error(run: Path, values: str) -> None:
    content = checkpoint.encode({"model.a": torch.zeros(2)}, {"values": values})
    (run / "checkpoints" / "step-000000002.safetensors").write_bytes(content)
    with refused(CheckpointError, "not a checkpoint of this package"):
        load_newest(run)


@pytest.mark.parametrize("name", ["optimizer.a", "optimizer.a.b", "optimizer.1", "optimizer.9999999999.b"])
def test_other_names_in_a_checkpoint_are_an_error(run: Path, name: str) -> None:
    values = {"values": json.dumps({"step": 2, "counters": {}, "param_groups": []})}
    content = checkpoint.encode({name: torch.zeros(2)}, values)
    (run / "checkpoints" / "step-000000002.safetensors").write_bytes(content)
    with refused(CheckpointError, "has a tensor"):
        load_newest(run)


def test_an_encoder_of_a_different_run_is_noticed(run: Path, runs: tuple[Path, Path]) -> None:
    load_encoder(run)
    shutil.copy(runs[1] / "encoder.safetensors", run)
    with refused(CheckpointError, "belongs to a different run"):
        load_encoder(run)


def test_a_checkpoint_of_a_different_run_is_skipped(run: Path, runs: tuple[Path, Path]) -> None:
    state = {"state": {}, "param_groups": []}
    save_checkpoint(run, Checkpoint(1, {"a": torch.zeros(1)}, state, {}))
    name = "step-000000002.safetensors"
    shutil.copy(runs[1] / "checkpoints" / name, run / "checkpoints" / name)
    loaded, problems = load_newest(run)
    assert loaded is not None and loaded.step == 1 and "belongs to a different run" in problems[0]


def test_metrics_and_summary_of_a_different_run_are_noticed(run: Path, runs: tuple[Path, Path]) -> None:
    assert read_metrics(run)[0]["run"] == identity(run) != identity(runs[1])
    for name in ("metrics.jsonl", "summary.json"):
        shutil.copy(runs[1] / name, run)
    with refused(RunFolderError, "belongs to a different run"):
        MetricsWriter(run, after_step=1)
    page = write_report(run).read_text()
    assert "metrics.jsonl belongs to a different run" in page and "summary.json belongs to a different run" in page


def test_the_identity_is_that_of_the_settings(run: Path, runs: tuple[Path, Path]) -> None:
    before = identity(run)
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"source": "moved", "workers": 3}
    config["checkpoint_every"] = 5
    (run / "config.json").write_text(json.dumps(config))
    assert identity(run) == before == identity(runs[0])


def test_lines_without_a_step_are_an_error(run: Path) -> None:
    append_line(run / "metrics.jsonl", {"loss": 1})
    with refused(RunFolderError, "line 2 has no step"):
        read_metrics(run)


def test_an_unfinished_file_goes_with_the_next_write(tmp_path: Path) -> None:
    for name in (".x.json.abcd1234.tmp", ".y.json.abcd1234.tmp"):
        (tmp_path / name).touch()
    write_text(tmp_path / "x.json", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".y.json.abcd1234.tmp", "x.json"]


def test_a_file_that_is_being_written_stays(tmp_path: Path) -> None:
    left = tmp_path / ".x.json.abcd1234.tmp"
    left.touch()
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        from matrix_ssl.config import system

        with left.open("r+b") as file:
            system.claim(file.fileno())
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    write_text(tmp_path / "x.json", "{}")
    assert left.exists()
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    write_text(tmp_path / "x.json", "{}")
    assert not left.exists()


def test_names_are_text_in_a_model_card(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["data"]["name"] = "<img src=x onerror=alert(1)>|\n\n<script>1</script> [a](b) \x1b[31m"
    (run / "summary.json").write_text(json.dumps(summary))
    export(run, form="safetensors")
    card = (run / "export.safetensors.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| Trained on")]
    assert "<" not in row and "\\|" in row and "\\[a\\]" in row and "\x1b" not in card and "<script" not in card
