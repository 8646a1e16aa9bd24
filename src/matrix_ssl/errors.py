"""Errors that a user can fix: one sentence that names the value, the place and the remedy.

The command line prints the sentence without a traceback and exits with ``exit_code``. Any other exception is a bug in
this package and keeps its traceback.
"""

import difflib
import errno
import importlib
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "Cannot allocate memory")
_LEAST = 2**24  # bytes that any reader needs
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # in errors of safetensors and tokenizers
_OF_PYTORCH = re.compile(r"inline_container\.cc.*(unexpected pos|failed writing)", re.DOTALL)  # of torch.save
_OPTION = re.compile(r"--set ([\w.]+)=|(--[a-z][a-z-]+)")


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
    """The process's limit on open files is too low."""


class CheckpointError(MatrixSSLError):
    """A checkpoint is damaged, or its weights do not match the network."""


class RunFolderError(MatrixSSLError):
    """A run folder is in use, belongs to another configuration or cannot be written."""


class TrainingError(MatrixSSLError):
    """Training cannot continue, for example because the loss is not a number."""


class Diverged(TrainingError):
    """The loss, its gradient or the weights are not finite."""


class ProcessError(MatrixSSLError):
    """One of several processes, not the first, met an error that the others did not."""


class MatrixError(MatrixSSLError, ValueError):
    """A tensor is not a matrix for which the function is defined."""


class MatrixTypeError(MatrixError):
    """The argument is not a dense tensor of real numbers."""


class MatrixShapeError(MatrixError):
    """The tensor has too few dimensions, or two shapes do not fit together."""


class NotSquareError(MatrixShapeError):
    """The last two dimensions differ."""


class EmptyMatrixError(MatrixShapeError):
    """The last dimension is zero or, for a matrix, one of the last two."""


class NotFiniteError(MatrixError):
    """An element is NaN or infinite."""


class NotSymmetricError(MatrixError):
    """The matrix differs from its transpose by more than rounding."""


class NotPositiveSemidefiniteError(MatrixError):
    """An eigenvalue is below zero by more than rounding."""


class NotPositiveDefiniteError(MatrixError):
    """An eigenvalue is zero or negative where all must be positive."""


class MissingPackage(MatrixSSLError, ImportError):
    """A package is not installed that everything except the matrix functions and losses needs."""

    def __init__(self, package: str):
        super().__init__(
            f"The package {package!r} is not installed: matrix functions and losses need PyTorch and NumPy alone, "
            f"everything else needs the rest: in the clone of matrix-ssl, run {install_command()}"
        )


class MissingExtra(MatrixSSLError):
    """An optional dependency is not installed, or cannot be imported."""

    def __init__(self, package: str, extra: str, *, cause: ImportError | None = None):
        """``cause`` is what its import raised: it or a dependency is missing, or it is incompatible with another."""
        absent = isinstance(cause, ModuleNotFoundError) and (cause.name or "").partition(".")[0].replace("_", "-")
        reason = str(cause).partition("\n")[0].rstrip(".")
        state = "is not installed" if cause is None or absent == package else f"cannot be imported ({reason})"
        super().__init__(f"The package {package!r} {state}: in the clone of matrix-ssl, run {install_command(extra)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system, PyTorch or CUDA has refused memory."""
    return isinstance(error, MemoryError) or any(sentence in str(error) for sentence in _OUT_OF_MEMORY)


def system_error(error: BaseException) -> OSError | None:
    """An error of the system, also one that a library in Rust or PyTorch's writer reports as its own; None for others.

    PyTorch's writer does not say why a file cannot be written; most often the disk is full.
    """
    if isinstance(error, OSError):
        return error
    number = _OF_RUST.search(str(error))
    if number is None and not _OF_PYTORCH.search(str(error)):
        return None
    code = errno.ENOSPC if number is None else int(number[1])
    return OSError(code, os.strerror(code))


def memory_is_short(error: BaseException, *, size: int) -> bool:
    """Whether a reader failed because ``size`` bytes are not available, not because a damaged file asked for more."""
    if not is_out_of_memory(error):
        return False
    try:
        mmap.mmap(-1, max(size, _LEAST)).close()
    except (OSError, MemoryError, OverflowError):
        return True
    return False


def install_command(extra: str = "") -> str:
    """The command that installs this package from its clone, with an extra."""
    return f"pip install -e '.[{extra}]' -c constraints.txt" if extra else "pip install -e . -c constraints.txt"


def import_package(module: str) -> Any:
    """Imports a package that the matrix functions and losses do not need; MissingPackage if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "matrix_ssl":
            raise
        raise MissingPackage(error.name) from error


def load_on_use(package: str, names: Iterable[str], modules: Iterable[str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names come from modules that are imported only when a name is used.

    This lets code that needs only PyTorch and NumPy mention names that need more. A name comes from the first of the
    modules that has it. If a package that they need is not installed, MissingPackage is raised.
    """

    def load(name: str) -> Any:
        if name in names:
            for module in map(import_package, modules):
                if hasattr(module, name):
                    setattr(sys.modules[package], name, getattr(module, name))
                    return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


def import_extra(module: str, *, extra: str) -> Any:
    """Imports an optional dependency.

    Raises:
        MissingExtra: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(module.replace("_", "-"), extra, cause=error) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest of ``known``, or all of them when none is close."""
    names = sorted(known)
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


def some(names: Iterable[object], *, most: int = 8) -> str:
    """The first of the names in one line, and how many more there are: ``a, b, c and 3 more``."""
    listed = [str(name).replace("\n", "\\n") for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def check_known(name: str, value: object, known: Iterable[str]) -> None:
    """Raises ConfigError unless the value of the argument ``name`` is one of ``known``."""
    choices = list(known)
    if value not in choices:
        raise ConfigError(f"{name}={value!r} does not exist.{did_you_mean(str(value), choices)}")


def check_whole(name: str, value: object) -> None:
    """Raises ConfigError unless the value of the argument ``name`` is an integer; a Boolean is not one."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name}={value!r}: expected a whole number.")


class Offered:
    """What the running command lets the user change, so that no remedy names an option that it does not have."""

    def __init__(self) -> None:
        self._has: Callable[[str], bool] = lambda _: True  # in Python, where options are arguments

    def ask(self, has: Callable[[str], bool]) -> None:
        """Sets the function that says whether the command has an option (``--fresh``) or setting (``data.workers``)."""
        self._has = has

    def first(self, *remedies: str, otherwise: str = "") -> str:
        """The first remedy whose option or setting (``--option`` or ``--set key=``) the running command has."""
        for remedy in remedies:
            match = _OPTION.search(remedy)
            if match is None or self._has(match[1] or match[2]):
                return remedy
        return otherwise


OFFERED = Offered()
