"""Errors for the user: one sentence that names the value, the place and the remedy.

The command line prints the sentence without a traceback and ends with ``exit_code``. Any other exception is a defect of
this package and keeps its traceback.
"""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class MatrixSSLError(Exception):
    """Base of every error that a user can fix."""

    exit_code = 1


class ConfigError(MatrixSSLError):
    """A setting is unknown, has the wrong type or conflicts with another setting."""

    exit_code = 2


class DataError(MatrixSSLError):
    """A dataset is missing, empty, unreadable or too small."""


class UnreadableImage(DataError):
    """One image cannot be read. Pre-training skips and counts it; see ``matrix_ssl.data``."""

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.where, self.reason)  # the default pickling would lose one of the two arguments


class OpenFilesError(MatrixSSLError):
    """The limit of open files of the process is too low."""


class CheckpointError(MatrixSSLError):
    """A checkpoint is damaged, or its weights do not match the network."""


class RunFolderError(MatrixSSLError):
    """A run folder is in use, belongs to another configuration or cannot be written."""


class TrainingError(MatrixSSLError):
    """Training cannot continue, for example because the loss is not a number."""


class Diverged(TrainingError):
    """The loss, its gradient or the weights are not finite."""


class ProcessError(MatrixSSLError):
    """One process of several, not the first, met an error that the others did not."""


class MatrixError(MatrixSSLError, ValueError):
    """A tensor is not a matrix that the function is defined for."""


class MatrixTypeError(MatrixError):
    """The elements are not real numbers."""


class MatrixShapeError(MatrixError):
    """The tensor has too few dimensions, or two shapes do not fit together."""


class NotSquareError(MatrixShapeError):
    """The last two dimensions differ."""


class EmptyMatrixError(MatrixShapeError):
    """One of the last two dimensions is zero."""


class NotFiniteError(MatrixError):
    """An element is NaN or infinite."""


class NotSymmetricError(MatrixError):
    """The matrix differs from its transpose by more than rounding."""


class NotPositiveSemidefiniteError(MatrixError):
    """An eigenvalue is below zero by more than rounding."""


class NotPositiveDefiniteError(MatrixError):
    """An eigenvalue is zero or negative where all must be positive."""


class MissingExtra(MatrixSSLError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(
            f"The package {package!r} is not installed: in the clone of matrix-ssl, run {install_command(extra)}"
        )


def install_command(extra: str = "") -> str:
    """The command that installs this package from its clone, with an extra."""
    return f"pip install -e '.[{extra}]' -c constraints.txt" if extra else "pip install -e . -c constraints.txt"


def import_extra(module: str, *, extra: str) -> Any:
    """An optional dependency.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(module.replace("_", "-"), extra) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest of ``known``, or all of them when none is close."""
    names = sorted(known)
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""
