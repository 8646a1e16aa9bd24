"""Loggers: each gets every step once, through kills and resumes, and none of them can end a training."""

import csv
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrix_ssl.cli import options
from matrix_ssl.config import RunConfig, to_dict
from matrix_ssl.errors import ConfigError, MissingExtra
from matrix_ssl.runs import loggers
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import CONFIG
from matrix_ssl.runs.metrics import MetricsWriter
from tests.support.runs import BARE, PATIENCE, lines, start, succeed, tiny


def installed(package: str) -> pytest.MarkDecorator:
    reason = f"{package} (an extra of this package) is not installed"
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=reason)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, and an environment that names no tracker."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / CONFIG, to_dict(RunConfig(epochs=7)))
    return folder


def line(step: int, **more: Any) -> dict[str, Any]:
    """A line of metrics; the loss is a function of the step, as in a run that resumes."""
    return {"step": step, "loss": 1 / step, "spectrum": [1.0, 0.5], "alarm": ["It collapses."], **more}


def train(run: Path, name: str, *, resumed_after: int, until: int, measured: bool = False) -> list[str]:
    """Steps after the newest checkpoint, perhaps with a second line on held-out data; returns what is said."""
    said: list[str] = []
    writer = MetricsWriter(run, after_step=resumed_after, loggers=[name], say=said.append)
    for step in range(resumed_after + 1, until + 1):
        writer.write(line(step))
        if measured:
            writer.write({"step": step, "eval_loss": float(step)})
    writer.close(finished=until == 6)
    return said


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_holds_the_numbers_of_every_line(run: Path) -> None:
    said: list[str] = []
    writer = MetricsWriter(run, after_step=0, loggers=["csv"], say=said.append)
    writer.write(line(1))
    writer.write(line(2, rank=8, bad=float("nan")))  # a new column, and a number that is none
    writer.write(line(3))
    assert said == [f"Metrics as a table: {run / 'metrics.csv'}."]
    assert rows(run) == [
        {"step": "1", "loss": "1.0", "rank": ""},
        {"step": "2", "loss": "0.5", "rank": "8"},
        {"step": "3", "loss": repr(1 / 3), "rank": ""},
    ]
    MetricsWriter(run, after_step=2, loggers=["csv"], say=said.append).write(line(3, rank=9))
    assert [row["rank"] for row in rows(run)] == ["", "8", "9"]


def events(run: Path) -> list[tuple[int, float]]:
    """Steps and losses as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protobuf
        accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars("loss")]


@installed("tensorboard")
def test_tensorboard_shows_each_step_once(run: Path) -> None:
    train(run, "csv", resumed_after=0, until=2)
    train(run, "tensorboard", resumed_after=2, until=5)  # later than the table: it gets the earlier lines, too
    train(run, "tensorboard", resumed_after=3, until=6)
    train(run, "csv", resumed_after=5, until=8)  # a session without it leaves no gap
    train(run, "tensorboard", resumed_after=8, until=9)
    assert [step for step, _ in events(run)] == [*range(1, 10)]
    assert [value for _, value in events(run)] == pytest.approx([1 / step for step in range(1, 10)])


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: after 7 bytes, a log in the format of LevelDB, blocks of 32 KiB with fragments."""
    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left  # a header does not cross blocks
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last fragment
            yield record
            record = b""


def wandb_steps(run: Path) -> tuple[set[str], list[tuple[int, float]], list[dict]]:
    """Identities, steps with their losses, and configurations in the files of all offline runs, in order."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # waits for the process that writes the files
    identities, steps, configs = set(), [], []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                identities.add(record.run.run_id)
                configs.append({item.key: json.loads(item.value_json) for item in record.run.config.update})
            if record.HasField("history"):
                items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
                steps.append((items["_step"], items["loss"]))
    return identities, steps, configs


@installed("wandb")
def test_weights_and_biases_stays_offline_and_gets_each_step_once(run: Path) -> None:
    said = train(run, "wandb", resumed_after=0, until=4)
    said += train(run, "wandb", resumed_after=2, until=6)  # steps 3 and 4 are trained again
    identities, steps, configs = wandb_steps(run)
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in steps] == pytest.approx([1 / step for step in range(1, 7)])
    (identity,) = identities
    assert configs[0]["epochs"] == 7
    assert said == [f"W&B, offline. To upload: wandb sync {run}/wandb/offline-run-*-{identity}"] * 2


@pytest.mark.slow
@installed("wandb")
def test_weights_and_biases_gets_each_step_once_through_a_kill(run: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.runs.test_loggers import MetricsWriter, line\n"
        "writer = MetricsWriter(Path(sys.argv[1]), after_step=0, loggers=['wandb'])\n"
        "for step in range(1, 5): writer.write(line(step))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(run)], cwd=Path(__file__).parents[2], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    train(run, "wandb", resumed_after=2, until=6)
    identities, steps, _ = wandb_steps(run)
    assert len(identities) == 1
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]


@installed("mlflow")
@pytest.mark.parametrize("store", ["file", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_mlflow_gets_each_step_once_in_one_run(run: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder, which is quick, and in the database that MLflow takes by itself."""
    if store == "file":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (run.parent / "mlruns").as_uri())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own dependencies
        said = train(run, "mlflow", resumed_after=0, until=4, measured=True)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=said[0].rpartition(" ")[2])
        (experiment,) = client.search_experiments(filter_string="name = 'matrix-ssl'")
        (before,) = client.search_runs([experiment.experiment_id])
        assert before.info.status == "KILLED"
        monkeypatch.chdir("/")  # the run remembers the place of its store
        train(run, "mlflow", resumed_after=2, until=6, measured=True)
        (after,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(after.info.run_id, "loss")
        held_out = client.get_metric_history(after.info.run_id, "eval_loss")
    assert (after.info.run_name, after.info.status, after.data.params["epochs"]) == ("run", "FINISHED", "7")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in range(1, 7)]
    assert [(metric.step, metric.value) for metric in held_out] == [(step, step) for step in range(1, 7)]


