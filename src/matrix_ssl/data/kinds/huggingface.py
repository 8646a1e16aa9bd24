"""Datasets of the Hugging Face hub, or saved by its ``datasets`` package, opened as ``hf:NAME`` or ``hf:FOLDER``.

The package (the extra ``datasets``) downloads what its own cache lacks, unless its variable HF_HUB_OFFLINE forbids it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.base import Classes, Labels, PlacedSource, Places, as_labels
from matrix_ssl.data.files.images import highest_level, read_content
from matrix_ssl.data.hub import check_pretrained, open_dataset
from matrix_ssl.data.identity import ABSENT
from matrix_ssl.data.kinds.encoded import EncodedSource
from matrix_ssl.data.kinds.folder import file_sizes, read_start
from matrix_ssl.data.layout import TEST_NAMES, TRAIN_NAMES, describe_splits
from matrix_ssl.errors import DataError, import_extra

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_SAVED_TO_DISK = ("dataset_dict.json", "dataset_info.json")
_TEXTS = "UTO"  # kinds of arrays that may hold texts


class HuggingFaceSource(EncodedSource):
    """Encoded images in Arrow files."""

    def __init__(self, name: str, column: "Dataset", places: Places, *, labels: Labels, classes: Classes):
        super().__init__(name, places, labels=labels, classes=classes)
        self._column = column  # one column "image" of undecoded files

    def highest_level(self, index: int) -> int:
        file = self._file(index)
        return highest_level(Path(file["path"]) if file.get("path") and file["bytes"] is None else file["bytes"] or b"")

    def _content(self, index: int) -> tuple[bytes, str]:
        file = self._file(index)
        if file.get("path") and file["bytes"] is None:
            return read_content(Path(file["path"])), file["path"]
        return file.get("bytes") or b"", self.where(index)

    def held_by(self, index: int) -> str | None:
        file = self._file(index)
        return file["path"] if file.get("path") and file["bytes"] is None else super().held_by(index)

    def _file(self, index: int) -> dict[str, Any]:
        """``bytes`` and ``path`` of an image, one of which is None; empty if there is no image."""
        return self._column[int(self.places.entry[index])]["image"] or {}

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        import pyarrow.compute as arrow

        files = self._column.with_format("arrow")[:]["image"]  # mapped from the disk, not read
        lengths = arrow.fill_null(arrow.binary_length(arrow.struct_field(files, "bytes")), ABSENT).to_numpy()
        sizes = lengths[self.places.entry].astype(np.int64)
        elsewhere = np.flatnonzero(sizes == ABSENT)
        # os.devnull is not a regular file, so an image without a path counts as absent
        sizes[elsewhere] = file_sizes(Path(), [self._file(int(k)).get("path") or os.devnull for k in elsewhere])
        return [], sizes

    def _read_start(self, index: int, count: int) -> bytes:
        file = self._file(index)
        return read_start(file["path"], count) if file["bytes"] is None else file["bytes"][:count]


@dataclass(frozen=True)
class LoadedSplits:
    """The training split, the test split if there is one, and a remark on how the splits were interpreted."""

    train: "Dataset"
    test: "Dataset | None"
    remark: str = ""


def load_splits(location: str) -> LoadedSplits:
    """The splits of a dataset by its name or folder (see ``layout``)."""
    datasets = import_extra("datasets", extra="datasets")
    folder = expanded(location)
    if not folder.exists() and (location.startswith((".", "/", "~")) or location.count("/") > 1):
        raise DataError(f"hf:{location}: the folder {folder} does not exist; check the path.")
    try:
        if any((folder / file).is_file() for file in _SAVED_TO_DISK):
            check_pretrained(folder)
            loaded = datasets.load_from_disk(str(folder))
        else:
            source = str(folder) if folder.is_dir() else location
            loaded = open_dataset(datasets.load_dataset, source, place=f"hf:{location}")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"hf:{location}: the package 'datasets' cannot open it ({error}).") from error
    return choose_splits(loaded, f"hf:{location}")


def choose_splits(loaded: "Dataset | DatasetDict", place: str) -> LoadedSplits:
    """The splits to use from what the package has opened."""
    import datasets

    if isinstance(loaded, datasets.Dataset):
        return LoadedSplits(loaded, None)
    names = {name.lower(): name for name in loaded}
    train = next((names[name] for name in TRAIN_NAMES if name in names), None)
    if train is None:
        raise DataError(f"{place}: no split 'train', only {', '.join(loaded)}; save it as a single split.")
    tests = [names[name] for name in TEST_NAMES if name in names]
    judged = [name for name in tests if len(tests) > 1 and _has_labels(loaded[name])]
    test = next(iter(judged + tests), None)
    unused = [name for name in loaded if name not in (train, test)]
    remark = describe_splits(place, [train], [test] if test else [], unused)
    return LoadedSplits(loaded[train], loaded[test] if test else None, remark)


def open_split(split: "Dataset", *, where: str, name: str, classes: Classes = None) -> PlacedSource:
    """Opens a split: images from its first image column, labels from its first class column, or one named "label".

    Labels are integers from 0, or texts, which become the numbers of the sorted classes; with any others, such as the
    -1 of a split whose labels are not published, the images are taken without labels.

    Args:
        classes: those of the training split, by which the labels of a test split are numbered.

    Raises:
        DataError: there are no images, or a label is not one of the classes.
    """
    import datasets

    features = split.features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise DataError(f"{where}: no column holds images; its columns are {', '.join(features)}.")
    if not len(split):
        raise DataError(f"{where} contains no images; choose a split that does.")
    column = split.with_format(None).select_columns(images[0])
    column = column if images[0] == "image" else column.rename_column(images[0], "image")
    column = column.cast_column("image", datasets.Image(decode=False))
    places = Places.whole([where], [len(split)])
    labels, names, why = _labels(split, classes, where)
    source = HuggingFaceSource(name, column, places, labels=labels, classes=names)
    if why:
        source.unlabelled_because = why
        source.remarks = (f"{where} is taken without labels: {why}.",) if _label_column(split) else ()
    return source


def _labels(split: "Dataset", classes: Classes, where: str) -> tuple[Labels, Classes, str]:
    """The labels and the names of all classes, or why there are none."""
    label = _label_column(split)
    if label is None:
        return None, None, "it has no column of classes, nor one called 'label'"
    values: NDArray[Any] = split.with_format("numpy")[label][:]
    if why := _why_unlabelled(values, label):
        return None, None, why
    names = classes or getattr(split.features[label], "names", None)
    if values.dtype.kind in _TEXTS:
        names = classes or sorted(set(values.tolist()))
        if unknown := sorted(set(values.tolist()) - set(names)):
            raise DataError(f"{where}: the class {unknown[0]!r} is not in the training split; remove its images.")
        number = {text: k for k, text in enumerate(names)}
        values = np.array([number[text] for text in values.tolist()], dtype=np.int64)
    return *as_labels(values, names, len(split), where=where), ""


def _label_column(split: "Dataset") -> str | None:
    """The first column of classes, or else the one called "label"; None if there is neither."""
    import datasets

    columns = [key for key, feature in split.features.items() if isinstance(feature, datasets.ClassLabel)]
    return next(iter([*columns, *(key for key in ("label",) if key in split.features)]), None)


def _has_labels(split: "Dataset") -> bool:
    label = _label_column(split)
    return label is not None and not _why_unlabelled(split.with_format("numpy")[label][:], label)


def _why_unlabelled(values: NDArray[Any], column: str) -> str:
    """Why the values of a column are not labels; empty if they are."""
    if values.dtype.kind in _TEXTS and all(isinstance(value, str) for value in values.tolist()):
        return ""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        return f"its column {column!r} holds neither whole numbers nor texts alone"
    hidden = int((values < 0).sum())
    return f"{hidden:,} of the {len(values):,} labels of its column {column!r} are below 0" if hidden else ""
