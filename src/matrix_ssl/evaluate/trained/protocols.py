"""Runs and resumes the protocols that train a classifier by gradient steps, and writes their results."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl import distributed
from matrix_ssl.config.validation import settings
from matrix_ssl.data.base import Source
from matrix_ssl.evaluate import results
from matrix_ssl.evaluate.probes.protocols import Predictions, Say
from matrix_ssl.evaluate.results import Answers
from matrix_ssl.evaluate.subject import Subject
from matrix_ssl.evaluate.trained.classifier import Outcome
from matrix_ssl.evaluate.trained.fine_tune import ALL_LABELS, PUBLISHED_RATES, FineTune, fine_tune
from matrix_ssl.evaluate.trained.label_subsets import from_list, list_names, store, stratified
from matrix_ssl.evaluate.trained.linear_sgd import LinearSGD, linear_sgd
from matrix_ssl.evaluate.unreadable import refuse_many
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_lines
from matrix_ssl.runs.folder import METRICS

LINEAR_SGD, SEMI_SUPERVISED, FINE_TUNE = PROTOCOLS = ("linear-sgd", "semi-supervised", "fine-tune")
_FRACTIONS = {"semi_supervised_1": 0.01, "semi_supervised_10": 0.1}
_FEW_STEPS = 5000
_SEED = 0  # for the order, the views, the head and the choice of labels; the same for every encoder


@settings
class EvaluationSettings:
    """Settings of the protocols that train."""

    linear_sgd: LinearSGD = field(default_factory=LinearSGD)
    semi_supervised: FineTune = field(default_factory=lambda: FineTune(rates=PUBLISHED_RATES))
    fine_tune: FineTune = ALL_LABELS


def run_trained(
    subject: Subject, protocol: str,
    *, settings: EvaluationSettings, label_list: Path | None, fresh: bool, display: Display,
) -> None:  # fmt: skip
    """Runs or resumes one protocol and writes its result.

    An existing result is kept, unless ``fresh``. Arguments as in ``protocols.run_protocols``.
    """
    say, chosen = display.say, getattr(settings, protocol.replace("-", "_"))
    parts = _parts(subject, protocol, label_list)
    labelled = {measure: indices.tolist() for measure, indices in parts.items()}
    question = subject.fingerprint(protocol, dataclasses.asdict(chosen), labelled)
    is_known = not fresh and results.read(subject.folder, protocol, fingerprint=question) is not None
    if distributed.broadcast_object(is_known):
        say(f"{protocol} has been measured on {subject.test.name!r}: --fresh measures it again.")
        return
    predictions: dict[str, Predictions] = {}
    values: dict[str, Any] = {"protocol": protocol, "measures": {}, "fingerprint": question} | subject.question
    answers = None
    for measure, indices in parts.items():
        source = subject.train.subset(indices)
        folder = subject.folder / "training" / f"{measure}-{question}"
        if fresh and distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
        distributed.barrier()
        say(f"{measure}: {len(source)} labelled images")
        if protocol == LINEAR_SGD:
            _warn_of_few_steps(chosen, len(source), say)
        outcome = _train(subject, source, protocol, chosen, folder, display)
        with distributed.together():
            if distributed.is_main():
                data = subject.config.data
                refuse_many(
                    outcome.unreadable, subject.test, subject.folder, part=data.max_unreadable, workers=data.workers,
                    say=say,
                )  # fmt: skip
        answers = Answers.of(subject.test, outcome.indices)
        used = ("batch_size", "rates", "held_out", "train_accuracy", "seconds")
        predictions[measure] = Predictions(
            outcome.scores.argmax(dim=1)[None], {name: getattr(outcome, name) for name in used}
        )
        if distributed.is_main():
            curve = read_lines(folder / METRICS)
            described = results.describe(predictions[measure], answers)
            values["measures"][measure] = described | {"labelled": len(source), "curve": curve}
    assert answers is not None  # every protocol has a part
    if distributed.is_main():
        values |= {
            "unreadable": len(subject.test) - len(answers.labels),
            "settings": dataclasses.asdict(chosen),
            "environment": devices.environment(subject.device),
        }
        if protocol == SEMI_SUPERVISED:
            for measure, indices in parts.items():
                store(subject.folder / f"{measure}.txt", subject.train, indices)
        results.write(subject.folder, protocol, values, predictions, answers)
        _remove_trainings(subject.folder / "training", parts)
    distributed.barrier()


def _remove_trainings(folder: Path, measures: Iterable[str]) -> None:
    """Deletes what trainings of these measures needed for resuming, whatever their settings, but of no other measure.

    An interrupted training of another protocol is still to be resumed.
    """
    for measure in measures:
        for training in folder.glob(f"{measure}-*"):
            shutil.rmtree(training, ignore_errors=True)
    with contextlib.suppress(OSError):  # others are there
        folder.rmdir()


def check_parts(subject: Subject, label_list: Path | None) -> None:
    """Raises DataError if the labelled images of ``semi-supervised`` cannot be chosen, or cannot be listed later."""
    for indices in _parts(subject, SEMI_SUPERVISED, label_list).values():
        list_names(subject.train, indices)


def _parts(subject: Subject, protocol: str, label_list: Path | None) -> dict[str, NDArray[np.int64]]:
    """The training images that keep their labels, by measure."""
    if protocol != SEMI_SUPERVISED:
        return {protocol.replace("-", "_"): np.arange(len(subject.train))}
    if label_list is not None:
        return {"semi_supervised_list": from_list(subject.train, label_list)}
    return {name: stratified(subject.train, fraction, seed=_SEED) for name, fraction in _FRACTIONS.items()}


def _train(subject: Subject, source: Source, protocol: str, settings: Any, folder: Path, display: Display) -> Outcome:
    width = subject.untrained[1]
    if protocol == LINEAR_SGD:
        return linear_sgd(
            subject.encoder, width, source, subject.test, subject.config.data,
            settings=settings, folder=folder, device=subject.device, display=display, seed=_SEED,
        )  # fmt: skip
    if len(settings.rates) > 1 and np.bincount(source.labelled()[0]).min() < 2:
        display.say(
            f"a class has a single labelled image: the first pair of rates, {settings.rates[0]}, is used untried."
        )
        settings = dataclasses.replace(settings, rates=settings.rates[:1])
    return fine_tune(
        subject.encoder, width, source, subject.test, subject.config.data,
        settings=settings, folder=folder, device=subject.device, display=display, seed=_SEED,
    )  # fmt: skip


def _warn_of_few_steps(settings: LinearSGD, images: int, say: Say) -> None:
    steps = settings.epochs * max(1, images // settings.batch_size)
    if settings.optimizer == "lars" and steps < _FEW_STEPS:
        say(
            f"warning: {steps} steps; the published rate is meant for the 28,000 of ImageNet, after few the layer has "
            "hardly moved: linear needs no rate, or give --set linear_sgd.optimizer=sgd --set linear_sgd.rate=10 "
            "--set linear_sgd.batch_size=256."
        )
