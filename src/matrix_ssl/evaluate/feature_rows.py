"""Features from any program, read in batches: .npy, .npz, .safetensors and .parquet files, and tensors in memory.

A file holds one matrix (n, d), one row per image. Nothing in it is executed, and memory does not grow with the number
of rows, except for arrays in column-major (Fortran) order. What does not fit into free memory is refused before it is
read.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from matrix_ssl.config import system
from matrix_ssl.config.untrusted import GIB, open_file, why
from matrix_ssl.errors import OFFERED, DataError, MatrixSSLError, did_you_mean, import_extra

ENDINGS = (".npy", ".npz", ".safetensors", ".parquet")
KEY = "features"  # the name of the matrix in a file with several arrays, as ``embed`` writes it
_NUMBERS = 1 << 21  # in a batch
_LONGEST_WORD = 1024  # bytes
_HEADERS: Mapping[Any, Callable[[IO[bytes]], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class FeatureRows:
    """A matrix of features that is read in batches.

    Attributes:
        name: name in tables and messages.
        count: number of rows.
        width: number of columns.
        read: starts reading; yields the rows in order, in batches (m, width).
        digest: digest of the dataset that the features belong to, if it is known.
    """

    name: str
    count: int
    width: int
    read: Callable[[], Iterator[Tensor]]
    digest: str | None = None

    def batches(self) -> Iterator[Tensor]:
        """The rows in order, in batches (m, width).

        Raises:
            DataError: an element is not finite in float32, or the file ends early.
        """
        seen = 0
        for batch in self._readable():
            finite = torch.isfinite(batch.float())  # squares of larger numbers would overflow
            if not finite.all():
                row, column = (~finite).nonzero()[0].tolist()
                raise DataError(
                    f"{self.name}: row {seen + row}, column {column} is {batch[row, column].item()}; leave such rows "
                    f"out or compute the features again."
                )
            seen += len(batch)
            yield batch
        if seen < self.count:
            raise DataError(f"{self.name} ends after {seen} of {self.count} rows: write the file again.")

    def _readable(self) -> Iterator[Tensor]:
        with _named(self.name):
            yield from self.read()


def rows_of(features: Tensor, name: str, *, digest: str | None = None) -> FeatureRows:
    """Features (n, d) in memory."""
    _check(name, tuple(features.shape), str(features.dtype).removeprefix("torch."), features.dtype.is_complex)
    size = rows_per_batch(features.shape[1])
    return FeatureRows(name, len(features), features.shape[1], lambda: iter(features.split(size)), digest)


def open_features(path: Path, *, key: str | None = None) -> FeatureRows:
    """Opens the features in a file.

    Args:
        path: a NumPy, safetensors or Parquet file, recognised by its ending.
        key: the name of the matrix in a file with several arrays, or of the column of lists in a Parquet file; None:
            ``features``, or the only matrix there is.

    Raises:
        DataError: the file is missing or damaged, contains Python objects, or has no such matrix of real numbers.
        MissingExtra: pyarrow, for Parquet, is not installed.
    """
    readers = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors, ".parquet": _open_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: features are read from {', '.join(ENDINGS)} files; write them as one of these.")
    if key is not None and path.suffix.lower() == ".npy":
        raise DataError(f"{path} holds a single array: remove --key.")
    if not path.exists():
        raise DataError(f"{path} does not exist: pass a feature file, or a run.")
    with _named(str(path)):
        open_file(path).close()  # rejects pipes and devices, whatever the reader
        return readers[path.suffix.lower()](path, key)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns any failure of the zip, decompression, NumPy and Parquet readers on damaged bytes into a DataError."""
    try:
        yield
    except (MatrixSSLError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{name} cannot be read: {why(error)}.") from error


def rows_per_batch(width: int) -> int:
    """The number of rows that make a batch of several megabytes."""
    return max(1, _NUMBERS // max(width, 1))


def _open_npy(path: Path, _key: str | None) -> FeatureRows:
    with open_file(path) as file:
        shape, _, dtype = _header(file, str(path))
    _check_array(str(path), shape, dtype)
    count, width = shape
    return FeatureRows(path.name, count, width, lambda: _read_array(lambda: open_file(path), str(path)))


def _open_npz(path: Path, key: str | None) -> FeatureRows:
    with open_file(path) as content, zipfile.ZipFile(content) as archive:
        headers = {}
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as file:
                    headers[member.removesuffix(".npy")] = _header(file, str(path))
        matrices = [name for name, (shape, _, dtype) in headers.items() if len(shape) == 2 and dtype.kind in "fiu"]
        name = _choose(path, key, list(headers), matrices)
        shape, _, dtype = headers[name]
        digest = None
        if "data_digest" in headers and _is_word(*headers["data_digest"]):
            with archive.open("data_digest.npy") as file:
                digest = str(np.lib.format.read_array(file, allow_pickle=False))
    _check_array(f"{path}, array {name!r}", shape, dtype)
    count, width = shape

    def read() -> Iterator[Tensor]:
        with open_file(path) as content, zipfile.ZipFile(content) as archive:
            yield from _read_array(lambda: archive.open(f"{name}.npy"), str(path))

    return FeatureRows(path.name, count, width, read, digest)


def _open_safetensors(path: Path, key: str | None) -> FeatureRows:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, is no mapping
        shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
        name = _choose(path, key, list(shapes), [name for name, shape in shapes.items() if len(shape) == 2])
        dtype = slices[name].get_dtype()
    _check(f"{path}, tensor {name!r}", shapes[name], dtype, dtype.startswith("C") or dtype == "BOOL")
    count, width = shapes[name]

    def read() -> Iterator[Tensor]:
        with safe_open(path, framework="pt") as file:
            rows, size = file.get_slice(name), rows_per_batch(width)
            for start in range(0, count, size):
                yield rows[start : start + size]

    return FeatureRows(path.name, count, width, read)


def _open_parquet(path: Path, key: str | None) -> FeatureRows:
    pyarrow = import_extra("pyarrow", extra="datasets")
    from pyarrow import parquet

    with open_file(path) as content:
        file = parquet.ParquetFile(content)
        types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
    lists = [name for name, kind in types.items() if hasattr(kind, "value_type")]
    numbers = [name for name, kind in types.items() if pyarrow.types.is_floating(kind)]
    columns = [_choose(path, key, list(types), lists)] if lists or key else numbers
    if not columns:
        raise DataError(f"{path} has neither a column of lists nor columns of floating-point numbers.")
    count = file.metadata.num_rows

    def matrix(batch: Any) -> NDArray[Any]:
        if columns == numbers and not lists:
            return np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in columns], axis=1)
        rows = batch.column(columns[0]).to_numpy(zero_copy_only=False)
        widths = {-1 if row is None else len(row) for row in rows}
        if len(widths) > 1 or -1 in widths:
            raise DataError(f"{path}, column {columns[0]!r}: rows have {sorted(widths)} numbers; they must be equal.")
        return np.stack(rows)

    def read() -> Iterator[Tensor]:
        size = rows_per_batch(len(columns) if columns == numbers else 2048)
        with open_file(path) as content:
            for batch in parquet.ParquetFile(content).iter_batches(batch_size=size, columns=columns):
                yield torch.from_numpy(np.ascontiguousarray(matrix(batch)))

    with open_file(path) as content:
        first = next(parquet.ParquetFile(content).iter_batches(batch_size=1, columns=columns), None)
    if first is None:
        raise DataError(f"{path} has no rows.")
    row = matrix(first)
    _check_array(str(path), (count, row.shape[1]), row.dtype)
    return FeatureRows(path.name, count, row.shape[1], read)


