"""The limit of open files of a process: checked before it is reached, and reported in one sentence.

A process that reaches it cannot send a tensor to another one, and PyTorch's queues drop what they cannot send: the
receiver waits for ever. So whoever is about to need descriptors checks that there are enough of them.
"""

import errno
import os
import resource

from matrix_ssl.errors import OpenFilesError


def check_open_files(more: int) -> None:
    """Checks that this process may open ``more`` files at once.

    Raises:
        OpenFilesError: it may not.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/dev/fd"))  # noqa: PTH208, a Path for every descriptor is slow
    except OSError as error:
        if not reaches_limit(error):
            raise
        used = limit
    if limit != resource.RLIM_INFINITY and used + more > limit:
        raise open_files_error()


def reaches_limit(error: OSError) -> bool:
    """Whether the limit of open files of this process is what the error is about."""
    return error.errno == errno.EMFILE


def open_files_error(setting: str = "data.workers") -> OpenFilesError:
    """The error to raise where the limit is reached.

    Args:
        setting: the number of workers, 0 of which open the fewest files.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OpenFilesError(
        f"The limit of {limit} open files is too low: raise it with 'ulimit -n {max(1024, 2 * limit)}' "
        f"or read the images without workers (--set {setting}=0)."
    )
