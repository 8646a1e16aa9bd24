"""The limit of open files of a process, checked before it is reached; and why a file cannot be read.

A process at the limit cannot send a tensor to another process, and PyTorch's queues drop what they cannot send: the
receiver waits for ever. So code that is about to need descriptors checks that there are enough of them.
"""

import errno
import os

from matrix_ssl.config import system
from matrix_ssl.errors import OFFERED, OpenFilesError


def check_open_files(more: int) -> None:
    """Raises OpenFilesError unless this process may open ``more`` files at once."""
    limit = system.open_file_limit()
    if limit is None:
        return
    try:
        used = len(os.listdir("/dev/fd"))  # noqa: PTH208, a Path for every descriptor is slow
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        used = limit
    if used + more > limit:
        raise open_files_error()


def why_unreadable(error: OSError, *, setting: str = "data.workers") -> str:
    """The reason why a file cannot be read; OpenFilesError at the limit, which holds for every other file as well."""
    if error.errno == errno.EMFILE:
        raise open_files_error(setting) from error
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, PermissionError):
        return "no permission to read the file"
    return f"cannot be read ({error.strerror})"


def open_files_error(setting: str = "data.workers") -> OpenFilesError:
    """The error to raise at the limit; ``setting`` is that of the number of workers, 0 open the fewest files."""
    limit = system.open_file_limit() or 0
    option = OFFERED.first(f"--set {setting}=0", "--set workers=0", "--workers 0")
    return OpenFilesError(
        f"The limit of {limit} open files is too low: raise it with 'ulimit -n {max(1024, 2 * limit)}'"
        + (f" or read the images without workers ({option})." if option else ".")
    )
