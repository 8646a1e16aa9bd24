"""Accuracy with a handful of labels: a linear probe on 1, 5 or 10 labelled images per class, averaged over draws."""

import numpy as np
import torch
from torch import Tensor

from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.probes.linear import fit_logistic_regression, scale_of

_STREAM = 0x10057  # random stream that keeps these draws independent of the sample order and the views


def low_shot(
    train: Tensor, train_labels: Tensor, test: Tensor, *, shots: int, draws: int = 10, seed: int = 0, l2: float = 1.0
) -> Tensor:
    """Predicts labels for ``test`` with logistic regressions fitted on ``shots`` labelled images of every class.

    The features are standardised with the mean and standard deviation of all of ``train``, without its labels: all
    images were available during pre-training, and the spread of only a few of them is a poor estimate.

    Args:
        train: finite (n, d), of which only the drawn rows are checked; ``train_labels`` (n,), integers from 0; ``test``
            finite (m, d).
        draws: number of random draws of labelled images; see ``draw_labelled``.
        l2: penalty; see ``fit_logistic_regression``.

    Returns:
        int64 (draws, m), on the device of ``test``. The same row for two encoders comes from the same labelled images,
        so their difference can be tested in pairs.

    Raises:
        ConfigError: ``shots``, ``draws`` or ``l2`` is not positive.
        DataError: a class has fewer than ``shots`` images, or the widths of the features differ.
    """
    if draws < 1:
        raise ConfigError(f"draws={draws}: expected at least 1.")
    scale = scale_of(train)
    classes = int(train_labels.max()) + 1
    predictions = []
    for draw in range(draws):
        chosen = draw_labelled(train_labels, shots=shots, draw=draw, seed=seed)
        few, labels = train[chosen.to(train.device)], train_labels[chosen.to(train_labels.device)]
        predictions.append(fit_logistic_regression(few, labels, classes=classes, l2=l2, scale=scale).predict(test))
    return torch.stack(predictions)


def draw_labelled(labels: Tensor, *, shots: int, draw: int, seed: int) -> Tensor:
    """Indices of ``shots`` images of every class that occurs in ``labels``, without replacement.

    A pure function of its arguments, independent of the encoder and the device. Draw number 3 with 5 shots contains
    draw number 3 with 1 shot.

    Returns:
        int64 (classes * shots,) on the CPU, class by class.

    Raises:
        ConfigError: ``shots`` is not positive.
        DataError: a class has fewer than ``shots`` images.
    """
    if shots < 1:
        raise ConfigError(f"shots={shots}: expected at least 1 labelled image a class.")
    order = permutation(len(labels), seed, _STREAM, draw)
    shuffled = labels.cpu().numpy()[order]
    chosen = []
    for label in np.unique(shuffled):
        members = order[shuffled == label]
        if len(members) < shots:
            raise DataError(
                f"class {label} has {len(members)} labelled training images, fewer than the {shots} shots a class: "
                "lower the shots or label more images."
            )
        chosen.append(members[:shots])
    return torch.from_numpy(np.concatenate(chosen))
