"""Packed datasets: .npz files that hold encoded images back to back.

Arrays: ``jpeg`` (uint8, the image files in sequence, in any format that ``images`` reads) and ``offs`` (n+1 integers,
where each file begins; the last is the end); optionally ``y`` (n integer labels) and ``classes`` (names).
"""

import os
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from matrix_ssl.config.arrays import read_open_arrays
from matrix_ssl.config.untrusted import open_file, parse_json, read_file, why
from matrix_ssl.data.base import Classes, Labels, PlacedSource, Places, as_labels
from matrix_ssl.data.kinds.encoded import EncodedSource
from matrix_ssl.errors import DataError, memory_is_short

_OTHERS = ("offs", "y", "classes")  # arrays other than the images
MAPPED_FROM = 2**26  # bytes of images, 64 MiB: those of a larger file are not read all at once
_NAME_LENGTH = 26  # place in the header of an entry of a zip archive (PKWARE, APPNOTE 4.3.7)
_TEST_WORDS = ("test", "val", "dev")  # in order of preference; "val" is in "eval" and "validation" as well


PLAN = "pack.json"  # in a folder that ``matrix-ssl pack`` wrote: what it is to hold
FILES = "checksums.json"  # likewise: the files that are done


@dataclass(frozen=True)
class Shard:
    """The contents of one packed file."""

    path: Path
    content: torch.Tensor  # uint8; a tensor, because PyTorch shares its memory with worker processes
    offsets: NDArray[np.int64]  # (n+1,)
    labels: NDArray[np.int64] | None
    classes: list[str] | None  # as named in the file

    def __len__(self) -> int:
        return len(self.offsets) - 1


class PackedSource(EncodedSource):
    """Encoded images in memory."""

    def __init__(self, name: str, shards: Sequence[Shard], places: Places, *, labels: Labels, classes: Classes):
        super().__init__(name, places, labels=labels, classes=classes)
        self._shards = shards

    def encoded(self, index: int) -> bytes:
        return self._span(index).numpy().tobytes()

    def _span(self, index: int) -> torch.Tensor:
        """The bytes of an image, not copied."""
        shard = self._shards[self.places.file[index]]
        start, end = shard.offsets[self.places.entry[index] :][:2]
        return shard.content[start:end]

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        sizes = np.zeros(len(self), dtype=np.int64)
        for number, shard in enumerate(self._shards):
            here = self.places.file == number
            sizes[here] = np.diff(shard.offsets)[self.places.entry[here]]
        return [], sizes

    def _read_start(self, index: int, count: int) -> bytes:
        return self._span(index)[:count].numpy().tobytes()


def open_packed(paths: Sequence[Path], *, name: str, training: Sequence[Path] = ()) -> PlacedSource:
    """Opens packed files as one dataset, in the order of ``paths``; they must agree on labels and classes.

    Args:
        training: files of the training split, whose classes apply to labels without names of their own.
    """
    shards = [read_shard(path) for path in paths]
    first = shards[0]
    for shard in shards[1:]:
        if (shard.labels is None) != (first.labels is None):
            raise DataError(f"{shard.path} and {first.path}: only one of them has labels ('y'); pack both alike.")
        if shard.classes != first.classes:
            raise DataError(f"{shard.path} and {first.path}: their 'classes' differ; pack both with the same list.")
    labels = classes = None
    if first.labels is not None:
        labels = np.concatenate([shard.labels for shard in shards if shard.labels is not None])
        names = first.classes or (open_packed(training, name=name).classes if training else None)
        labels, classes = as_labels(labels, names, len(labels), where=str(first.path))
    places = Places.whole([str(path) for path in paths], [len(shard) for shard in shards])
    source = PackedSource(name, shards, places, labels=labels, classes=classes)
    source.unlabelled_because = "its file has no array 'y' of whole numbers from 0, one for each image"
    return source


def check_folder(folder: Path, paths: Sequence[Path]) -> None:
    """Raises DataError unless the packed files of a folder are all those that were packed into it, and no others.

    Other programs leave no list of their files: then any are accepted.
    """
    if not (folder / FILES).exists():
        return
    again = "put the right files there, or run the command that packed them again"
    try:
        plan, listed = (parse_json(read_file(folder / name)) for name in (PLAN, FILES))
        sizes = {str(one["name"]): int(one["size"]) for one in listed}
        done = {split: max(one["stop"] for one in listed if one["split"] == split) for split in _splits(listed)}
        images = {split: plan[split]["images"] for split in ("train", "test") if split in plan}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder}: {PLAN} or {FILES} cannot be read ({why(error)}); {again}.") from None
    here = {path.name: path.stat().st_size for path in paths}
    for name in sorted(sizes.keys() | here.keys()):
        if name not in here:
            raise DataError(f"{folder} lacks {name}, which {FILES} lists; {again}.")
        if name not in sizes:
            raise DataError(f"{folder / name} is not among the files that {FILES} lists; {again}.")
        if here[name] != sizes[name]:
            raise DataError(f"{folder / name} has {here[name]:,} bytes, and {FILES} says {sizes[name]:,}; {again}.")
    for split, count in images.items():
        if (packed := done.get(split, 0)) != count:
            raise DataError(f"{folder} has {packed:,} of the {count:,} images of the split {split!r}; {again}.")


