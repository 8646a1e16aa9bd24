"""One training of a comparison with its evaluation, in a process of its own.

    python -m matrix_ssl.compare.job FOLDER

FOLDER is a run folder with ``job.json``. The process resumes from the newest checkpoint and ends with ``result.json``.
The test pictures are read once, after the last step of a run that is reported, and never by a trial.
"""

import ctypes
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matrix_ssl import config as configuration
from matrix_ssl import record, train
from matrix_ssl.config import DataConfig, RunConfig
from matrix_ssl.data import Source, has_test_part, open_source, split_source
from matrix_ssl.encoder import build_encoder, load_encoder
from matrix_ssl.errors import ConfigError, MatrixSSLError, TrainingError
from matrix_ssl.evaluate.accuracy import accuracy
from matrix_ssl.evaluate.features import RawPixels, extract
from matrix_ssl.evaluate.knn import knn_predict
from matrix_ssl.evaluate.protocols import PROTOCOLS, measure
from matrix_ssl.progress import Display
from matrix_ssl.randomness import permutation

JOB, RESULT, OUTPUT = "job.json", "result.json", "output.txt"
HELD_OUT = 0.2  # part of the training pictures on which trials are judged and curves are measured
CURVE = "knn_20_held_out"
_SPLIT = 0  # one subset and one split for all methods, trials and seeds
_CURVE_PICTURES = (2000, 1000)  # at most so many to choose neighbours from, and so many to classify
_TRIAL_PROTOCOLS = ("knn", "linear")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux

Accuracies = dict[str, dict[str, float | int]]  # by protocol: mean, sd and n


def open_parts(data: DataConfig, *, data_root: Path | None, download: bool) -> tuple[Source, Source]:
    """The training and the test pictures of a comparison; without a test part, a fifth of every class is held out.

    ``data.subset`` limits the training pictures, by one choice for all runs.

    Raises:
        ConfigError: the pictures have no labels.
    """
    learn = open_source(data.source, split="train", data_root=data_root, download=download)
    if learn.labels is None:
        raise ConfigError(f"{data.source!r} has no labels to compare by: put each class in a folder of its own.")
    if has_test_part(data.source, data_root=data_root, download=download):
        judge = open_source(data.source, split="test", data_root=data_root, download=download)
    else:
        learn, judge = split_source(learn, HELD_OUT, _SPLIT)
    if data.subset and data.subset < len(learn):
        learn = learn.subset(np.sort(permutation(len(learn), _SPLIT)[: data.subset]))
    return learn, judge


def run_job(folder: Path) -> dict[str, Any]:
    """Does what ``job.json`` in ``folder`` describes, or goes on with it, and writes ``result.json``.

    Returns:
        The result: ``accuracy``, ``seconds`` and so on, or ``error`` for a training that diverged.

    Raises:
        MatrixSSLError: anything else that is wrong; the job may be repeated.
    """
    job = record.read_json(folder / JOB)
    config = configuration.from_dict(job["config"])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device = train.choose_device(job["device"])
    root = Path(job["data_root"]) if job["data_root"] else None
    learn, judge = open_parts(config.data, data_root=root, download=False)
    with record.lock(folder):
        if job["stage"] == "baselines":
            result: dict[str, Any] = {"accuracy": _baselines(config, learn, judge, device=device)}
        else:
            result = _train_and_evaluate(config, folder, learn, judge, is_trial=job["stage"] == "tuning", device=device)
        record.write_json(folder / RESULT, result)
    return result


def _train_and_evaluate(
    config: RunConfig, folder: Path, learn: Source, judge: Source, *, is_trial: bool, device: torch.device
) -> dict[str, Any]:
    part = split_source(learn, HELD_OUT, _SPLIT)
    if is_trial:
        learn, judge = part
    try:
        result = _train(config, folder, learn, part, device=device, observed=not is_trial)
    except TrainingError as error:
        return {"error": str(error)}
    protocols = _TRIAL_PROTOCOLS if is_trial else PROTOCOLS
    network = {"encoder": load_encoder(folder)}
    found = _accuracies(network, config.data, learn, judge, protocols=protocols, device=device)
    return result | {"accuracy": found["encoder"]}


def _baselines(config: RunConfig, learn: Source, judge: Source, *, device: torch.device) -> dict[str, Accuracies]:
    encoders: dict[str, nn.Module] = {"raw_pixels": RawPixels(), "random_network": build_encoder(config)[0]}
    return _accuracies(encoders, config.data, learn, judge, protocols=PROTOCOLS, device=device)


def _train(
    config: RunConfig, folder: Path, learn: Source, part: tuple[Source, Source], *, device: torch.device, observed: bool
) -> dict[str, Any]:
    config = train.count_pictures(configuration.override(config, ["data.subset=0"]), learn)
    loop = train.prepare(config, source=learn, device=device, display=Display(quiet=True))
    if observed:
        bank, queries = (
            source.subset(np.sort(permutation(len(source), _SPLIT)[:most]))
            for source, most in zip(part, _CURVE_PICTURES, strict=True)
        )
        loop.observe = lambda encoder: {CURVE: _nearest(encoder, config.data, bank, queries, device=device)}
    record.write_json(folder / record.CONFIG, configuration.to_dict(config))
    train.write_environment(folder, device)
    summary = loop.train(folder, None)
    lines = record.read_lines(folder / record.METRICS)
    kept = ("step", "epoch", "seconds", "loss", "effective_rank", "matrix_entropy", CURVE)
    return {
        "seconds": summary["seconds_training"],
        "images_per_second": config.batch_size * summary["steps"] / summary["seconds_training"],
        "peak_memory_mib": _peak_memory(device),
        "parameters": summary["parameters"],
        "steps": summary["steps"],
        "bad_steps": summary["bad_steps"],
        "curve": [{key: line[key] for key in kept if key in line} for line in lines],
        "environment": record.read_json(folder / record.ENVIRONMENT),
    }


def _accuracies(
    encoders: dict[str, nn.Module],
    data: DataConfig,
    learn: Source,
    judge: Source,
    *,
    protocols: tuple[str, ...],
    device: torch.device,
) -> dict[str, Accuracies]:
    x, test = (extract(encoders, part, data, device=device, on_progress=_quiet) for part in (learn, judge))
    assert x.labels is not None and test.labels is not None and learn.classes is not None  # open_parts checked
    return {
        name: measure(
            x.vectors[name], x.labels, test.vectors[name], test.labels,
            classes=learn.classes, protocols=protocols, say=print,
        )
        for name in encoders
    }  # fmt: skip


def _nearest(encoder: nn.Module, data: DataConfig, bank: Source, queries: Source, *, device: torch.device) -> float:
    x, test = (extract({"": encoder}, part, data, device=device, on_progress=_quiet) for part in (bank, queries))
    assert x.labels is not None and test.labels is not None
    return accuracy(knn_predict(x.vectors[""], x.labels, test.vectors[""], k=min(20, len(x.labels))), test.labels)


def _quiet(done: int, total: int) -> None:
    return None


def _peak_memory(device: torch.device) -> float:
    """MiB: of the GPU's memory, or of this process, all of it, PyTorch and the pictures included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Runs a job; errors meant for a person end in one line of JSON on standard error and their exit code."""
    if sys.platform == "linux":  # a comparison that was killed must not leave its jobs behind: they stop like it
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    try:
        run_job(Path(sys.argv[1]))
    except MatrixSSLError as error:
        print(json.dumps({"error": str(error)}), file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
