"""How often each class is recognised, and what it is mistaken for, from the predictions of an evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.report.formats import ABSENT, percent, whole
from matrix_ssl.report.measures import measure_name

_FROM = (("linear", "linear"), ("knn", "knn_20"), ("knn", "knn_1"))  # protocol and measure; the first available is used
_MOST = 30  # classes that the table shows


class ByClass(NamedTuple):
    """A table whose first row is the header, and what it is about."""

    table: list[list[str]]
    note: str


def by_class(folder: Path) -> ByClass | None:
    """The classes by accuracy, hardest first, from the first results in a folder that contain a mistake; else None.

    Raises:
        OSError, ValueError: a file cannot be read, or is damaged.
    """
    for protocol, measure in _FROM:
        path = folder / f"{protocol}.npz"
        if path.is_file():
            arrays = read_arrays(path, ("labels", "classes", measure))
            if measure in arrays and not np.array_equal(np.atleast_2d(arrays[measure])[0], arrays["labels"]):
                return _table(arrays, measure)
    return None


def _table(arrays: Mapping[str, NDArray[Any]], measure: str) -> ByClass:
    try:
        labels, predicted = arrays["labels"], np.atleast_2d(arrays[measure])[0]
        names = [str(name) for name in arrays["classes"]]
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(counts, (labels, predicted), 1)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"its arrays do not fit together: {error}") from error
    images = counts.sum(axis=1)
    accuracy = counts.diagonal() / np.maximum(images, 1)
    wrong = counts - np.diag(counts.diagonal())
    order = [int(i) for i in np.argsort(accuracy, kind="stable") if images[i]]
    rows = [["Class", "Test images", "Recognised", "Mistaken most often for"]]
    for i in order[:_MOST]:
        other = int(wrong[i].argmax())
        mistake = f"{names[other]}, {percent(wrong[i, other] / images[i])}%" if wrong[i, other] else ABSENT
        rows.append([names[i], whole(images[i]), f"{percent(accuracy[i])}%", mistake])
    hidden = f" {whole(len(order) - _MOST)} more classes are recognised more often." if len(order) > _MOST else ""
    return ByClass(rows, f"By {measure_name(measure)} on the frozen features, the hardest class first.{hidden}")
