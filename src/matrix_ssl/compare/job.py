"""One training of a comparison with its evaluation, in a separate process.

    python -m matrix_ssl.compare.job FOLDER [PARENT]

FOLDER is a run folder with ``job.json``. The process resumes from the newest checkpoint and ends with ``result.json``.
It stops when the process with the ID PARENT, which started it, has ended. The test images are read once, after the last
step of a reported run, and never by a trial.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matrix_ssl import config as configuration
from matrix_ssl.config import DataConfig, RunConfig, system
from matrix_ssl.config.method_names import file_name
from matrix_ssl.config.untrusted import file_sha256
from matrix_ssl.data import Source, has_test_split, open_source, split_source
from matrix_ssl.data.sources import Split, choose_subset
from matrix_ssl.encoder import initialise_encoder, load_encoder
from matrix_ssl.encoder.opening import open_encoder
from matrix_ssl.errors import ConfigError, Diverged, MatrixSSLError, RunFolderError
from matrix_ssl.evaluate.features import RawPixels, extract
from matrix_ssl.evaluate.online import ask_neighbours
from matrix_ssl.evaluate.probes.accuracy import accuracy
from matrix_ssl.evaluate.probes.protocols import PROTOCOLS, measure
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import fingerprint, read_json, read_lines, read_object, write_json
from matrix_ssl.runs.folder import CHECKPOINTS, CONFIG, ENCODER, ENVIRONMENT, METRICS, lock, read_config, tidy
from matrix_ssl.training import setup
from matrix_ssl.training.measured import with_statistics
from matrix_ssl.training.task import Observer

JOB, RESULT, OUTPUT = "job.json", "result.json", "output.txt"
HELD_OUT = 0.2  # fraction of the training images on which trials are judged and curves are measured
CURVE = "knn_20_held_out"
_SPLIT = 0  # the same subset and split for all methods, trials and seeds
_CURVE_BANK, _CURVE_QUERIES = 2000, 1000  # the most images to choose neighbours from, and to classify
_TRIAL_PROTOCOLS = ("knn", "linear")
_NEIGHBOURS = (1, 20)
_L2 = 1.0  # of the linear probe; fixed, since features are standardised and trials need many probes

Accuracies = dict[str, dict[str, float | int]]  # by protocol: mean, sd and n


def open_training_part(data: DataConfig, *, data_root: Path | None, download: bool = False) -> Source:
    """The training images of a comparison, or ``data.subset`` of them; without a test split, four fifths of them.

    Raises:
        ConfigError: the images have no labels.
    """
    learn = _open(data, "train", data_root=data_root, download=download)
    if learn.labels is None:
        raise ConfigError(f"{data.source!r} has no labels to compare by: {learn.unlabelled_because}.")
    if not has_test_split(data.source, data_root=data_root, download=download):
        learn, _ = split_source(learn, HELD_OUT, _SPLIT)
    return choose_subset(learn, data.subset, seed=_SPLIT)


def with_measured(
    config: RunConfig, *, data_root: Path | None, download: bool, say: Callable[[str], None]
) -> RunConfig:
    """A run with channels, range, mean and deviation, unless given, measured on the training images.

    Args:
        say: called with a sentence on what was measured.

    Raises:
        DataError, ConfigError: as for ``open_training_part`` and ``with_statistics``.
    """
    data = config.data
    if data.mean and data.channels != -1 and (data.value_range or data.white_level or not data.channels):
        return config
    learn = open_training_part(data, data_root=data_root, download=download)
    return with_statistics(config, learn, run=None, say=say)[0]


def with_precision(config: RunConfig, device: torch.device, *, plan: Path | None, run: str) -> RunConfig:
    """A run in the precision of all trainings of a plan, which is fixed when the plan starts.

    Args:
        plan: ``plan.json`` of earlier calls, if it exists; None: start over.
        run: its key in the plan.
    """
    recorded = None
    if plan is not None and plan.exists():
        before = read_object(plan, run)[run]
        recorded = before.get("precision") if isinstance(before, dict) else None
    return setup.settle_precision(config, device, recorded=recorded)


def open_test_part(data: DataConfig, *, data_root: Path | None, download: bool = False) -> Source:
    """The test images of a comparison; without a test split, a fifth of every class."""
    if has_test_split(data.source, data_root=data_root, download=download):
        return _open(data, "test", data_root=data_root, download=download)
    return split_source(_open(data, "train", data_root=data_root, download=download), HELD_OUT, _SPLIT)[1]


def has_trained(out: Path) -> bool:
    """Whether a training in a folder with several has a result or weights, or can be resumed.

    As long as none has, nothing is lost if the folder's plan gives way to a different one.
    """
    kept = (RESULT, ENCODER, f"{CHECKPOINTS}/step-*[1-9]*.safetensors")  # that of step 0 is only the start
    return any(any(out.glob(f"{part}/*/*/{name}")) for part in ("runs", "tuning", "tuned") for name in kept)


def _open(data: DataConfig, split: Split, *, data_root: Path | None, download: bool) -> Source:
    return open_source(
        data.source, split=split, data_root=data_root, download=download, reading=data.reading
    )  # fmt: skip


def hold_out(learn: Source) -> tuple[Source, Source]:
    """The images that a trial learns from and those it is judged on, both from the training images."""
    return split_source(learn, HELD_OUT, _SPLIT)


def run_job(folder: Path) -> dict[str, Any]:
    """Runs or resumes the job in ``job.json`` and writes ``result.json``, with ``error`` if the training diverged.

    Raises:
        MatrixSSLError: anything else went wrong; the job may be repeated.
    """
    job = read_object(folder / JOB, "config", "threads", "device", "data_root", "stage", "method")
    config = configuration.from_dict(job["config"])
    if job.get("source") not in (None, source_digest(config.method.name)):
        raise ConfigError(f"{config.method.name} has changed since the comparison was started: run the command again.")
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device = devices.choose_device(job["device"])
    root = Path(job["data_root"]) if job["data_root"] else None
    learn = open_training_part(config.data, data_root=root)
    open_test = partial(open_test_part, config.data, data_root=root)
    with lock(folder):
        tidy(folder)
        if job["stage"] == "baselines":
            baselines = {"raw_pixels": RawPixels(), "random_network": initialise_encoder(config)[0]}
            accuracies = _accuracies(baselines, config.data, learn, open_test(), protocols=PROTOCOLS, device=device)
            result: dict[str, Any] = {"accuracy": accuracies}
        elif job["stage"] == "public":
            started, public = time.monotonic(), {"encoder": open_encoder(job["method"]).encoder}
            accuracies = _accuracies(public, config.data, learn, open_test(), protocols=PROTOCOLS, device=device)
            result = {"accuracy": accuracies["encoder"], "seconds": time.monotonic() - started}
        else:
            test = None if job["stage"] == "tuning" else open_test
            result = _train_and_evaluate(config, folder, learn, test, device=device)
        write_json(folder / RESULT, result | {"job": identify(job["stage"], job["method"], config)})
    return result


def identify(stage: str, method: str, config: RunConfig) -> str:
    """Identifies the result of a job, independently of where the method's file is."""
    return fingerprint(stage, file_name(method), configuration.identifying(with_method(config, file_name)))