class Broken(loggers.Logger):
    """Fails at the third line, and when it is closed."""

    name = "broken"
    taken: list[int]

    def __init__(self, run: Path, history: list[dict[str, Any]]):
        if not run.exists():
            raise ConnectionError("no answer\nfrom the server.")
        self.place, self.taken = "Nowhere.", []

    def write(self, line: dict[str, Any]) -> None:
        if line["step"] == 3:
            raise ConnectionError("no answer\nfrom the server.")
        self.taken.append(line["step"])

    def close(self, *, finished: bool) -> None:
        raise TimeoutError("gone")


def test_a_logger_that_fails_is_told_and_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loggers.LOGGERS, "broken", Broken)
    said = train(run, "broken", resumed_after=0, until=6)
    assert said == [
        "Nowhere.",
        "Warning: the logger broken failed (ConnectionError: no answer from the server) and gets no more lines; the "
        "training goes on. When the run is resumed, it gets the lines that it has missed.",
    ]
    assert [each["step"] for each in lines(run)] == [1, 2, 3, 4, 5, 6]
    said = train(run, "broken", resumed_after=6, until=6)
    assert said[1].startswith("Warning: the logger broken failed (TimeoutError: gone)")


def test_a_logger_that_does_not_start_is_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loggers.LOGGERS, "broken", Broken)
    message = r"The logger broken does not start: ConnectionError: no answer from the server\. Remove it or set it up\."
    with pytest.raises(ConfigError, match=message):
        loggers.open_loggers(["broken"], run / "absent", [])
    with pytest.raises(ConfigError, match=r"There is no logger 'wandbb'\. Did you mean 'wandb'\?"):
        loggers.check_loggers(["wandbb"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"'mlflow' is not installed: .* pip install -e '\.\[mlflow\]'"):
        loggers.check_loggers(["csv", "mlflow"])


def test_the_command_offers_all_loggers() -> None:
    assert tuple(loggers.LOGGERS) == options.LOGGERS


@pytest.mark.slow
@installed("wandb")
@installed("mlflow")
def test_a_killed_run_logs_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line, with all loggers at once."""
    words = [*tiny("log_every=1", "checkpoint_every=8"), "--logger", "csv", "--logger", "wandb", "--logger", "mlflow"]
    words += ["--logger", "tensorboard"]
    store = (tmp_path / "mlruns").as_uri()
    variables = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_TRACKING_URI": store}
    command = start(tmp_path, words, before=BARE, environment=variables)
    folder = tmp_path / "r"
    for _ in range(int(PATIENCE * 20)):
        if (folder / "metrics.jsonl").exists() and len(lines(folder)) >= 13:
            break
        signal.sigtimedwait([], 0.05)
    command.send(signal.SIGKILL)
    assert command.wait().code == -signal.SIGKILL
    resumed = start(tmp_path, words, before=BARE, environment=variables).wait()
    assert resumed.code == 0 and "Resuming after step" in resumed.err, resumed.err
    everything = list(range(1, 23))
    assert [each["step"] for each in lines(folder)] == everything
    assert [int(row["step"]) for row in rows(folder)] == everything
    assert [step for step, _ in events(folder)] == everything
    assert [step for step, _ in wandb_steps(folder)[1]] == everything
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=store)
    (experiment,) = client.search_experiments(filter_string="name = 'matrix-ssl'")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert [metric.step for metric in client.get_metric_history(tracked.info.run_id, "loss")] == everything
    succeed(tmp_path, words, before=BARE)  # a finished run logs nothing
    assert [int(row["step"]) for row in rows(folder)] == everything
