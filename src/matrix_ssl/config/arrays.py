"""Arrays of untrusted .npz files: never a pickle, and never more than fits in memory."""

import zipfile
from collections.abc import Collection
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config import system
from matrix_ssl.config.untrusted import GIB, open_file, why
from matrix_ssl.errors import memory_is_short


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a file that have one of the names; None: all of them.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
        ValueError: it is not such an archive, is damaged, or unpacks to more than the free memory.
    """
    with open_file(path) as file:
        return read_open_arrays(file, names)


def read_open_arrays(file: FileIO, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Like ``read_arrays``, for an open file."""
    needed = 0
    try:
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if names is None or one.filename[:-4] in names]
            needed, (_, free) = sum(one.file_size for one in members), system.memory()
            if needed > free:
                raise ValueError(f"it unpacks to {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free")
            return {one.filename.removesuffix(".npy"): _read(archive, one) for one in members}
    except OSError:
        raise
    except Exception as error:  # damaged bytes make zip, its decompressors and NumPy fail in any way
        if memory_is_short(error, size=needed):
            raise MemoryError from error
        raise ValueError(why(error)) from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array
