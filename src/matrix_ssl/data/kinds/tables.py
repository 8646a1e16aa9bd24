"""Tables of images: CSV files with the path of every image and, in columns of their own, its label and its split.

Headings say what a column holds: paths as in ``config.csv_table``, labels and splits as below, in any letter case. A
suffix behind the path of the table, ``:path=HEADING,label=HEADING,split=HEADING,folder=FOLDER``, of which every part is
optional, names columns with other headings, and the folder that paths are relative to. Without one that is the folder
of the table. Splits have the names that folders of splits have.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from matrix_ssl.config.csv_table import check_text, column_called, find_column, path_column, read_table
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.kinds.folder import FolderSource
from matrix_ssl.data.layout import TEST_NAMES, TRAIN_NAMES, describe_classes, describe_splits, list_images
from matrix_ssl.errors import DataError, some

ENDINGS = (".csv", ".tsv")
_IDS = ("imageid", "imagename", "id")  # headings of columns of paths, after those in ``config.csv_table``
_LABELS = ("label", "class", "classname", "category", "target")  # headings, in order of preference
_SPLITS = ("split", "partition", "subset", "set")
_PARTS = ("path", "label", "split", "folder")  # of a suffix
_BITS = {text: bit for bit, texts in enumerate([("0", "0.0", "false"), ("1", "1.0", "true")]) for text in texts}


@dataclass(frozen=True)
class _Table:
    path: Path
    folder: Path  # that the files are relative to
    files: list[str]
    labels: list[str] | None  # empty where a row has none
    remedy: str  # what to do where there are no labels


def open_table(path: Path, suffix: str = "") -> tuple[FolderSource, Callable[[], FolderSource] | None]:
    """The training split of a table, in the order of its rows, and what opens its test split; None if it has none.

    Without a column of splits, all images are the training split.

    The images are labelled if every row has a label and there are at least two different ones. The classes are those of
    the training split, in numerical order if all are whole numbers, else in alphabetical order. If a suffix names
    several columns of labels, the label of a row is the heading of the only column in which it has a 1.

    If no file exists, every path stands for the image below the folder whose path ends so, with or without extension.

    Args:
        path: the table.
        suffix: names its columns, as described above; empty: their headings do.

    Raises:
        DataError: the table cannot be read; the suffix is not such a one, or names what is not there; there is no
            column of paths or no row below the headings; a path is empty or repeated, stands for several images, or
            none is that of a file; a heading, label or split is not in UTF-8, as only paths need not be; no row is of
            the training split; a test image is of another class.
    """
    named = _parse(path, suffix)
    header, rows, _ = read_table(path, errors="surrogateescape")
    check_text(path, header, what="heading")
    columns = _columns(path, header, named)
    folder = path.parent / expanded(*named.get("folder", ["."]))
    if not os.path.isdir(folder):  # noqa: PTH112, Path fails for a name that is too long
        raise DataError(f"{path}{suffix}: {folder} is not a folder; write it relative to the folder of the table.")
    for part in ("label", "split"):
        check_text(path, dict.fromkeys(row[column] for row in rows for column in columns[part]), what=part)
    files, remark = _files(path, folder, header, rows, columns["path"])
    labels, remedy = _labels(path, header, rows, columns)
    table = _Table(path, folder, files, labels, remedy)
    splits = [row[column].strip().lower() for column in columns["split"] for row in rows]
    train, test, split_remark = _choose_splits(path, splits, labels) if columns["split"] else (range(len(rows)), [], "")
    training = _open_rows(table, train)
    training.remarks = (*filter(None, [remark, split_remark]), *training.remarks)
    return training, partial(_open_rows, table, test, classes=training.classes) if test else None


def _parse(path: Path, suffix: str) -> dict[str, list[str]]:
    """The headings, and the folder, by the part of the suffix that names them."""
    named: dict[str, list[str]] = {}
    for text in suffix[1:].split(",") if suffix else ():
        part, _, name = map(str.strip, text.partition("="))
        if part not in _PARTS or not name:
            raise DataError(
                f"{path}{suffix}: {text!r} names no column; write {'=, '.join(_PARTS[:3])}= with a heading or folder= "
                f"with a folder, and commas between them, as in {path.name}:path=image_id,label=diagnosis."
            )
        if name in named.get(part, ()) or (part in named and part != "label"):
            raise DataError(f"{path}{suffix}: {text!r} names a second {part}; remove one of them.")
        named.setdefault(part, []).append(name)
    return named


def _columns(path: Path, header: Sequence[str], named: dict[str, list[str]]) -> dict[str, list[int]]:
    """The numbers of the columns of paths, labels and splits: those that are named, else the one by its heading."""
    paths = path_column(header)
    known = {
        "path": find_column(header, _IDS) if paths is None else paths,
        "label": find_column(header, _LABELS),
        "split": find_column(header, _SPLITS),
    }
    columns = {part: [] if column is None else [column] for part, column in known.items()}
    for part in columns.keys() & named.keys():
        numbers = {heading: column_called(header, heading) for heading in named[part]}
        columns[part] = [column for column in numbers.values() if column is not None]
        if wrong := [heading for heading, column in numbers.items() if column is None]:
            raise DataError(f"{path} has no heading {wrong[0]!r}, only {some(map(repr, header))}; name one of these.")
        if len(set(columns[part])) < len(columns[part]):
            raise DataError(f"{path}: two of {some(map(repr, named[part]))} name the same column; remove one of them.")
    return columns


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


def _files(
    path: Path, folder: Path, header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]
) -> tuple[list[str], str]:
    """The file of every row, relative to the folder, and a sentence on how they were found; the latter may be empty."""
    if not columns:
        raise DataError(
            f"{path}: none of the headings {some(map(repr, header))} is that of the images' paths; name it 'path', or "
            f"name it behind the table, as in {path.name}:path=HEADING."
        )
    if not rows:
        raise DataError(f"{path} lists no image; write the path of one in each row below the headings.")
    names = [row[columns[0]] for row in rows]
    if wrong := next((i for i, name in enumerate(names, 2) if not name or "\0" in name), 0):
        raise DataError(f"{path}: row {wrong} has no path; write that of an image, or remove the row.")
    start = str(folder)
    exist = any(os.path.isfile(os.path.join(start, name)) for name in names)  # noqa: PTH113, PTH118, Path is slow
    files = names if exist else _find_below(path, folder, names)
    plain = [os.path.normpath(os.path.join(start, file)) for file in files]  # noqa: PTH118, ./cat/1.png is cat/1.png
    place, count = Counter(plain).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: the image {files[plain.index(place)]!r} has {count} rows; keep one for each image.")
    if exist:
        return files, ""
    found = next((file for file, name in zip(files, names, strict=True) if file != name), "")
    if not found:
        raise DataError(
            f"{path}: none of its {len(names):,} files exists; the first would be {folder / names[0]}, and no image "
            f"below {folder} has such a name, with or without extension. Write paths relative to the folder of the "
            f"table, with / between folders, or name the folder of the images, as in {path.name}:folder=FOLDER."
        )
    return files, f"{path}: its paths are the names of images below {folder}, such as {found}."


def _find_below(path: Path, folder: Path, names: Sequence[str]) -> list[str]:
    """The image below the folder whose path ends in each name, with or without extension; the name if there is none."""
    ends = [os.path.normpath(name) for name in names]
    wanted, images = set(ends), dict[str, list[str]]()
    depths = {end.count(os.sep) for end in wanted}
    # the folder may be one for everything, with folders of other users
    for image in list_images(folder, may_refuse=True).images:
        parts = image.split(os.sep)  # noqa: PTH206, a Path for every file is slow
        for depth in depths:
            if depth < len(parts):  # the images may all have the same name, in folders of their own
                end = os.sep.join(parts[-depth - 1 :])  # noqa: PTH118
                for one in wanted.intersection((end, _without_extension(end))):
                    images.setdefault(one, []).append(image)
    files = []
    for number, (name, end) in enumerate(zip(names, ends, strict=True), 2):
        found = images.get(end, [])
        if len(found) > 1:
            raise DataError(
                f"{path}: row {number}: {name!r} is the name of {len(found)} images below {folder} ({some(found)}); "
                f"name the folder of the images, as in {path.name}:folder=FOLDER, or write paths with extensions."
            )
        files.append(found[0] if found else name)
    return files


def _without_extension(file: str) -> str:
    return os.path.splitext(file)[0]  # noqa: PTH122, a Path for every file is slow


def _labels(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], columns: dict[str, list[int]]
) -> tuple[list[str] | None, str]:
    """The labels, empty for rows without one, None if there is no column of them; and how to give the others one."""
    chosen = columns["label"]
    if len(chosen) == 1:
        return [row[chosen[0]].strip() for row in rows], "fill them in, or remove these rows"
    if chosen:
        return [_heading_of_one(header, row, chosen) for row in rows], (
            f"a label is the heading of the only 1 in the columns {some(header[column] for column in chosen)}, the "
            f"others being 0: remove these rows, or name a single column that has one class for every image, as in "
            f"{path.name}:label=HEADING"
        )
    remedy = (
        f"give {path.name} a column with the heading {_LABELS[0]!r}, or name the column of labels, as in "
        f"{path.name}:label=HEADING"
    )
    others = [column for column in range(len(header)) if column not in columns["path"] + columns["split"]]
    can_be_named = len(others) > 1 and all(header[column] and "," not in header[column] for column in others)
    if can_be_named and all(_heading_of_one(header, row, others) for row in rows):
        names = ",".join(f"label={header[column]}" for column in others)
        remedy += f"; if its columns of 0 and 1 are the classes, name them all: {path.name}:{names}"
    return None, remedy


def _heading_of_one(header: Sequence[str], row: Sequence[str], columns: Sequence[int]) -> str:
    """The heading of the only column with a 1, if all others have a 0; else nothing."""
    bits = [_BITS.get(row[column].strip().lower(), 2) for column in columns]
    return header[columns[bits.index(1)]] if sum(bits) == 1 else ""


def _open_rows(table: _Table, rows: Sequence[int], *, classes: list[str] | None = None) -> FolderSource:
    """Some rows as a dataset, with the given classes or those of the rows themselves."""
    path, chosen = table.path, [table.files[row] for row in rows]
    own = [] if table.labels is None else [table.labels[row] for row in rows]
    if reason := _why_unlabelled(table, own, classes):
        source = FolderSource(path.stem, table.folder, chosen, labels=None, classes=None)
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
    source = FolderSource(path.stem, table.folder, chosen, labels=values, classes=names)
    source.remarks = (describe_classes(path, names, what=""),) if classes is None else ()
    return source


def _why_unlabelled(table: _Table, labels: Sequence[str], classes: list[str] | None) -> str:
    """Why there are no labels, with the remedy; empty if there are."""
    if not labels:
        return table.remedy
    if missing := labels.count(""):
        return f"{missing:,} of {len(labels):,} rows have no label; {table.remedy}"
    if classes is None and len(set(labels)) < 2:
        return f"every image has the label {labels[0]!r}; add images of another class"
    return ""


def _in_order(names: set[str]) -> list[str]:
    """Whole numbers by their size, without ``int``, which refuses long ones; any other names by the alphabet."""
    if not all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names)
    return sorted(names, key=lambda name: (len(digits := name.lstrip("0")), digits, name))
