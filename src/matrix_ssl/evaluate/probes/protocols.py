"""The protocols on frozen features: what each predicts for every test image, and how often that is right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.evaluate.probes.knn import nearest, vote
from matrix_ssl.evaluate.probes.linear import choose_penalty, fit_logistic_regression
from matrix_ssl.evaluate.probes.low_shot import low_shot

PROTOCOLS = ("knn", "linear", "low-shot")
NEIGHBOURS = (1, 10, 20, 200)
_SHOTS = (1, 5, 10)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Predictions:
    """The labels that a protocol gives to test images, once for each draw of labelled images if it draws them."""

    labels: Tensor  # int64 (draws, m), on the CPU
    settings: dict[str, float | int] = field(default_factory=dict)  # what they depend on, such as k or the penalty

    def right(self, answers: Tensor) -> Tensor:
        """How often each image is classified correctly: float64 (m,), the mean over draws."""
        return (self.labels == answers).double().mean(dim=0)


def predict(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    *,
    classes: Sequence[str],
    protocols: Sequence[str] = PROTOCOLS,
    neighbours: Sequence[int] = NEIGHBOURS,
    l2: float | None = None,
    device: torch.device | None = None,
    say: Say,
) -> dict[str, Predictions]:
    """Runs protocols on features.

    Args:
        x: (n, k) training features; ``y`` (n,) their labels, from 0; ``x_test`` (m, k).
        classes: the name of every label.
        protocols: some of ``PROTOCOLS``.
        neighbours: k of kNN.
        l2: penalty of the linear probe; chosen on a held-out part of the training images when left out.
        device: where neighbours are searched; the features may lie elsewhere.
        say: is told what had to be left out for lack of images.

    Returns:
        By measure: ``knn_1``, ..., ``linear``, ``low_shot_1``, ``low_shot_5``, ``low_shot_10``.

    Raises:
        DataError: features or labels that cannot be used.
    """
    found: dict[str, Predictions] = {}
    if "knn" in protocols:
        found |= _knn(x, y, x_test, neighbours=neighbours, device=device, say=say)
    counts = torch.bincount(y, minlength=len(classes))
    if "linear" in protocols:
        if l2 is None and int(counts.max()) < 3:
            say("the penalty of the linear probe is 1, not chosen: no class has three training images.")
            l2 = 1.0
        penalty = choose_penalty(x, y, classes=len(classes)) if l2 is None else l2
        probe = fit_logistic_regression(x, y, classes=len(classes), l2=penalty)
        if not probe.converged:
            say(f"warning: the linear probe, l2 = {penalty:g}, stopped unconverged after {probe.iterations} steps.")
        found["linear"] = Predictions(probe.predict(x_test)[None], {"l2": penalty})
    if "low-shot" in protocols:
        fewest = int(counts.argmin())
        for shots in _SHOTS:
            if int(counts[fewest]) < shots:
                had = int(counts[fewest])
                say(f"low_shot_{shots} is left out: class {classes[fewest]!r} has {had} training images.")
            else:
                found[f"low_shot_{shots}"] = Predictions(low_shot(x, y, x_test, shots=shots), {"shots": shots})
    return found


def measure(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    classes: Sequence[str],
    protocols: Sequence[str] = PROTOCOLS,
    neighbours: Sequence[int] = NEIGHBOURS,
    l2: float | None = None,
    say: Say,
) -> dict[str, dict[str, float | int]]:
    """``predict``, and of every measure mean, sd and n of its accuracies; ``y_test`` (m,) are the answers."""
    found = predict(x, y, x_test, classes=classes, protocols=protocols, neighbours=neighbours, l2=l2, say=say)
    return {name: summarise((made.labels == y_test).double().mean(dim=1)) for name, made in found.items()}


def _knn(
    x: Tensor, y: Tensor, x_test: Tensor, *, neighbours: Sequence[int], device: torch.device | None, say: Say
) -> dict[str, Predictions]:
    possible = [k for k in neighbours if k <= len(x)]
    for k in neighbours:
        if k not in possible:
            say(f"knn_{k} is left out: there are {len(x)} training images.")
    indices, similarities = nearest(x, x_test, k=max(possible), device=device)  # one search for all k
    labels = y[indices]
    return {f"knn_{k}": Predictions(vote(labels[:, :k], similarities[:, :k])[None], {"k": k}) for k in possible}
