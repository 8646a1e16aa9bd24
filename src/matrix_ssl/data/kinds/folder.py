"""Folders of image files, flat or in class folders."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matrix_ssl.config.reading import Reading
from matrix_ssl.config.untrusted import open_file
from matrix_ssl.data.base import Classes, Labels, Source, as_indices
from matrix_ssl.data.files.decoding import decode_values
from matrix_ssl.data.files.images import decode_image, highest_level, read_content
from matrix_ssl.data.files.opening import ARRAY_EXTENSION, EXTENSIONS
from matrix_ssl.data.files.values import pages_of
from matrix_ssl.data.identity import ABSENT
from matrix_ssl.data.layout import Listing, describe_classes, list_images
from matrix_ssl.errors import DataError, UnreadableImage, some

_SHOWN = 3  # files that a sentence lists
_PAGED = frozenset([".gif", ".png", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".dcm", ".dicom"])


class FolderSource(Source):
    """Image files below one folder, decoded when they are read."""

    def __init__(self, name: str, folder: Path, files: Sequence[str], *, labels: Labels, classes: Classes):
        super().__init__(name, channels=3, labels=labels, classes=classes)
        self._folder = folder
        self._files = files  # relative to the folder: short to pickle
        self._pages: NDArray[np.int64] | None = None  # the page of every image in its file; None: the first

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> torch.Tensor:
        content = read_content(self._folder / self._files[index])
        return decode_image(content, self.where(index), reading=self.reading, page=self._page(index))

    def values(self, index: int) -> NDArray[np.generic]:
        content = read_content(self._folder / self._files[index])
        return decode_values(content, self.where(index), reading=self.reading, page=self._page(index)).array

    def encoded(self, index: int) -> bytes | None:
        return read_content(self._folder / self._files[index]) if self._page(index) == 0 else None

    def highest_level(self, index: int) -> int:
        return highest_level(self._folder / self._files[index])

    def has_pages(self, index: int) -> bool:
        file = self._files[index]
        return _may_have_pages(file) and len(pages_of(read_content(self._folder / file), most=2)) > 1

    def file(self, index: int) -> str:
        return os.path.join(self._folder, self._files[index])  # noqa: PTH118, a Path for every file is slow

    def where(self, index: int) -> str:
        page = f"[{page}]" if (page := self._page(index)) else ""
        return f"{self._folder / self._files[index]}{page}"

    def with_reading(self, reading: Reading) -> "FolderSource":
        """The same files; with ``pages`` "all", every file is opened, and those with several pages are repeated."""
        if reading == self.reading:
            return self
        other = self.copy()
        other.reading, other.channels = reading, reading.channels or 3
        if reading.pages == "all" and self._pages is None:
            numbers = [self._page_numbers(file) for file in self._files]
            rows = np.repeat(np.arange(len(numbers)), list(map(len, numbers)))
            other = other.subset(rows)
            other._pages = np.concatenate(numbers).astype(np.int64)
        return other

    def _page(self, index: int) -> int:
        return 0 if self._pages is None else int(self._pages[index])

    def _page_numbers(self, file: str) -> list[int]:
        if not _may_have_pages(file):
            return [0]
        try:
            return pages_of(read_content(self._folder / file))
        except UnreadableImage:  # it is reported when it is read
            return [0]

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        names = self._files
        if self._pages is not None:
            names = [f"{file}[{page}]" if page else file for file, page in zip(names, self._pages, strict=True)]
        return names, file_sizes(self._folder, self._files)

    def _read_start(self, index: int, count: int) -> bytes:
        return read_start(self.file(index), count)

    def subset(self, indices: ArrayLike) -> "FolderSource":
        rows = as_indices(indices, len(self))
        files = [self._files[row] for row in rows]
        subset = self.copy()
        subset.labels = None if self.labels is None else self.labels[rows]
        subset._files = files
        subset._pages = None if self._pages is None else self._pages[rows]
        return subset


def open_folder(folder: Path, *, name: str, classes: list[str] | None = None) -> FolderSource:
    """Lists the images below a folder, at any depth, sorted by path; ``layout`` says which files are images.

    The dataset is labelled if every image is in one of at least two first-level folders: these are the classes, sorted
    by name. With ``classes`` (those of the training split), the first-level folders must be among them.
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
        source.unlabelled_because = _why_unlabelled(folder, files, folders, stray)
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


def _may_have_pages(file: str) -> bool:
    return Path(file).suffix.lower() in _PAGED


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
    """The first ``count`` bytes of a file; empty if it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(count)
    except OSError:
        return b""


def _why_unlabelled(folder: Path, files: Sequence[str], folders: Sequence[str], stray: Sequence[str]) -> str:
    images = len(files)
    if len(stray) == images:
        return "put each class in a folder of its own, or name a .csv table with the labels"
    if not stray:
        below = {parts[1] if len(parts := Path(file).parts) > 2 else "" for file in files}
        name_it = "" if len(below) < 2 or "" in below else f", or name {folder / folders[0]}, which has {len(below)}"
        return f"all images are in the folder {folders[0]!r}: put each class in a folder of its own{name_it}"
    are, them = ("is", "it") if len(stray) == 1 else ("are", "them")
    return (
        f"{len(stray)} of {images} images {are} beside the class folders and not in one of them "
        f"({some(map(repr, stray), most=_SHOWN)}): move or remove {them}, or name a .csv table with the labels"
    )


def _no_images(folder: Path, listing: Listing) -> str:
    known = " ".join(sorted([*EXTENSIONS, ARRAY_EXTENSION]))
    if not listing.others:
        empty = "there are only thumbnails" if listing.thumbnails else "the folder is empty"
        return f"{folder}: {empty}; choose one with images ({known})."
    count, remedies = sum(listing.others.values()), "".join(f" {remedy}." for remedy in listing.remedies())
    return (
        f"{folder}: no image among {count} files with the extensions {listing.extensions()}; "
        f"choose a folder of images ({known}).{remedies}"
    )
