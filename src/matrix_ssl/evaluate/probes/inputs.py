"""Checks of datasets and of feature matrices; ``protocols.predict`` makes them once, for all protocols."""

from torch import Tensor

from matrix_ssl.data.base import Source
from matrix_ssl.errors import DataError

ROWS = 8192  # rows that are converted at a time, so that temporary copies stay small beside the features


def check_features(features: Tensor, name: str) -> None:
    """Checks one feature matrix, in one pass.

    Args:
        features: floating point (n, d).
        name: of the features in messages, for example ``"training features"``.

    Raises:
        DataError: not a floating-point matrix, empty, or with a value that is not finite.
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise DataError(
            f"{name}: expected a floating-point matrix, one row an image, "
            f"got {features.dtype} of shape {tuple(features.shape)}."
        )
    if 0 in features.shape:
        raise DataError(f"{name}: empty, shape {tuple(features.shape)}; give at least one image and one feature.")
    for start in range(0, len(features), ROWS):
        finite = features[start : start + ROWS].isfinite().all(dim=1)
        if not finite.all():
            row = start + int(finite.logical_not().nonzero()[0])
            raise DataError(
                f"{name}: row {row} has a value that is not finite, "
                "so the encoder has diverged; evaluate an earlier checkpoint."
            )


def check_inputs(train: Tensor, train_labels: Tensor, test: Tensor) -> None:
    """Checks training features, their labels and test features: one pass over each.

    Args:
        train: (n, d).
        train_labels: integers (n,) from 0.
        test: (m, d).

    Raises:
        DataError: as ``check_features``; the labels are of a different number, type or sign; or the widths differ.
    """
    check_labelled(train, train_labels)
    check_features(test, "test features")
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"training images have {train.shape[1]} features, test images {test.shape[1]}: "
            "extract both with the same encoder."
        )


def check_labelled(features: Tensor, labels: Tensor) -> None:
    """``check_features`` of training features, and one non-negative integer label for every row.

    Raises:
        DataError: as ``check_features``, or the labels are of a different number, type or sign.
    """
    check_features(features, "training features")
    if labels.shape != features.shape[:1]:
        raise DataError(
            f"{len(features)} training images but labels of shape {tuple(labels.shape)}; give one for each."
        )
    if labels.is_floating_point() or labels.is_complex() or int(labels.min()) < 0:
        raise DataError("training labels must be integers from 0; remove unlabelled images.")


def check_datasets(train: Source, test: Source) -> None:
    """Raises DataError for datasets without labels or with different classes."""
    classes, others = train.labelled()[1], test.labelled()[1]
    if classes != others:
        different = sorted(set(classes) ^ set(others)) or ["the same names in a different order"]
        raise DataError(f"training and test images have different classes: {', '.join(different[:8])}.")