def with_method(config: RunConfig, rename: Callable[[str], str]) -> RunConfig:
    """A run with its method renamed."""
    return dataclasses.replace(config, method=dataclasses.replace(config.method, name=rename(config.method.name)))


def source_digest(method: str) -> str | None:
    """The SHA-256 of a method's file; None for a method of this package."""
    return file_sha256(method) if method.endswith(".py") else None


def _train_and_evaluate(
    config: RunConfig, folder: Path, learn: Source, open_test: Callable[[], Source] | None, *, device: torch.device
) -> dict[str, Any]:
    """A reported run or, without ``open_test``, a trial."""
    part = hold_out(learn)
    if open_test is None:
        learn = part[0]
    try:
        result = _train(config, folder, learn, part, device=device, observed=open_test is not None)
    except Diverged as error:  # any other error is not the method's fault
        return {"error": str(error)}
    judge, protocols = (part[1], _TRIAL_PROTOCOLS) if open_test is None else (open_test(), PROTOCOLS)
    encoders = {"encoder": load_encoder(folder)}
    accuracies = _accuracies(encoders, config.data, learn, judge, protocols=protocols, device=device)
    return result | {"accuracy": accuracies["encoder"]}


def _train(
    config: RunConfig, folder: Path, learn: Source, part: tuple[Source, Source], *, device: torch.device, observed: bool
) -> dict[str, Any]:
    config = setup.identify_data(configuration.override(config, ["data.subset=0"]), learn)
    training = setup.prepare(config, source=learn, device=device, display=Display(quiet=True))
    if observed:
        bank = choose_subset(part[0], _CURVE_BANK, seed=_SPLIT)
        queries = choose_subset(part[1], _CURVE_QUERIES, seed=_SPLIT)
        training.observer = _Curve(bank, queries, config.data, device)
    write_json(folder / CONFIG, configuration.to_dict(_as_begun(config, folder)))
    write_json(folder / ENVIRONMENT, devices.environment(device))
    summary = training.train(folder)
    kept = ("step", "epoch", "seconds", "loss", "effective_rank", "matrix_entropy", CURVE)
    return {
        "seconds": summary["seconds_training"],
        "cpu_seconds": training.counters["cpu_seconds"],
        "images_per_second": config.batch_size * summary["steps"] / summary["seconds_training"],
        "peak_memory_mib": _peak_memory(device),
        "parameters": summary["parameters"],
        "steps": summary["steps"],
        "bad_steps": summary["bad_steps"],
        "curve": [{key: line[key] for key in kept if key in line} for line in read_lines(folder / METRICS)],
        "environment": read_json(folder / ENVIRONMENT),
    }


