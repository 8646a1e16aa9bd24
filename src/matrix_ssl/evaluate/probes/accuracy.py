"""Fractions of right answers and their summary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from matrix_ssl.errors import DataError


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The fraction of images, in [0, 1], whose predicted label (n,) is the given one (n,).

    Raises:
        DataError: no images, or another number of predictions than of labels.
    """
    return float(_right(predicted, labels).double().mean())


def per_class_accuracy(predicted: Tensor, labels: Tensor) -> dict[int, float]:
    """For every class that occurs in ``labels``, the fraction of its images that were predicted as it (recall).

    Raises:
        DataError: as ``accuracy``.
    """
    right = _right(predicted, labels)
    return {label: float(right[labels == label].double().mean()) for label in labels.unique().tolist()}


def summarise(values: Tensor | Sequence[float]) -> dict[str, float | int]:
    """``{"mean", "sd", "n"}`` of repeated measurements; ``sd`` is that of a sample (n - 1), and 0 when n = 1.

    Raises:
        DataError: no values.
    """
    numbers = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    if not len(numbers):
        raise DataError("nothing to summarise: give at least one measurement.")
    spread = float(numbers.std(correction=1)) if len(numbers) > 1 else 0.0
    return {"mean": float(numbers.mean()), "sd": spread, "n": len(numbers)}


def _right(predicted: Tensor, labels: Tensor) -> Tensor:
    if predicted.shape != labels.shape or not len(labels):
        raise DataError(
            f"accuracy needs as many predictions as labels and at least one: "
            f"got shapes {tuple(predicted.shape)} and {tuple(labels.shape)}."
        )
    return predicted == labels
