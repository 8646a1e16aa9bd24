"""Folders of image files, flat or in class folders."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.config.untrusted import open_file
from matrix_ssl.data.base import Classes, Labels, Source, as_indices
from matrix_ssl.data.identity import ABSENT
from matrix_ssl.data.images import EXTENSIONS, highest_level, read_content, read_image
from matrix_ssl.data.layout import Listing, describe_classes, list_images
from matrix_ssl.errors import DataError

_SHOWN = 3  # files that a sentence lists


class FolderSource(Source):
    """Image files below one folder, decoded when they are read."""

    def __init__(self, name: str, folder: Path, files: Sequence[str], *, labels: Labels, classes: Classes):
        super().__init__(name, channels=3, labels=labels, classes=classes)
        self._folder = folder
        self._files = files  # relative to the folder: short to pickle

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> torch.Tensor:
        return read_image(self._folder / self._files[index], white_level=self.white_level)

    def encoded(self, index: int) -> bytes:
        return read_content(self._folder / self._files[index])

    def highest_level(self, index: int) -> int:
        return highest_level(self._folder / self._files[index])

    def where(self, index: int) -> str:
        return str(self._folder / self._files[index])

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        return self._files, file_sizes(self._folder, self._files)

    def _read_start(self, index: int, count: int) -> bytes:
        return read_start(os.path.join(self._folder, self._files[index]), count)  # noqa: PTH118, as in file_sizes

    def subset(self, indices: ArrayLike) -> "FolderSource":
        rows = as_indices(indices, len(self))
        files = [self._files[row] for row in rows]
        subset = self.copy()
        subset.labels = None if self.labels is None else self.labels[rows]
        subset._files = files
        return subset


def open_folder(folder: Path, *, name: str, classes: list[str] | None = None) -> FolderSource:
    """Lists the images below a folder, at any depth, sorted by path; ``layout`` says which files are images.

    The dataset is labelled when every image is in one of at least two first-level folders: these are the classes,
    sorted by name. With ``classes`` (those of the training split) the first-level folders must be among them.
    """
    listing = list_images(folder)
    files = listing.images
    if not files:
        raise DataError(_no_images(folder, listing))
    parents = [file.partition(os.sep)[0] if os.sep in file else "" for file in files]
    folders = sorted(set(parents))
    remarks = [remark for remark in (listing.remark(folder),) if remark]
    if "" in folders or (classes is None and len(folders) < 2):
        stray = [file for file, parent in zip(files, parents, strict=True) if not parent]
        source = FolderSource(name, folder, files, labels=None, classes=None)
        source.unlabelled_because = _why_unlabelled(folders, stray, len(files))
        if len(folders) > 2:
            remarks.append(f"{folder} has no labels: {source.unlabelled_because}.")
    else:
        names = classes or folders
        if unknown := sorted(set(folders) - set(names)):
            raise DataError(
                f"{folder}: the class {unknown[0]!r} is not in the training split ({len(names)} classes); "
                f"rename or remove its folder."
            )
        number = {label: k for k, label in enumerate(names)}
        labels = np.array([number[parent] for parent in parents], dtype=np.int64)
        source = FolderSource(name, folder, files, labels=labels, classes=names)
        remarks += [describe_classes(folder, names)] if classes is None else []
    source.remarks = tuple(remarks)
    return source


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
        with open_file(path) as file:
            return file.read(count)
    except OSError:
        return b""


def _why_unlabelled(folders: Sequence[str], stray: Sequence[str], images: int) -> str:
    if len(stray) == images:
        return "put each class in a folder of its own"
    if not stray:
        return f"all images are in the folder {folders[0]!r}: put each class in a folder of its own"
    some = ", ".join(map(repr, stray[:_SHOWN])) + (", ..." if len(stray) > _SHOWN else "")
    return (
        f"{len(stray)} of {images} images are beside the class folders and not in one of them ({some}): move or remove "
        f"them"
    )


def _no_images(folder: Path, listing: Listing) -> str:
    known = " ".join(sorted(EXTENSIONS))
    if not listing.others:
        empty = "there are only thumbnails" if listing.thumbnails else "the folder is empty"
        return f"{folder}: {empty}; choose one with images ({known})."
    count, remedies = sum(listing.others.values()), "".join(f" {remedy}." for remedy in listing.remedies())
    return (
        f"{folder}: no image among {count} files with the extensions {listing.extensions()}; "
        f"choose a folder of images ({known}).{remedies}"
    )
