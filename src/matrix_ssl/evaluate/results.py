"""The results of an evaluation as files: a JSON file and the predictions of every protocol; no other file repeats them.

They are in ``RUN/evaluation/DATASET/``, or ``DATASET-teacher`` for the teacher's weights. If several datasets have the
same name, the folders of all but the first have the start of their digest after the name. For every measure, a JSON
file holds the accuracy, its interval, the mean per class, the accuracy of each class and the settings; the ``.npz``
file next to it holds the predicted label of every test image.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import why
from matrix_ssl.data.base import Source
from matrix_ssl.errors import RunFolderError
from matrix_ssl.evaluate.probes.accuracy import mean_interval, mean_per_class_interval
from matrix_ssl.evaluate.probes.crossed import crossed_interval
from matrix_ssl.evaluate.probes.protocols import Predictions
from matrix_ssl.runs.files import cannot_write, fingerprint, read_json, write_atomically, write_json
from matrix_ssl.runs.folder import identity

FOLDER = "evaluation"


@dataclass(frozen=True)
class Answers:
    """The correct labels of the test images that could be read, and which images they are."""

    labels: Tensor  # int64 (m,)
    where: NDArray[np.str_]  # (m,)
    classes: list[str]

    @staticmethod
    def of(source: Source, indices: NDArray[np.int64]) -> "Answers":
        """The answers for the images at ``indices`` of a labelled dataset."""
        labels, classes = source.labelled()
        where = np.array([source.where(int(i)) for i in indices], dtype=np.str_)
        return Answers(torch.from_numpy(labels[indices]), where, classes)


def folder_of(run: Path, train: Source, test: Source, weights: str) -> Path:
    """The folder for the results of training classifiers on one dataset and testing them on another.

    It is named after the datasets; if a folder of that name holds results on other images, the digest is appended.
    """
    names = [train.name, test.name if test.name != train.name else "", weights if weights != "student" else ""]
    safe = (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "images" for name in names if name)
    folder = run / FOLDER / "-".join(safe)
    digests = {"train": train.digest, "test": test.digest}
    if all(_digests(path) in (None, digests) for path in sorted(folder.glob("*.json"))):
        return folder
    return folder.with_name(f"{folder.name}-{fingerprint(train.digest, test.digest)[:8]}")


def _digests(path: Path) -> dict[str, str] | None:
    """The digests of the images of a result; None if they are not known."""
    try:
        return {split: read_json(path)["set"][split]["digest"] for split in ("train", "test")}
    except (RunFolderError, KeyError, TypeError):  # damaged, not a result, or from an earlier version
        return None


def describe(predictions: Predictions, answers: Answers, *, by_class: bool = True) -> dict[str, Any]:
    """Accuracy, mean accuracy per class and their 95 % intervals, and the accuracy of every class if ``by_class``."""
    right = predictions.right(answers.labels)
    low, high = mean_interval(right)
    by_class_interval = mean_per_class_interval(right, answers.labels)
    counts = torch.bincount(answers.labels, minlength=len(answers.classes))
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, answers.labels, right)
    present = counts > 0
    values: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "interval": [low, high],
        "mean_per_class": float((sums[present] / counts[present]).mean()),
        "mean_per_class_interval": by_class_interval and list(by_class_interval),
        "images": len(right),
        "draws": len(predictions.labels),
        "settings": predictions.settings,
    }
    if len(predictions.labels) > 1:
        values["sd_over_draws"] = float((predictions.labels == answers.labels).double().mean(dim=1).std())
    if by_class:
        values["classes"] = {
            name: {"accuracy": float(sums[i] / counts[i]), "images": int(counts[i])}
            for i, name in enumerate(answers.classes)
            if present[i]
        }
    return values


def difference(a: Predictions, b: Predictions, answers: Answers) -> dict[str, Any]:
    """How much more often ``a`` is right than ``b`` on the same images and draws of labelled images, with its interval.

    Without draws, the interval is that of the paired bootstrap over images. Draws change the difference as well, and
    two encoders react differently to the same draw, so with several draws it is ``crossed_interval`` over draws and
    images, unless neither the images nor the draws differ in their mean: then it is over images alone.

    ``p`` is the p-value of McNemar's exact test of whether either is right alone equally often, which is also valid for
    few images. With several draws it is given only if the interval is over images alone, and the test then counts the
    images on which one is right more often than the other.
    """
    gains = (a.labels == answers.labels).double() - (b.labels == answers.labels).double()
    draws, images = gains.shape
    vary = any(len(gains.sum(dim=axis).unique()) > 1 for axis in (0, 1))
    values = {"difference": float(gains.mean()), "draws": draws}
    if draws > 1 and images > 1 and vary:
        return values | {"interval": list(crossed_interval(gains.numpy()))}
    by_image = gains.mean(dim=0)
    return values | {"interval": list(mean_interval(by_image, possible=(-1.0, 1.0))), "p": _sign_test(by_image)}


def _sign_test(gains: Tensor) -> float:
    """The two-sided p-value of the hypothesis "as many gains as losses"; zeros do not count."""
    from scipy.stats import binomtest  # slow to import

    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def write(
    folder: Path, protocol: str, values: Mapping[str, Any], predictions: Mapping[str, Predictions], answers: Answers
) -> None:
    """Writes ``PROTOCOL.npz`` and then ``PROTOCOL.json``, which also lists the classes without a judged image."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    arrays: dict[str, Any] = {
        "where": answers.where,
        "labels": answers.labels.numpy(),
        "classes": np.array(answers.classes, dtype=np.str_),
        **{name: one.labels.numpy() for name, one in predictions.items()},
    }
    write_atomically(folder / f"{protocol}.npz", lambda file: np.savez_compressed(file, **arrays))
    counts = torch.bincount(answers.labels, minlength=len(answers.classes))
    not_judged = [name for name, count in zip(answers.classes, counts.tolist(), strict=True) if not count]
    owner = {"run": identity(folder.parent.parent)}
    write_json(folder / f"{protocol}.json", {**values, **({"not_judged": not_judged} if not_judged else {}), **owner})


def read(folder: Path, protocol: str, *, fingerprint: str | None = None) -> dict[str, Any] | None:
    """The values that ``write`` wrote; None if there are none, or they have a different fingerprint."""
    path = folder / f"{protocol}.json"
    if not path.exists():
        return None
    values = read_json(path)
    if not isinstance(values, dict) or "measures" not in values:
        raise RunFolderError(f"{path} is not the result of an evaluation. Remove it and evaluate again.")
    if values.get("run") not in (None, identity(folder.parent.parent)):
        return None  # from a different run
    return values if fingerprint in (None, values.get("fingerprint")) else None


def read_predictions(folder: Path, protocol: str, measure: str) -> tuple[Predictions, Answers] | None:
    """The predictions that ``write`` wrote, and the correct answers; None if there are none."""
    path = folder / f"{protocol}.npz"
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        if measure not in arrays:
            return None
        answers = Answers(torch.from_numpy(arrays["labels"]), arrays["where"], arrays["classes"].tolist())
        return Predictions(torch.from_numpy(arrays[measure])), answers
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged ({why(error)}). Remove it and evaluate again.") from error