def _as_begun(config: RunConfig, folder: Path) -> RunConfig:
    """The run with its method's file where it was at the start, by which checkpoints identify the run."""
    before = config.method.name
    if (folder / CONFIG).exists():
        with contextlib.suppress(RunFolderError):  # a damaged file is written again
            before = read_config(folder).method.name
    return with_method(config, lambda name: before if file_name(before) == file_name(name) else name)


def _accuracies(
    encoders: Mapping[str, nn.Module], data: DataConfig, learn: Source, judge: Source,
    *, protocols: tuple[str, ...], device: torch.device,
) -> dict[str, Accuracies]:  # fmt: skip
    x, test = (extract(encoders, images, data, device=device) for images in (learn, judge))
    return {
        name: measure(
            x.vectors[name], x.labels, test.vectors[name], test.labels,
            classes=learn.labelled()[1], protocols=protocols, neighbours=_NEIGHBOURS, l2=_L2, say=print,
        )
        for name in encoders
    }  # fmt: skip


@dataclass(eq=False)
class _Curve(Observer):
    """The accuracy of 20 nearest neighbours on held-out training images."""

    bank: Source
    queries: Source
    data: DataConfig
    device: torch.device

    def observe(self, encoder: nn.Module) -> dict[str, float]:
        nearest, test = ask_neighbours(encoder, self.bank, self.queries, self.data, device=self.device)
        return {CURVE: accuracy(nearest, test.labels)}


def _peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: the GPU's, or that of this whole process, including PyTorch and the images."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return system.peak_memory() / 2**20


def main() -> None:
    """Runs a job; errors meant for the user become one line on standard error and an exit code."""
    folder, *parent = sys.argv[1:]
    if parent:  # a killed comparison must not leave its jobs behind: they stop with it
        system.end_with_parent(int(parent[0]))
    try:
        run_job(Path(folder))
    except MatrixSSLError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
