"""The protocols on frozen features: each one's predictions for every test image, and their accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.evaluate.probes.inputs import check_inputs
from matrix_ssl.evaluate.probes.knn import nearest, vote
from matrix_ssl.evaluate.probes.linear import fit_path
from matrix_ssl.evaluate.probes.low_shot import low_shot
from matrix_ssl.evaluate.probes.penalty import choose_penalty

PROTOCOLS = ("knn", "linear", "low-shot")
NEIGHBOURS = (1, 10, 20, 200)
_SHOTS = (1, 5, 10)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Predictions:
    """The labels that a protocol predicts for test images, once per draw of labelled images if it draws them."""

    labels: Tensor  # int64 (draws, m), on the CPU
    settings: dict[str, Any] = field(default_factory=dict)  # settings that they depend on, such as k or the penalty

    def right(self, answers: Tensor) -> Tensor:
        """How often each image is classified correctly: float64 (m,), the mean over draws."""
        return (self.labels == answers).double().mean(dim=0)


def predict(
    x: Tensor, y: Tensor, x_test: Tensor,
    *, classes: Sequence[str], protocols: Sequence[str] = PROTOCOLS, neighbours: Sequence[int] = NEIGHBOURS,
    l2: float | None = None, device: torch.device | None = None, say: Say,
) -> dict[str, Predictions]:  # fmt: skip
    """Runs protocols on features.

    Args:
        x: (n, k) training features; ``y`` (n,) their labels, from 0; ``x_test`` (m, k).
        classes: the name of every label.
        neighbours: values of k for kNN.
        l2: penalty of the linear probe; None: chosen on held-out training images.
        device: device for the neighbour search; the features may be on another.
        say: prints a message for the user, such as what is skipped for lack of images.

    Returns:
        Predictions by measure: ``knn_1``, ..., ``linear``, ``low_shot_1``, ``low_shot_5``, ``low_shot_10``.
    """
    check_inputs(x, y, x_test)
    predictions: dict[str, Predictions] = {}
    if "knn" in protocols:
        predictions |= _knn(x, y, x_test, neighbours=neighbours, device=device, say=say)
    counts = torch.bincount(y, minlength=len(classes))
    if "linear" in protocols:
        if l2 is None and int(counts.max()) < 3:
            say("Using the penalty 1 for the linear probe: no class has three training images to choose one by.")
            l2 = 1.0
        penalty = choose_penalty(x, y, classes=len(classes)) if l2 is None else l2
        probe = next(fit_path(x, y, classes=len(classes), penalties=(penalty,)))
        if not probe.converged:
            say(f"Warning: the linear probe (l2 = {penalty:g}) has not converged after {probe.iterations} steps.")
        predictions["linear"] = Predictions(probe.predict(x_test)[None], {"l2": penalty})
    if "low-shot" in protocols:
        fewest = int(counts.argmin())
        for shots in _SHOTS:
            if (count := int(counts[fewest])) < shots:
                images = "1 training image" if count == 1 else f"{count} training images"
                say(f"Skipping low_shot_{shots}: class {classes[fewest]!r} has {images}.")
            else:
                predictions[f"low_shot_{shots}"] = Predictions(low_shot(x, y, x_test, shots=shots), {"shots": shots})
    return predictions


def measure(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor,
    *, classes: Sequence[str], protocols: Sequence[str] = PROTOCOLS, neighbours: Sequence[int] = NEIGHBOURS,
    l2: float | None = None, say: Say,
) -> dict[str, dict[str, float | int]]:  # fmt: skip
    """Runs ``predict`` and returns mean, sd and n of every measure's accuracies; ``y_test`` (m,) are the answers."""
    predictions = predict(x, y, x_test, classes=classes, protocols=protocols, neighbours=neighbours, l2=l2, say=say)
    return {name: summarise((one.labels == y_test).double().mean(dim=1)) for name, one in predictions.items()}


def _knn(
    x: Tensor, y: Tensor, x_test: Tensor, *, neighbours: Sequence[int], device: torch.device | None, say: Say
) -> dict[str, Predictions]:
    possible = [k for k in neighbours if k <= len(x)]
    for k in neighbours:
        if k not in possible:
            say(f"Skipping knn_{k}: only {len(x)} training images.")
    indices, similarities = nearest(x, x_test, k=max(possible), device=device)  # one search for all k
    labels = y[indices]
    return {f"knn_{k}": Predictions(vote(labels[:, :k], similarities[:, :k])[None], {"k": k}) for k in possible}
