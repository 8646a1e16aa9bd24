"""Loggers for experiment trackers: Weights & Biases and MLflow.

After a kill, the steps since the checkpoint are trained again, with the same numbers. A tracker cannot delete steps, so
each one is asked for its newest step and gets the lines after that. ``loggers.jsonl`` in the run folder records the
tracker's run.
"""

import os
import shutil
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matrix_ssl.config import flatten
from matrix_ssl.runs.files import append_line, read_json, read_lines, write_lines
from matrix_ssl.runs.folder import CONFIG
from matrix_ssl.runs.loggers.base import Line, Logger, numbers
from matrix_ssl.runs.terminal import redact

RECORD = "loggers.jsonl"
_PROJECT = "matrix-ssl"  # if the environment names none
_LONGEST_PARAMETER = 500  # characters of a parameter's value that every MLflow store accepts


class TrackedLogger(Logger):
    """A logger that passes on the lines that its tracker lacks.

    Attributes:
        run: the run folder.
        last: the newest step that the tracker has, -1 for none. Several lines may have one step.
    """

    def __init__(self, run: Path, history: Iterable[Line]):
        self.run, self.last = run, -1
        records = read_lines(run / RECORD)
        write_lines(run / RECORD, records)  # without a last line truncated by a kill
        self.start([record for record in records if record["logger"] == self.name], read_json(run / CONFIG))
        self._earlier = self.last
        for line in history:
            self.write(line)

    @abstractmethod
    def start(self, records: list[dict[str, Any]], settings: dict[str, Any]) -> None:
        """Starts a run of the tracker, or resumes the one in the records, and sets ``last``."""

    @abstractmethod
    def log(self, values: dict[str, float], step: int) -> None:
        """Passes on the numbers of a step."""

    def remember(self, **record: Any) -> None:
        """Adds a record."""
        append_line(self.run / RECORD, {"logger": self.name, **record})

    def write(self, line: Line) -> None:
        if line["step"] > self._earlier:
            self.log(numbers(line), line["step"])
            self.last = line["step"]


class WandbLogger(TrackedLogger):
    """A run of Weights & Biases, offline in the run folder unless WANDB_MODE says otherwise.

    Offline, each start or resume makes a separate folder, and all of them are uploaded into the same run. What a killed
    session had in memory is lost, so its folder is removed and its lines are written again.
    """

    name = "wandb"
    packages = ("wandb",)

    def start(self, records: list[dict[str, Any]], settings: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        identity = next((record["run"] for record in records if "run" in record), None)
        if identity is None:
            identity = uuid.uuid4().hex[:12]
            self.remember(run=identity)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        closed = {record["session"]: record["step"] for record in records if "step" in record}
        for session in {record["session"] for record in records if "session" in record} - closed.keys():
            if not list((self.run / "wandb" / session).glob("*.synced")):
                shutil.rmtree(self.run / "wandb" / session, ignore_errors=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), name=self.run.name, id=identity, resume="allow",
            dir=self.run, mode=mode, config=settings, reinit="create_new", allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )  # fmt: skip
        if mode == "offline":
            self.last = max(closed.values(), default=-1)
            self._session = Path(self._run.dir).parent.name
            self.remember(session=self._session)
            self.place = f"W&B, offline. To upload: wandb sync {self.run}/wandb/offline-run-*-{identity}"
        else:
            self.last = self._run.step - 1  # a resumed run reports its next step
            self._session = ""
            self.place = f"W&B: {self._run.url or mode}"

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
        if self._session:
            self.remember(session=self._session, step=self.last)


class MLflowLogger(TrackedLogger):
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names, else in MLflow's default in the current folder."""

    name = "mlflow"
    packages = ("mlflow",)

    def start(self, records: list[dict[str, Any]], settings: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        known = records[0] if records else {}
        place = os.environ.get("MLFLOW_TRACKING_URI") or known.get("place") or mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(tracking_uri=place)
        self.place = f"MLflow: mlflow ui --backend-store-uri {place}"
        if known:
            self._id = known["run"]
            self._client.update_run(self._id, status="RUNNING")
            self.last = self._newest_step()
        else:
            self._id = self._create(settings)
            self.remember(run=self._id, place=redact(place))

    def log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")

    def _create(self, settings: dict[str, Any]) -> str:
        """A new run of the experiment, which is created if necessary, with the settings as its parameters."""
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        identity: str = self._client.create_run(number, run_name=self.run.name).info.run_id
        parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in flatten(settings)]
        self._client.log_batch(identity, params=parameters)
        return identity

    def _newest_step(self) -> int:
        keys = self._client.get_run(self._id).data.metrics
        steps = (metric.step for key in keys for metric in self._client.get_metric_history(self._id, key))
        return max(steps, default=-1)