def _splits(listed: Sequence[dict[str, str]]) -> set[str]:
    return {one["split"] for one in listed}


def split_packed(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Sorts packed files of one folder into the training and the test split by their names.

    Files with "train" in the name are the training split, and those with "test" the test split or, if there are none,
    those with "val", or else "dev" as a word of its own. If no name has "train", the training split is every file that
    is not for testing.
    """
    test = next((files for word in _TEST_WORDS if (files := _named(paths, word))), [])
    train = _named(paths, "train") or [path for path in paths if path not in _named(paths, *_TEST_WORDS)]
    return train, test


def is_packed(path: Path) -> bool:
    """Whether a file has the arrays of a packed dataset, or cannot be inspected."""
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            return {"jpeg.npy", "offs.npy"} <= set(archive.namelist())
    except Exception:  # damaged bytes make it fail in any way
        return True


def read_shard(path: Path) -> Shard:
    """Reads and checks one packed file."""
    arrays = _load(path)
    for key in ("jpeg", "offs"):
        if key not in arrays:
            raise DataError(
                f"{path}: not a packed dataset: the array {key!r} is missing; it needs 'jpeg' and 'offs', "
                f"and holds {', '.join(sorted(arrays)) or 'neither'}."
            )
    content, offsets = arrays["jpeg"], arrays["offs"]
    if content.dtype != np.uint8 or content.ndim != 1:
        raise DataError(f"{path}: 'jpeg' must be a row of bytes (uint8), not {content.dtype} of shape {content.shape}.")
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2:
        raise DataError(f"{path}: 'offs' must hold n+1 integers, not {offsets.dtype} of shape {offsets.shape}.")
    offsets = offsets.astype(np.int64)  # before any difference: unsigned ones wrap around
    if offsets[0] != 0 or offsets[-1] != len(content) or (np.diff(offsets) < 0).any():
        raise DataError(
            f"{path}: 'offs' must rise from 0 to the {len(content)} bytes of 'jpeg', "
            f"but it runs from {offsets[0]} to {offsets[-1]}; the file is damaged, pack it again."
        )
    labels = classes = None
    if "y" in arrays:
        classes = _names(arrays["classes"], path) if "classes" in arrays else None
        labels, _ = as_labels(arrays["y"], classes, len(offsets) - 1, where=str(path))
    return Shard(path, torch.from_numpy(content), offsets, labels, classes)


def _names(classes: np.ndarray, path: Path) -> list[str]:
    if classes.ndim != 1 or classes.dtype.kind not in "USiu":
        raise DataError(f"{path}: 'classes' must be a row of names, not {classes.dtype} of shape {classes.shape}.")
    return [str(name) for name in classes]


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file. The images of a large one are memory-mapped, so they are read only when they are needed."""
    try:
        with open_file(path) as file:
            mapped = _mapped_images(file)
            arrays = read_open_arrays(file, _OTHERS if mapped is not None else ("jpeg", *_OTHERS))
        if mapped is not None:
            arrays["jpeg"] = mapped
    except PermissionError:
        raise DataError(f"{path}: no permission to read the file; allow it.") from None
    except (OSError, ValueError) as error:
        if memory_is_short(error, size=path.stat().st_size):
            raise MemoryError from error
        raise DataError(f"{path}: not an .npz file, or a damaged one ({why(error)}); fetch or pack it again.") from None
    return arrays


def _mapped_images(file: FileIO) -> np.ndarray | None:
    """The images of an open file without reading them; None for one that is small, compressed or has no row of bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            info = archive.NameToInfo.get("jpeg.npy")
        if info is None or info.file_size < MAPPED_FROM or info.compress_type != zipfile.ZIP_STORED:
            return None
        file.seek(info.header_offset + _NAME_LENGTH)
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(name + extra, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype != np.uint8 or len(shape) != 1:
            return None
        return np.memmap(file, np.uint8, mode="c", offset=file.tell(), shape=shape)  # a private copy where written
    except OSError:
        raise
    except Exception as error:  # damaged bytes make the readers of zip and NumPy fail in any way
        raise ValueError(why(error)) from error


def _named(paths: Sequence[Path], *words: str) -> list[Path]:
    """The files whose name has one of the words; "dev" must be a whole word, since "device" has it, too."""

    def has(stem: str, word: str) -> bool:
        return word in (re.split(r"[^a-z]+", stem) if word == "dev" else stem)

    return [path for path in paths if any(has(path.stem.lower(), word) for word in words)]
