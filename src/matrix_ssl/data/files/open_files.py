"""The limit on a process's open files, checked before it is reached, and the reason why a file cannot be read.

A process at the limit cannot send a tensor to another process, and PyTorch's queues drop what they cannot send, so the
receiver waits forever. Code that is about to need descriptors therefore checks that there are enough of them.
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
    """The reason why a file cannot be read; OpenFilesError at the limit, which affects every other file as well."""
    if error.errno == errno.EMFILE:
        raise open_files_error(setting) from error
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, PermissionError):
        return "no permission to read the file"
    return f"cannot be read ({error.strerror})"


def open_files_error(setting: str = "data.workers") -> OpenFilesError:
    """The error to raise at the limit; ``setting`` is the number of workers, of which 0 open the fewest files."""
    limit = system.open_file_limit() or 0
    option = OFFERED.first(f"--set {setting}=0", "--set workers=0", "--workers 0")
    return OpenFilesError(
        f"The limit of {limit} open files is too low: raise it with 'ulimit -n {max(1024, 2 * limit)}'"
        + (f" or read the images without workers ({option})." if option else ".")
    )
