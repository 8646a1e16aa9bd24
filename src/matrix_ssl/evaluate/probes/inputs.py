"""Checks of datasets and feature matrices; ``protocols.predict`` runs them once, for all protocols."""

from torch import Tensor

from matrix_ssl.data.base import Source
from matrix_ssl.errors import DataError, some

ROWS = 8192  # rows converted at a time, so that temporary copies stay small compared with the features


def check_features(features: Tensor, name: str) -> None:
    """Raises DataError unless ``features`` are a finite floating-point matrix (n, d) with n, d > 0; in one pass."""
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
    """``check_labelled`` on the training features and ``check_features`` on the test features; widths must be equal."""
    check_labelled(train, train_labels)
    check_features(test, "test features")
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"training images have {train.shape[1]} features, test images {test.shape[1]}: "
            "extract both with the same encoder."
        )


def check_labelled(features: Tensor, labels: Tensor) -> None:
    """``check_features`` on training features, which need one non-negative integer label for every row."""
    check_features(features, "training features")
    if labels.shape != features.shape[:1]:
        raise DataError(
            f"{len(features)} training images but labels of shape {tuple(labels.shape)}; give one for each."
        )
    if labels.is_floating_point() or labels.is_complex() or int(labels.min()) < 0:
        raise DataError("training labels must be integers from 0; remove unlabelled images.")


def check_datasets(train: Source, test: Source) -> None:
    """Raises DataError for datasets without labels, with different classes or with a single class."""
    classes = train.labelled()[1]
    if test.labels is None or test.classes is None:
        raise DataError(f"the test images of {test.name!r} have no labels: {test.unlabelled_because}.")
    others = test.classes
    if classes != others:
        different = sorted(set(classes) ^ set(others)) or ["the same names in a different order"]
        raise DataError(f"training and test images have different classes: {some(different)}.")
    if len(classes) < 2:
        raise DataError(f"{train.name!r} has the single class {classes[0]!r}: a classifier needs two or more.")
