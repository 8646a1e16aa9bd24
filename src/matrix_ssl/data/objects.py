"""Datasets that are Python objects: arrays, PyTorch and Hugging Face datasets, and sequences of images.

Their identity is their content, as for files. Colour pixels are uint8, or floating point in [0, 1], which is rounded to
8 bits; arrays with other channels, or of 16 bits, keep all of their numbers.
"""

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data.base import Classes, Labels, MemorySource, Places, Source, as_labels
from matrix_ssl.data.files.pixels import as_images
from matrix_ssl.data.kinds import huggingface
from matrix_ssl.data.kinds.array_source import ArraySource, channels_last
from matrix_ssl.data.kinds.folder import FolderSource
from matrix_ssl.data.kinds.items import open_items
from matrix_ssl.data.layout import is_image
from matrix_ssl.data.sources import IN_MEMORY, NAMED_SETS, Data, Splits
from matrix_ssl.errors import DataError

_EXPECTED = (
    "expected a folder, a list of folders, a packed file, the name of a dataset, an array of images, (images, labels), "
    "a torch.utils.data.Dataset or a dataset of Hugging Face"
)
_NO_LABELS = "pass a pair (images, labels)"


def as_data(data: object) -> Data:
    """Converts whatever a user may pass as images into what ``open_source`` takes.

    Args:
        data: a path or a name, or a list or column of them; a list of image files; an array or tensor of images, as
            ``pixels.as_images`` or ``array_source.channels_last`` takes it; a pair of images, as one of the last two,
            and their labels; a PyTorch map-style dataset or a sequence, of images, of pairs (image, label) or of
            dictionaries; a Hugging Face ``Dataset`` or ``DatasetDict``.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, (str, os.PathLike)):
        return _location(data)
    if paths := _paths(data):
        if all(map(is_image, paths)):
            return _in_memory(partial(_open_files, paths, None), "files")
        return tuple(paths) if len(paths) > 1 else paths[0]
    if isinstance(data, (np.ndarray, torch.Tensor)):
        return _in_memory(partial(_open_array, data, None), "array")
    if isinstance(data, tuple) and len(data) == 2:
        images, labels = data
        if paths := _paths(images):
            return _in_memory(partial(_open_files, paths, labels), "files")
        if isinstance(images, (np.ndarray, torch.Tensor)):
            return _in_memory(partial(_open_array, images, labels), "array")
    name = type(data).__name__
    if (hugging_face := sys.modules.get("datasets")) is not None:
        if isinstance(data, hugging_face.Dataset | hugging_face.DatasetDict):
            return _hugging_face(data)
        if isinstance(data, hugging_face.IterableDataset | hugging_face.IterableDatasetDict):
            raise _streamed(name)
    if isinstance(data, IterableDataset):
        raise _streamed(name)
    if isinstance(data, Source):
        return _in_memory(lambda: data, data.name)
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        raise DataError(f"A table of {len(data.columns)} columns as images: pass the column that has their paths.")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (Mapping, bytes)):
        return _in_memory(partial(open_items, data), name)
    raise DataError(f"Images of type {name}: {_EXPECTED}.")


def in_colour(source: Source, channels: int) -> Source:
    """A grey dataset from Python with three equal channels, if an encoder takes three; any other as it is."""
    if (source.channels, channels) != (1, 3):
        return source
    colour = source.copy()
    colour.channels = channels
    if colour.images is not None:
        colour.images = colour.images.expand(-1, channels, -1, -1)
    return colour


def _location(path: str | os.PathLike[str]) -> str:
    """A path or name as text; a ``Path`` is always a path."""
    text = os.fspath(path)
    is_name = text in NAMED_SETS or text.startswith(("hf:", IN_MEMORY))
    return os.path.join(".", text) if isinstance(path, Path) and is_name else text  # noqa: PTH118, Path drops the dot


def _paths(data: object) -> list[str]:
    """The paths or names in a list, an array of text or a pandas column; empty for anything else.

    The column may be the only one of a table, as scikit-learn's ColumnTransformer passes it on.
    """
    if hasattr(data, "to_numpy"):
        data = data.to_numpy()
    if isinstance(data, np.ndarray) and data.dtype.kind in "UO" and data.shape[1:] in ((), (1,)):
        data = data.ravel().tolist()
    if isinstance(data, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in data):
        return [_location(one) for one in data]
    return []


def _in_memory(opener: Callable[[], Source], what: str) -> Splits:
    return Splits(cache(opener), None, memory=what)


def _open_array(images: NDArray[Any] | torch.Tensor, labels: Any) -> Source:
    source: Source
    if (array := channels_last(images)) is not None:
        values, classes = _labels(labels, len(array))
        source = ArraySource(array, labels=values, classes=classes)
    else:
        pixels = as_images(images, "The array")
        values, classes = _labels(labels, len(pixels))
        source = MemorySource("array", pixels, Places.whole(["array"], [len(pixels)]), labels=values, classes=classes)
    source.unlabelled_because = _NO_LABELS
    return source


def _open_files(files: list[str], labels: Any) -> Source:
    values, classes = _labels(labels, len(files))
    files = [str(expanded(file)) if file.startswith("~") else file for file in files]
    source = FolderSource("files", Path(), files, labels=values, classes=classes)
    source.unlabelled_because = _NO_LABELS
    return source


def _labels(labels: Any, count: int) -> tuple[Labels, Classes]:
    """Integers, or texts, which become the numbers of the sorted classes."""
    if labels is None:
        return None, None
    values = np.asarray(labels)
    if values.dtype == object and not all(isinstance(value, (str, int)) for value in values.flat):
        raise DataError(f"The labels: expected {count} whole numbers or texts, got objects of other types.")
    if values.dtype.kind not in "UO":
        return as_labels(values, None, count, where="The labels")
    classes, numbers = np.unique(values.astype(str), return_inverse=True)
    return as_labels(numbers, classes.tolist(), count, where="The labels")


def _hugging_face(data: Any) -> Splits:
    splits = huggingface.choose_splits(data, "The dataset")
    name = splits.train.info.dataset_name or "dataset"

    def open_split(split: Any, classes: Classes = None) -> Source:
        source = huggingface.open_split(split, where=f"{name}/{split.split or 'train'}", name=name, classes=classes)
        source.crops_are_rounded = True
        return source

    def open_train() -> Source:
        source = open_split(splits.train)
        source.remarks = (*filter(None, [splits.remark]), *source.remarks)
        return source

    train = cache(open_train)
    test = None if splits.test is None else cache(lambda: open_split(splits.test, train().classes))
    return Splits(train, test, memory=name)


def _streamed(name: str) -> DataError:
    return DataError(f"A dataset of type {name} is a stream, and training visits images by their number: {_EXPECTED}.")
