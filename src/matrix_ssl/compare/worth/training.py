"""Trainings without labels, from the public encoder and from scratch, and with labels, from every start."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matrix_ssl import config as configuration
from matrix_ssl.config import DataConfig, RunConfig
from matrix_ssl.data import Source
from matrix_ssl.errors import Diverged, RunFolderError
from matrix_ssl.evaluate.trained.classifier import Classifier
from matrix_ssl.evaluate.trained.fine_tune import FineTune, attach_head, tune
from matrix_ssl.report.records import Number, Text, parse
from matrix_ssl.runs import devices
from matrix_ssl.runs.checkpoint import load_strictly, read_safetensors, save_weights
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_object, write_json
from matrix_ssl.runs.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, tidy
from matrix_ssl.training import setup

RESULT = "result.json"
_CLASSIFIER = "classifier.safetensors"
_TRAINING = "training"  # the folder of a training with labels that has not ended


def read_result(folder: Path, *, question: str) -> dict[str, Any] | None:
    """The result of a training; None if it has not ended.

    Raises:
        RunFolderError: it is damaged, or is the result of a training other than that of this ``question``.
    """
    if not (path := folder / RESULT).exists():
        return None
    values = read_object(path)
    check_question(path, values.pop("question", None), question)
    parse(_Result, values, path, remedy="remove it to train again")
    return values


@dataclass(frozen=True)
class _Result:
    """The fields of every result that are read here."""

    seconds: Number | None = None
    error: Text | None = None


def check_question(path: Path, asked: Any, question: str) -> None:
    """Raises RunFolderError for a file of another training or evaluation; None, from an earlier version, fits any."""
    if asked not in (None, question):
        raise RunFolderError(f"{path} belongs to a different training: put its own file back, or remove it.")


def pretrain(
    config: RunConfig, folder: Path, source: Source,
    *, start: Mapping[str, Tensor] | None, device: torch.device, display: Display, question: str,
) -> dict[str, Any]:  # fmt: skip
    """Runs or resumes a pre-training and returns its cost, or ``error`` if it diverged.

    Args:
        folder: the folder, which becomes a run folder.
        source: the training images; their labels are not used.
        start: the method's tensors before the first step; None: its initialisation.
        question: identifies this training; stored in the result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    config = setup.identify_data(configuration.override(config, ["data.subset=0"]), source)
    write_json(folder / CONFIG, configuration.to_dict(config))
    write_json(folder / ENVIRONMENT, devices.environment(device))
    training = setup.prepare(config, source=source, device=device, display=display, start=start)
    try:
        summary = training.train(folder)
    except Diverged as error:
        result: dict[str, Any] = {"error": str(error)}
    else:
        result = {
            "seconds": summary["seconds_training"], "cpu_seconds": training.counters["cpu_seconds"],
            "steps": summary["steps"], "parameters": summary["parameters"], "bad_steps": summary["bad_steps"],
        }  # fmt: skip
    write_json(folder / RESULT, result | {"question": question})
    return result


def train_with_labels(
    encoder: nn.Module, width: int, labelled: Source, data: DataConfig, folder: Path,
    *, settings: Sequence[FineTune], device: torch.device, seed: int, question: str,
) -> dict[str, Any]:  # fmt: skip
    """Runs or resumes a training with labels, keeps the classifier, and returns its cost, or ``error``.

    Result and classifier carry the ``question``.
    """
    try:
        tuned = tune(
            encoder, width, labelled, data,
            settings=settings, folder=folder / _TRAINING, device=device, display=Display(quiet=True), seed=seed,
        )  # fmt: skip
    except Diverged as error:
        result: dict[str, Any] = {"error": str(error)}
    else:
        save_weights(folder / _CLASSIFIER, tuned.classifier.learner, {"question": question})
        result = {**tuned.fitted._asdict(), "held_out": tuned.held_out, "settings": dataclasses.asdict(tuned.settings)}
    write_json(folder / RESULT, result | {"question": question})
    return result


def remove_work(folder: Path) -> None:
    """Deletes what a finished training needed for resuming, even if it was killed before it could do so itself."""
    for name in (CHECKPOINTS, _TRAINING):
        shutil.rmtree(folder / name, ignore_errors=True)


def load_classifier(folder: Path, encoder: nn.Module, width: int, classes: int, *, question: str) -> Classifier:
    """Loads the classifier that ``train_with_labels`` kept."""
    classifier = attach_head(encoder, width, classes, rates=(1.0, 1.0), seed=0)
    path = folder / _CLASSIFIER
    tensors, facts = read_safetensors(path)
    check_question(path, facts.get("question"), question)
    load_strictly(classifier.learner, tensors, str(path))
    return classifier


def remove_classifier(folder: Path) -> None:
    """Deletes the weights of a classifier whose predictions are known."""
    (folder / _CLASSIFIER).unlink(missing_ok=True)


def fewest(labelled: Source) -> int:
    """The number of images in the smallest class."""
    labels, classes = labelled.labelled()
    return int(np.bincount(labels, minlength=len(classes)).min())
