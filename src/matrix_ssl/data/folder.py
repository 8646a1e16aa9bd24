"""Folders of image files, flat or in class folders."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.data.base import Classes, Labels, Source, as_indices
from matrix_ssl.data.identity import ABSENT
from matrix_ssl.data.images import EXTENSIONS, read_image
from matrix_ssl.errors import DataError

_TEST_NAMES = ("test", "val", "valid", "validation")  # in the order of preference when there are several


class FolderSource(Source):
    """Image files below one folder, decoded when they are read."""

    def __init__(self, name: str, folder: Path, files: Sequence[str], *, labels: Labels, classes: Classes):
        super().__init__(name, channels=3, labels=labels, classes=classes)
        self._folder = folder
        self._files = files  # relative to the folder: short to pickle

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> torch.Tensor:
        return read_image(self._folder / self._files[index])

    def where(self, index: int) -> str:
        return str(self._folder / self._files[index])

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        return self._files, file_sizes(self._folder, self._files)

    def _read_start(self, index: int, count: int) -> bytes:
        return read_start(os.path.join(self._folder, self._files[index]), count)  # noqa: PTH118, as in file_sizes

    def subset(self, indices: ArrayLike) -> "FolderSource":
        rows = as_indices(indices, len(self))
        files = [self._files[row] for row in rows]
        labels = None if self.labels is None else self.labels[rows]
        return FolderSource(self.name, self._folder, files, labels=labels, classes=self.classes)


def open_folder(folder: Path, *, name: str, classes: list[str] | None = None) -> FolderSource:
    """Lists the images below a folder, at any depth, sorted by path; hidden files and folders are skipped.

    The dataset is labelled when every image is in one of at least two first-level folders: these are the classes,
    sorted by name. With ``classes`` (those of the training split) the first-level folders must be among them.
    """
    everything = list(_walk(folder))
    files = sorted(filter(is_image, everything), key=lambda file: Path(file).parts)
    if not files:
        raise DataError(_no_images(folder, everything))
    parents = [Path(file).parts[0] if os.sep in file else "" for file in files]
    folders = sorted(set(parents))
    if "" in folders or (classes is None and len(folders) < 2):
        return FolderSource(name, folder, files, labels=None, classes=None)
    names = classes or folders
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise DataError(
            f"{folder}: the class {unknown[0]!r} is not in the training split ({len(names)} classes); "
            f"rename or remove its folder."
        )
    number = {label: k for k, label in enumerate(names)}
    labels = np.array([number[parent] for parent in parents], dtype=np.int64)
    return FolderSource(name, folder, files, labels=labels, classes=names)


def find_split_folders(folder: Path) -> tuple[Path, Path | None]:
    """The folders of the training and the test split.

    ``folder/train`` is the training split when it is beside a test, val, valid or validation folder, or alone; beside
    other folders, "train" is a class like them. Of several test folders one with class folders wins, then the order
    above. Without this layout the folder itself is the training split and there is no test split.
    """
    inside = {entry.name.lower(): Path(entry.path) for entry in _list(folder) if entry.is_dir()}
    tests = [inside[name] for name in _TEST_NAMES if name in inside]
    if "train" not in inside or not (tests or len(inside) == 1):
        return folder, None
    with_classes = [test for test in tests if sum(entry.is_dir() for entry in _list(test)) > 1]
    return inside["train"], next(iter(with_classes + tests), None)


def file_sizes(folder: Path, files: Sequence[str]) -> NDArray[np.int64]:
    """Bytes of every file, int64 (n,); ``ABSENT`` for one that does not exist or is not a regular file."""
    sizes = np.full(len(files), ABSENT, dtype=np.int64)
    start = str(folder)
    for index, file in enumerate(files):
        try:
            status = os.stat(os.path.join(start, file))  # noqa: PTH116, PTH118, a Path for every file is slow
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            sizes[index] = status.st_size
    return sizes


def read_start(path: str, count: int) -> bytes:
    """The first ``count`` bytes of a file; none where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123, as in file_sizes
            return file.read(count)
    except OSError:
        return b""


def packed_files(folder: Path) -> list[Path]:
    """The .npz files directly in a folder, sorted by name."""
    return [Path(entry.path) for entry in _list(folder) if entry.name.lower().endswith(".npz")]


def holds_images(folder: Path) -> bool:
    """Whether any image is below the folder."""
    return any(is_image(file) for file in _walk(folder))


def is_image(file: str) -> bool:
    """Whether the extension is that of an image."""
    return Path(file).suffix.lower() in EXTENSIONS


def _walk(folder: Path) -> Iterator[str]:
    """Every visible file below the folder, relative to it; links to folders are followed unless they lead in circles.

    torchvision's ImageFolder cannot do this: it needs class folders, never ends on a link to an ancestor, and stops at
    the first broken link, which here counts as a file, so that it is reported as unreadable.
    """
    root = folder.stat()
    pending = [("", frozenset([(root.st_dev, root.st_ino)]))]
    while pending:
        relative, ancestors = pending.pop()
        for entry in _list(folder / relative):
            path = os.path.join(relative, entry.name)  # noqa: PTH118, a Path for every file is slow
            if entry.is_dir():
                status = entry.stat()
                identity = (status.st_dev, status.st_ino)
                if identity not in ancestors:
                    pending.append((path, ancestors | {identity}))
            elif entry.is_file() or entry.is_symlink():
                yield path


def _list(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except PermissionError:
        raise DataError(f"{folder}: no permission to list the folder; allow it.") from None


def _no_images(folder: Path, files: Sequence[str]) -> str:
    known = " ".join(sorted(EXTENSIONS))
    if not files:
        return f"{folder}: the folder is empty; choose one with images ({known})."
    counts = Counter(Path(file).suffix.lower() or "none" for file in files)
    extensions = ", ".join(f"{extension} ({count})" for extension, count in counts.most_common(6))
    return (
        f"{folder}: no image among {len(files)} files with the extensions {extensions}; "
        f"choose a folder of images ({known})."
    )
