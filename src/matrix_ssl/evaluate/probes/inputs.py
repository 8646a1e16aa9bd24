"""Checks of sets and of feature matrices that protocols share."""

from torch import Tensor

from matrix_ssl.data.base import Source
from matrix_ssl.errors import DataError

ROWS = 8192  # rows that are converted at a time, so that temporary copies stay small beside the features


def check_features(features: Tensor, name: str) -> None:
    """Refuses what no protocol can use.

    Args:
        features: floating point (n, d).
        name: what the message calls them, for example ``"training features"``.

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


def check_labelled(features: Tensor, labels: Tensor, name: str) -> None:
    """``check_features``, and one non-negative whole label for every row.

    Raises:
        DataError: as ``check_features``, or the labels are of another number, type or sign.
    """
    check_features(features, name)
    if labels.shape != features.shape[:1]:
        raise DataError(f"{name}: {len(features)} images but labels of shape {tuple(labels.shape)}; give one for each.")
    if labels.is_floating_point() or labels.is_complex() or int(labels.min()) < 0:
        raise DataError(f"{name}: labels must be whole numbers from 0; leave unlabelled images out.")


def check_same_width(train: Tensor, test: Tensor) -> None:
    """Refuses training and test features that cannot come from one encoder.

    Raises:
        DataError: they differ in the number of features.
    """
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"training images have {train.shape[1]} features, test images {test.shape[1]}: "
            "extract both with the same encoder."
        )


def check_sets(train: Source, test: Source) -> None:
    """Raises DataError for sets without labels or with different classes."""
    for part, source in (("training", train), ("test", test)):
        if source.labels is None:
            raise DataError(
                f"the {part} images of {source.name!r} have no labels: put each class in a folder of its own."
            )
    if train.classes != test.classes:
        different = sorted(set(train.classes or []) ^ set(test.classes or [])) or ["the same names in another order"]
        raise DataError(f"training and test images have different classes: {', '.join(different[:8])}.")
