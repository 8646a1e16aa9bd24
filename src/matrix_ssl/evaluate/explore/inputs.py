"""Checks of the arguments of functions on features: NumPy or PyTorch matrices, indices and labels."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from matrix_ssl.data import base
from matrix_ssl.errors import ConfigError, DataError, check_whole
from matrix_ssl.evaluate.probes.inputs import ROWS, check_features

Matrix = NDArray[np.floating] | Tensor  # features (n, d)


def as_features(features: Matrix, name: str = "features") -> Tensor:
    """Finite features (n, d), n and d at least 1, as a tensor that shares an array's memory if possible.

    Raises:
        DataError: the features are not such a matrix.
    """
    tensor = features if isinstance(features, Tensor) else _as_tensor(np.asarray(features), name)
    check_features(tensor, name)
    return tensor.detach()


def _as_tensor(array: NDArray[np.floating], name: str) -> Tensor:
    """A floating-point array as a tensor; a copy if PyTorch does not support its dtype, byte order or strides."""
    if array.dtype.kind != "f":
        raise DataError(
            f"{name}: expected a floating-point matrix, one row an image, got {array.dtype} of shape {array.shape}."
        )
    array = array.astype(np.float64 if array.itemsize > 8 else array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")  # it is never written to
        return torch.from_numpy(array)


def unit_rows(features: Matrix, name: str = "features") -> Tensor:
    """``as_features`` with rows normalised to length one, float32 (n, d); rows of zeros stay zero."""
    tensor = as_features(features, name)
    units = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    for unit, rows in zip(units.split(ROWS), tensor.split(ROWS), strict=True):
        unit.copy_(F.normalize(rows.double(), dim=1))
    return units


def as_indices(indices: Sequence[int] | ArrayLike, count: int, name: str) -> NDArray[np.int64]:
    """Distinct indices from 0 to count - 1, int64 (m,), in the given order.

    Raises:
        ConfigError: an index is not an integer in this range, or is given twice.
    """
    try:
        rows = base.as_indices(indices, count)
    except IndexError as error:
        raise ConfigError(f"{name}: {error}, got {np.asarray(indices).tolist()!r:.80}.") from None
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise ConfigError(f"{name}: image {values[counts > 1][0]} is named twice.")
    return rows


def check_seed(seed: int) -> None:
    """Raises ConfigError unless the seed is an integer from 0 to 2⁶³ - 1."""
    check_whole("seed", seed)
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed}: expected a whole number from 0 to {2**63 - 1}.")


def as_labels(labels: ArrayLike, count: int) -> NDArray[np.int64]:
    """Labels int64 (n,) from 0, one for each of ``count`` images.

    Raises:
        DataError: their number differs from ``count``, or a label is not a non-negative integer.
    """
    values = np.asarray(labels)
    if values.shape != (count,):
        raise DataError(f"{count} images but labels of shape {values.shape}: pass one label for each.")
    if values.dtype.kind not in "iu" or values.min() < 0:
        raise DataError("Labels must be integers from 0: leave unlabelled images out.")
    return values.astype(np.int64)
