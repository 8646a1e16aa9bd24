"""Sets of the Hugging Face hub, or saved by its ``datasets`` package, opened as ``hf:NAME`` or ``hf:FOLDER``.

The package (the extra ``datasets``) downloads what its own cache lacks; its variable HF_HUB_OFFLINE forbids that.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.data.base import MemorySource, Places, Source, as_indices, check_labels, decode_all
from matrix_ssl.data.folder import file_sizes, read_start
from matrix_ssl.data.hub import open_dataset
from matrix_ssl.data.identity import ABSENT
from matrix_ssl.data.images import decode_image, read_image
from matrix_ssl.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from datasets import Dataset

_TEST_NAMES = ("test", "validation")
_SAVED_TO_DISK = ("dataset_dict.json", "dataset_info.json")


class HuggingFaceSource(Source):
    """Encoded images in Arrow files, decoded when they are read."""

    def __init__(
        self,
        name: str,
        column: "Dataset",
        places: Places,
        *,
        labels: NDArray[np.int64] | None,
        classes: list[str] | None,
    ):
        super().__init__(name, channels=3, labels=labels, classes=classes)
        self._column = column  # one column "image" of undecoded files
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> torch.Tensor:
        file = self._column[int(self._places.entry[index])]["image"]
        if file is None:
            return decode_image(b"", self.where(index))
        if file["bytes"] is None:
            return read_image(Path(file["path"]))
        return decode_image(file["bytes"], self.where(index))

    def where(self, index: int) -> str:
        return self._places[index]

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        import pyarrow.compute as arrow

        files = self._column.with_format("arrow")[:]["image"]  # mapped from the disk, not read
        lengths = arrow.fill_null(arrow.binary_length(arrow.struct_field(files, "bytes")), ABSENT).to_numpy()
        sizes = lengths[self._places.entry].astype(np.int64)
        elsewhere = np.flatnonzero(sizes == ABSENT)
        paths = [self._path(int(index)) for index in elsewhere]
        sizes[elsewhere] = file_sizes(Path(), paths)
        return [], sizes

    def _read_start(self, index: int, count: int) -> bytes:
        file = self._column[int(self._places.entry[index])]["image"]
        return read_start(file["path"], count) if file["bytes"] is None else file["bytes"][:count]

    def _path(self, index: int) -> str:
        """The file of an image that lies outside the Arrow files; one that does not exist where there is none."""
        file = self._column[int(self._places.entry[index])]["image"]
        return (file or {}).get("path") or os.devnull

    def subset(self, indices: ArrayLike) -> "HuggingFaceSource":
        chosen = as_indices(indices, len(self))
        places, labels = self._places.take(chosen), self._labels_at(chosen)
        return HuggingFaceSource(self.name, self._column, places, labels=labels, classes=self.classes)


def load_splits(location: str) -> "tuple[Dataset, Dataset | None]":
    """The training part and, where there is one, the test part ("test", else "validation").

    Raises:
        DataError: the set cannot be found or has no training part.
        MissingExtra: the package ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "datasets") from None

    folder = Path(location).expanduser()
    if not folder.exists() and (location.startswith((".", "/", "~")) or location.count("/") > 1):
        raise DataError(f"hf:{location}: the folder {folder} does not exist.")
    try:
        if any((folder / file).is_file() for file in _SAVED_TO_DISK):
            loaded = datasets.load_from_disk(str(folder))
        else:
            source = str(folder) if folder.is_dir() else location
            loaded = open_dataset(datasets.load_dataset, source, place=f"hf:{location}")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"hf:{location}: the package 'datasets' cannot open it ({error}).") from error
    if isinstance(loaded, datasets.Dataset):
        return loaded, None
    if "train" not in loaded:
        raise DataError(f"hf:{location}: it has no part 'train', only {', '.join(loaded)}.")
    return loaded["train"], next((loaded[name] for name in _TEST_NAMES if name in loaded), None)


def open_split(location: str, part: "Dataset") -> Source:
    """Opens a part: images from its first image column, labels from its first class column, or one named "label".

    Raises:
        DataError: it is empty, has no image column or its labels do not fit.
    """
    import datasets

    features = part.features
    where = f"hf:{location}/{part.split or 'train'}"
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise DataError(f"{where}: no column holds images; its columns are {', '.join(features)}.")
    if not len(part):
        raise DataError(f"{where}: it has no images.")
    column = part.select_columns(images[0]).rename_column(images[0], "image")
    column = column.cast_column("image", datasets.Image(decode=False))
    labelled = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labelled += [key for key in ("label",) if key in features]
    labels = classes = None
    if labelled:
        numbers = np.asarray(part.with_format("numpy")[labelled[0]][:])
        names = getattr(features[labelled[0]], "names", None)
        classes = check_labels(numbers, names, len(part), where=where)
        labels = numbers.astype(np.int64)
    name = Path(location).name
    places = Places.whole([where], [len(part)])
    source = HuggingFaceSource(name, column, places, labels=labels, classes=classes)
    decoded = decode_all(source)
    return source if decoded is None else MemorySource(name, decoded, places, labels=labels, classes=classes)
