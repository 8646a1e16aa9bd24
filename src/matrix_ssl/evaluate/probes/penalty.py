"""Chooses the penalty of logistic regression on a held-out fifth of the training images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.probes.accuracy import accuracy
from matrix_ssl.evaluate.probes.linear import Scale, fit_path

PENALTIES = (1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # strongest first: each search starts at the previous solution
_HELD_OUT = 0.2  # fraction of every class
_STREAM = 0x11EA  # random stream that keeps this choice independent of other random numbers
_TOLERANCE, _ITERATIONS = 1e-5, 200  # coarse: weak penalties take thousands of steps to converge
_PATIENCE = 2  # penalties in a row that bring no gain before the search ends; weak ones are slow and seldom the best


def choose_penalty(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    scale: Scale | None = None,
) -> float:
    """The penalty with the best accuracy on a held-out fifth of every class; the first of equal ones.

    Args:
        features, labels, classes, scale: as in ``linear.fit_path``, not checked.
        penalties: tried in this order, until two in a row are no better than the best so far. A penalty with which all
            held-out images get one class is not counted: so strong, it leaves the choice to the biases, as in a small
            dataset of unequal classes, and says nothing about weaker ones.

    Raises:
        DataError: no class has three images, so none can be held out; or as ``linear.fit_path``.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten().cpu()
        order = torch.from_numpy(permutation(len(members), _STREAM, label))
        held_out[members[order[: round(_HELD_OUT * len(members))]]] = True
    if not held_out.any():
        raise DataError("no class has three training images: a penalty cannot be chosen on held-out images; pass l2.")
    rows, rest = held_out.nonzero().flatten(), held_out.logical_not().nonzero().flatten()
    test, answers = features[rows.to(features.device)], labels.to(features.device)[rows.to(features.device)]
    fitted = fit_path(
        features, labels, classes=classes, penalties=penalties, rows=rest, scale=scale,
        max_iterations=_ITERATIONS, tolerance=_TOLERANCE,
    )  # fmt: skip
    best, highest, worse = penalties[0], -1.0, 0
    for penalty, probe in zip(penalties, fitted, strict=True):
        predicted = probe.predict(test)
        score = accuracy(predicted, answers)
        if score > highest:
            best, highest, worse = penalty, score, 0
        elif len(predicted.unique()) > 1:
            worse += 1
        if worse == _PATIENCE:
            break
    return best
