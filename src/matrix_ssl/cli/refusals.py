"""Errors caused by the system, wherever they occur, as one sentence that names the place and the remedy."""

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from matrix_ssl.config.untrusted import expanded
from matrix_ssl.errors import system_error

_ANOTHER, _SPACE = "Choose another place", "Free space there or choose another place"
_THREADS = "Raise the limit of processes and threads (ulimit -u), or use fewer"
_REFUSALS = {
    errno.ENAMETOOLONG: "Use a shorter name",
    errno.EFBIG: _SPACE,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: _ANOTHER,
    errno.EACCES: "Choose another place, or change its permissions",
    errno.EPERM: "Choose another place, or change its permissions",
    errno.EIO: "The disk or its connection fails: look at the log of the system, and save what is there",
    errno.ESTALE: "The folder of the network was replaced: mount it again",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.EAGAIN: _THREADS,
    errno.ENFILE: "The machine has too many files open: end other programs",
}
_OF_PLACES = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST)  # errors of folders that a variable names
_VARIABLES = {  # variables that name the folders where this package and its libraries keep files, and their defaults
    **dict.fromkeys(("TMPDIR", "MATRIX_SSL_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_HOME"), ""),
    **dict.fromkeys(("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"), ""),
    "XDG_CACHE_HOME": "~/.cache",
    "XDG_CONFIG_HOME": "~/.config",
}
_NO_THREAD = ("can't start new thread", "can't allocate lock")  # Python's own RuntimeErrors
_NO_CACHE = "cannot cache function"  # numba's RuntimeError if neither its package nor the user's cache is writable
_NO_TEMPORARY = "No usable temporary directory"  # in Python's own error, which has ENOENT and no path


def refusal(error: BaseException) -> str | None:
    """The sentence for an error caused by the system, even underneath a library's error; None for any other."""
    for cause in _causes(error):
        if str(cause) in _NO_THREAD:
            return f"A thread cannot be started. {_THREADS}."
        if _NO_CACHE in str(cause):
            return (
                "UMAP cannot keep its compiled code. Let the variable NUMBA_CACHE_DIR name a folder that takes files."
            )
        if (one := system_error(cause)) is None:
            continue
        reason = str(one.strerror or one)
        if _NO_TEMPORARY in reason:
            places = reason.partition("[")[2].rstrip("]").replace("'", "")
            return f"No folder takes temporary files ({places}). Let the variable TMPDIR name one that does."
        place = os.fsdecode(one.filename) if isinstance(one.filename, str | bytes) else ""
        variable = _variable(place, missing=one.errno in _OF_PLACES)
        if one.errno in _REFUSALS or (variable and one.errno in _OF_PLACES):
            remedy = _REFUSALS.get(one.errno or 0, _ANOTHER)
            remedy = remedy if place else remedy.replace(" there", "")
            decided = f" (the variable {variable} decides where that is)" if variable else ""
            return f"{f'{place:.200}: ' if place else ''}{reason}. {remedy}{decided}."
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the error that it was raised from, and so on."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _is_of_user(place: Path) -> bool:
    """Whether a path is one that an argument of the command names, or lies below one."""
    words = (word.rpartition("=")[2] for word in sys.argv[1:])
    return any(place.is_relative_to(expanded(word).absolute()) for word in words if word)


def _variable(place: str, *, missing: bool) -> str:
    """The variable whose folder contains a path; empty if there is none.

    With ``missing``, the folder must not exist, and the path may also lie above it.
    """
    if not Path(place).is_absolute() or _is_of_user(Path(place)):
        return ""
    inner, folders = Path(place), dict[Path, str]()
    for name, usual in _VARIABLES.items():
        if folder := os.environ.get(name) or usual:
            outer = expanded(folder).absolute()
            above = missing and not outer.is_dir() and outer.is_relative_to(inner)
            if above or (inner.is_relative_to(outer) and not (missing and outer.is_dir())):
                folders.setdefault(outer, name)
    return folders[max(folders, key=lambda one: len(one.parts))] if folders else ""
