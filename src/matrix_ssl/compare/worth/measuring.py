"""The single evaluation on the test images: every arm's predictions, for every number of labels and every seed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matrix_ssl.compare.worth.labels import Budget
from matrix_ssl.compare.worth.training import check_question
from matrix_ssl.config import DataConfig
from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import why
from matrix_ssl.data import Source
from matrix_ssl.errors import RunFolderError
from matrix_ssl.evaluate.feature_files import FeatureFiles
from matrix_ssl.evaluate.features import Features, extract
from matrix_ssl.evaluate.probes.linear import fit_logistic_regression, scale_of
from matrix_ssl.evaluate.probes.penalty import PENALTIES, choose_penalty
from matrix_ssl.runs.files import read_object, write_atomically, write_json

_FEW = 10  # labels per class up to which the low-shot protocol's penalty is used: too few to hold images out
_PENALTY = 1.0


@dataclass(frozen=True)
class Answers:
    """What an arm with one seed predicts for the test images, and what it cost."""

    predicted: Mapping[str, NDArray[np.int64]]  # by a budget's key: (m,)
    images: NDArray[np.int64]  # (m,), which test images
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path, *, question: str) -> None:
        """Writes the predictions, and then the facts next to them, which mark them as complete.

        Both carry the ``question``, which identifies these answers.
        """
        arrays: dict[str, Any] = {**self.predicted, "_images": self.images, "_question": np.array(question)}
        write_atomically(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays))
        write_json(path.with_suffix(".json"), {**self.facts, "question": question})

    @staticmethod
    def read(path: Path, *, question: str) -> "Answers | None":
        """What ``write`` wrote; None if incomplete, RunFolderError if damaged or for a different question."""
        facts, file = path.with_suffix(".json"), path.with_suffix(".npz")
        if not facts.exists():
            return None
        try:
            arrays = read_arrays(file)
            images, asked = arrays.pop("_images"), arrays.pop("_question", None)
            values = read_object(facts)
            check_question(file, None if asked is None else str(asked), question)
            check_question(facts, values.pop("question", None), question)
            return Answers(arrays, images, values)
        except (OSError, ValueError, KeyError) as error:
            raise RunFolderError(
                f"{file} is damaged ({why(error)}). Remove it and {facts.name}, and run the same command again."
            ) from error


def features(
    network: nn.Module, train: Source, test: Source, data: DataConfig, folder: Path,
    *, fingerprint: str, device: torch.device, refuse: Callable[..., None],
) -> tuple[Features, Features, dict[str, float]]:  # fmt: skip
    """Features of the training and test images, and the seconds they took; the same call resumes.

    ``refuse`` is ``evaluate.unreadable.refuse_many`` with all except its first two arguments.
    """
    taken, seconds = [], {}
    for split, source in (("train", train), ("test", test)):
        started = time.monotonic()
        files = FeatureFiles(folder / split, fingerprint=f"{fingerprint} {split}")
        taken.append(
            extract(
                {"": network}, source, data, device=device, files=files, on_unreadable=partial(refuse, source=source)
            )
        )
        seconds[f"{split}_feature_seconds"] = time.monotonic() - started
    return taken[0], taken[1], seconds


def classify(
    train: Features, test: Features, budgets: list[Budget], classes: int,
    *, seed: int, costs: Mapping[str, float], known: Answers | None = None,
) -> Answers:  # fmt: skip
    """The predictions of a linear classifier on frozen features for every number of labels.

    Features are standardised with all training images, which needs no labels. The penalty is the best on a held-out
    fifth of the labelled images, among penalties up to the number of labelled images, above which only the biases
    matter. With at most 10 labels per class it is 1, as in the low-shot protocol. If the labelled images that can be
    read are of a single class, or there are none, every test image gets this class, or the first.

    Args:
        costs: the seconds that the features took.
        known: the answers of seed 0 on the same features, which hold for any seed with the same labelled images.
    """
    x, x_test = train.vectors[""], test.vectors[""]
    scale = scale_of(x)
    row_of = {int(image): row for row, image in enumerate(train.indices)}  # unreadable images have none
    predicted, penalties, seconds = {}, {}, {}
    for budget in budgets:
        if known is not None and np.array_equal(budget.images[seed], budget.images[0]):
            predicted[budget.key] = known.predicted[budget.key]
            penalties[budget.key] = known.facts["penalties"][budget.key]
            seconds[budget.key] = known.facts["classifier_seconds"][budget.key]
            continue
        started = time.monotonic()
        readable = [row_of[int(image)] for image in budget.images[seed] if int(image) in row_of]
        rows = torch.tensor(readable, dtype=torch.int64)
        chosen, labels = x[rows], train.labels[rows]
        penalty = _PENALTY
        if len(labels.unique()) < 2:
            only = int(labels[0]) if len(labels) else 0
            predicted[budget.key] = np.full(len(x_test), only)
            penalties[budget.key], seconds[budget.key] = penalty, time.monotonic() - started
            continue
        if int(torch.bincount(labels, minlength=classes).max()) > _FEW:
            candidates = [one for one in PENALTIES if one <= len(rows)]
            penalty = choose_penalty(chosen, labels, classes=classes, penalties=candidates, scale=scale)
        fitted = fit_logistic_regression(chosen, labels, classes=classes, l2=penalty, scale=scale)
        predicted[budget.key] = fitted.predict(x_test).numpy()
        penalties[budget.key], seconds[budget.key] = penalty, time.monotonic() - started
    facts = {**costs, "penalties": penalties, "classifier_seconds": seconds}
    return Answers(predicted, test.indices, facts)


def right(answers: Answers, test: Source, budget: str, images: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whether the answers for some of their images are right, as float64 (len(images),)."""
    rows = np.isin(answers.images, images)
    labels = test.labelled()[0][answers.images[rows]]
    return (answers.predicted[budget][rows] == labels).astype(np.float64)