def _choose(path: Path, key: str | None, names: list[str], matrices: list[str]) -> str:
    """The name of the matrix among all names in a file."""
    if key is not None:
        if key not in names:
            raise DataError(f"{path} has no {key!r}.{did_you_mean(key, names)}")
        return key
    if KEY in names:
        return KEY
    if len(matrices) != 1:
        held = f"{len(matrices)} matrices ({', '.join(matrices)})" if matrices else "no matrix"
        use = f"name one of {', '.join(names) or 'its arrays'} with --key"
        raise DataError(f"{path} has {held}: {OFFERED.first(use, otherwise=f'save the features as {KEY!r}')}.")
    return matrices[0]


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the order is column-major, and dtype; leaves the file positioned at the first number."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise DataError(f"{name}: version {version} of NumPy's format is not known; write it with numpy.save.")
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = _HEADERS[version](file)
    return header


def _read_array(begin: Callable[[], IO[bytes]], name: str) -> Iterator[Tensor]:
    with begin() as file:
        (count, width), columns_first, dtype = _header(file, name)
        _check_memory(name, (count if columns_first else 1) * width * dtype.itemsize)
        if columns_first:
            content = file.read(count * width * dtype.itemsize)
            if len(content) == count * width * dtype.itemsize:
                yield _tensor(np.frombuffer(content, dtype).reshape(width, count).T)
            return
        size = rows_per_batch(width)
        for start in range(0, count, size):
            rows = min(size, count - start)
            content = file.read(rows * width * dtype.itemsize)
            if len(content) < rows * width * dtype.itemsize:
                return
            yield _tensor(np.frombuffer(content, dtype).reshape(rows, width))


def _tensor(rows: NDArray[Any]) -> Tensor:
    """Floating point keeps its precision; integers, which may be of a type that PyTorch lacks, become float64."""
    kind = np.dtype(np.float64) if rows.dtype.kind in "iu" else rows.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(rows, dtype=kind, order="C"))


def _is_word(shape: tuple[int, ...], _: bool, dtype: np.dtype[Any]) -> bool:
    """Whether an array is a single short string."""
    return shape == () and dtype.kind == "U" and dtype.itemsize <= _LONGEST_WORD


def _check_memory(name: str, size: int) -> None:
    """Raises DataError for data that must be read at once but does not fit into free memory."""
    _, free = system.memory()
    if size > free:
        raise DataError(
            f"{name}: {size / GIB:.1f} GiB have to be read at once and {free / GIB:.1f} GiB are free; save the "
            f"features in the order of rows, with fewer columns."
        )


def _check_array(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise DataError(f"{name} holds Python objects, which are not read: save an array of numbers.")
    _check(name, shape, str(dtype), dtype.kind not in "fiu" or dtype.itemsize > 8)


def _check(name: str, shape: tuple[int, ...], dtype: str, wrong_type: bool) -> None:
    """Raises DataError unless it is a matrix of real numbers with at least one row and column."""
    if wrong_type:
        raise DataError(f"{name} has elements of type {dtype}: expected real numbers of 64 bits or fewer.")
    if len(shape) != 2:
        raise DataError(f"{name} has the shape {shape}: expected (images, features).")
    if min(shape) < 1:
        raise DataError(f"{name} has the shape {shape}: expected at least one row and one column.")
