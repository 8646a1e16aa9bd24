"""Tables of images: CSV files with the path of every image and, in columns of their own, its label and its split.

Headings say what a column holds: paths as in ``config.csv_table``, labels and splits as below, in any letter case.
Paths are relative to the folder of the table. Splits have the names that folders of splits have.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from matrix_ssl.config.csv_table import find_column, path_column, read_table
from matrix_ssl.data.kinds.folder import FolderSource
from matrix_ssl.data.layout import TEST_NAMES, TRAIN_NAMES, describe_classes, describe_splits
from matrix_ssl.errors import DataError, some

ENDINGS = (".csv", ".tsv")
_LABELS = ("label", "class", "classname", "category", "target")  # headings, in order of preference
_SPLITS = ("split", "partition", "subset", "set")


def open_table(path: Path) -> tuple[FolderSource, Callable[[], FolderSource] | None]:
    """The training split of a table, in the order of its rows, and what opens its test split; None if it has none.

    Without a column of splits, all images are the training split.

    The images are labelled if every row has a label and there are at least two different ones. The classes are those of
    the training split, in numerical order if all are whole numbers, else in alphabetical order.

    Raises:
        DataError: the table cannot be read; there is no column of paths or no row below the headings; a path is empty
            or repeated, or none is that of a file; no row is of the training split; a test image is of another class.
    """
    header, rows, _ = read_table(path, errors="surrogateescape")
    files = _files(path, header, rows)
    labels = _column(header, rows, _LABELS)
    splits = _column(header, rows, _SPLITS)
    if splits is None:
        return _open_rows(path, files, labels, range(len(rows))), None
    train, test, remark = _choose_splits(path, [split.lower() for split in splits], labels)
    training = _open_rows(path, files, labels, train)
    training.remarks = (*filter(None, [remark]), *training.remarks)
    return training, partial(_open_rows, path, files, labels, test, classes=training.classes) if test else None


def _choose_splits(path: Path, splits: Sequence[str], labels: Sequence[str] | None) -> tuple[list[int], list[int], str]:
    """The rows of the training and of the test split, and a sentence on the choice; the latter may be empty.

    Of several test splits, one in which every row has a label wins, then the order of ``layout.TEST_NAMES``.
    """
    members: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        members.setdefault(split, []).append(row)
    trains = [name for name in TRAIN_NAMES if name in members]
    tests = [name for name in TEST_NAMES if name in members]
    if not trains:
        raise DataError(
            f"{path}: no row is of the training split, only of {some(map(repr, sorted(members)))}; write "
            f"{TRAIN_NAMES[0]} or {TEST_NAMES[0]} in its column of splits."
        )
    labelled = [name for name in tests if labels is not None and all(labels[row] for row in members[name])]
    chosen = (labelled + tests)[:1]
    unused = [name or "rows without a split" for name in sorted(members) if name not in trains + chosen]
    remark = describe_splits(str(path), trains, chosen, unused)
    train = sorted(row for name in trains for row in members[name])
    return train, members[chosen[0]] if chosen else [], remark


def _files(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    column = path_column(header)
    if column is None:
        raise DataError(
            f"{path}: none of the headings {some(map(repr, header))} is that of the images' paths; name it 'path'."
        )
    if not rows:
        raise DataError(f"{path} lists no image; write the path of one in each row below the headings.")
    files = [row[column] for row in rows]
    if wrong := next((i for i, file in enumerate(files, 2) if not file or "\0" in file), 0):
        raise DataError(f"{path}: row {wrong} has no path; write that of an image, or remove the row.")
    file, count = Counter(files).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: the image {file!r} has {count} rows; keep one for each image.")
    if not any((path.parent / file).is_file() for file in files):
        raise DataError(
            f"{path}: none of its {len(files):,} files exists; the first would be {path.parent / files[0]}. Write "
            "paths relative to the folder of the table, with their extensions, and / between folders."
        )
    return files


def _column(header: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str]) -> list[str] | None:
    """The values below the first of these headings, without spaces around them; None if there is none."""
    column = find_column(header, names)
    return None if column is None else [row[column].strip() for row in rows]


def _open_rows(
    path: Path,
    files: Sequence[str],
    labels: Sequence[str] | None,
    rows: Sequence[int],
    *,
    classes: list[str] | None = None,
) -> FolderSource:
    """Some rows as a dataset, with the given classes or those of the rows themselves."""
    chosen = [files[row] for row in rows]
    own = [] if labels is None else [labels[row] for row in rows]
    if reason := _why_unlabelled(path, own, classes):
        source = FolderSource(path.stem, path.parent, chosen, labels=None, classes=None)
        source.unlabelled_because = reason
        source.remarks = (f"{path} has no labels: {reason}.",) if own and classes is None else ()
        return source
    names = classes or _in_order(set(own))
    if unknown := sorted(set(own) - set(names)):
        raise DataError(
            f"{path}: the class {unknown[0]!r} of test images is not in the training split ({len(names)} classes); "
            "rename it, or remove its rows."
        )
    number = {name: k for k, name in enumerate(names)}
    values = np.array([number[name] for name in own], dtype=np.int64)
    source = FolderSource(path.stem, path.parent, chosen, labels=values, classes=names)
    source.remarks = (describe_classes(path, names, what=""),) if classes is None else ()
    return source


def _why_unlabelled(path: Path, labels: Sequence[str], classes: list[str] | None) -> str:
    """Why there are no labels, with the remedy; empty if there are."""
    if not labels:
        return f"give {path.name} a column with the heading {_LABELS[0]!r}"
    if missing := labels.count(""):
        return f"{missing:,} of {len(labels):,} rows have no label; fill them in, or remove these rows"
    if classes is None and len(set(labels)) < 2:
        return f"every image has the label {labels[0]!r}; add images of another class"
    return ""


def _in_order(names: set[str]) -> list[str]:
    are_numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if are_numbers else (0, name))
