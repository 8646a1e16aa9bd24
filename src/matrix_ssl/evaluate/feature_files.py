"""Features on disk, which may exceed memory and are kept when the process is stopped. Imports no torch.

Every encoder's rows are appended to a file of plain float32 numbers. ``progress.json``, written after the rows have
reached the disk, records how many of them are valid; rows that a killed process wrote after them are cut off. The files
are memory-mapped, so the operating system keeps as much of them in memory as fits.
"""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.untrusted import append, open_to_append
from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs.files import cannot_write, read_json, write_json

_PROGRESS = "progress.json"
_INDICES = "indices.i64"
_SECONDS_BETWEEN_SAVES = 60.0
ONLY = "encoder"  # the name of an encoder that is the only one
Vectors = Mapping[str, NDArray[np.float32]]  # by encoder: (m, k)


class FeatureFiles:
    """Appends rows of features to files in a folder, and resumes after an earlier process was stopped.

    The folder is created with the first rows. Its contents are deleted unless its fingerprint of everything that
    determines the features (encoders, images, preparation) is the same.

    Attributes:
        seen: number of images processed, readable or not.
        unreadable: path and reason of every image that could not be read.

    Raises:
        RunFolderError: the folder or a file in it cannot be written; every method can raise it.
    """

    def __init__(self, folder: Path, *, fingerprint: str):
        self._folder, self._fingerprint = folder, fingerprint
        self._saved = time.monotonic()
        progress = read_json(folder / _PROGRESS) if (folder / _PROGRESS).exists() else {}
        if not _is_whole(folder, progress, fingerprint):
            shutil.rmtree(folder, ignore_errors=True)
            progress = {"seen": 0, "rows": 0, "widths": {}, "unreadable": []}
        self.seen: int = progress["seen"]
        self.unreadable: list[tuple[str, str]] = [(where, why) for where, why in progress["unreadable"]]
        self._rows: int = progress["rows"]
        self._widths: dict[str, int] = progress["widths"]
        try:
            for path in () if self._rows else folder.glob("*"):  # rows written after the last save
                if path.name != _PROGRESS:
                    path.unlink()
            for name, size in _sizes(self._rows, self._widths).items():
                with open_to_append(folder / name) as file:
                    file.truncate(size)
        except OSError as error:
            raise cannot_write(folder, error) from error

    def add(self, indices: NDArray[np.int64], vectors: Vectors, problems: list[tuple[str, str]]) -> None:
        """Appends the next images: (m,) readable ones with (m, k) vectors by encoder, and the unreadable ones."""
        readable = len(indices)
        processed = readable + len(problems)
        if readable:
            self._append(_INDICES, indices.astype(np.int64))
            for name, rows in vectors.items():
                self._widths[name] = rows.shape[1]
                self._append(_file(name), rows.astype(np.float32, copy=False))
        # without a call between them, so what is saved after a full disk or Ctrl-C has all of these images or none
        self.seen += processed
        self._rows += readable
        self.unreadable += problems
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Saves the rows added so far, so that they survive the end of this process."""
        self._make_folder()
        try:
            for name in _sizes(self._rows, self._widths):
                descriptor = os.open(self._folder / name, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        values = {
            "fingerprint": self._fingerprint, "seen": self.seen, "rows": self._rows, "widths": self._widths,
            "unreadable": self.unreadable,
        }  # fmt: skip
        write_json(self._folder / _PROGRESS, values)
        self._saved = time.monotonic()

    def read(self) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
        """Indices (m,) of the readable images and, by encoder, float32 (m, k) memory-mapped from the files; m > 0."""
        indices = np.fromfile(self._folder / _INDICES, dtype=np.int64)
        vectors: dict[str, NDArray[np.float32]] = {}
        for name, width in self._widths.items():
            # mode "c": a tensor needs writable memory; anything written stays in this process
            vectors[name] = np.memmap(self._folder / _file(name), np.float32, mode="c", shape=(self._rows, width))
        return indices, vectors

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def _append(self, name: str, rows: NDArray[Any]) -> None:
        self._make_folder()
        path = self._folder / name
        try:
            append(path, rows.tobytes())
        except OSError as error:
            raise cannot_write(path, error) from error


class FeaturesInMemory:
    """``FeatureFiles`` without files."""

    def __init__(self) -> None:
        self.seen = 0
        self.unreadable: list[tuple[str, str]] = []
        self._indices: list[NDArray[np.int64]] = []
        self._rows: dict[str, list[NDArray[np.float32]]] = {}

    def add(self, indices: NDArray[np.int64], vectors: Vectors, problems: list[tuple[str, str]]) -> None:
        """As ``FeatureFiles.add``."""
        self.seen += len(indices) + len(problems)
        self.unreadable += problems
        self._indices.append(indices)
        for name, rows in vectors.items():
            self._rows.setdefault(name, []).append(rows)

    def save(self) -> None:
        """Does nothing."""

    def read(self) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
        """As ``FeatureFiles.read``."""
        return np.concatenate(self._indices), {name: np.concatenate(rows) for name, rows in self._rows.items()}


def fingerprint_of(folder: Path) -> str | None:
    """The fingerprint of the features in a folder; None if there are none."""
    try:
        value = read_json(folder / _PROGRESS)["fingerprint"]
    except (RunFolderError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None


def _file(name: str) -> str:
    return f"{name}.f32"


def _sizes(rows: int, widths: Mapping[str, int]) -> dict[str, int]:
    """Number of valid bytes of every file."""
    return {_INDICES: 8 * rows} | {_file(name): 4 * width * rows for name, width in widths.items()} if rows else {}


def _is_whole(folder: Path, progress: Any, fingerprint: str) -> bool:
    """Whether ``progress.json`` has this fingerprint and the files hold what it says."""
    try:
        if progress["fingerprint"] != fingerprint:
            return False
        rows, widths, _ = progress["rows"], progress["widths"], [(where, why) for where, why in progress["unreadable"]]
        sizes = _sizes(rows, widths)
        if any(type(number) is not int for number in (rows, progress["seen"], *widths.values())):
            return False
        names_are_plain = all(Path(name).name == name for name in sizes)
        return (
            names_are_plain
            and 0 <= rows <= progress["seen"]
            and all(0 <= size <= (folder / name).stat().st_size for name, size in sizes.items())
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return False
