"""Everything that differs between Linux, macOS and Windows: locks, signals, limits, memory.

Modules that Windows lacks are imported only here; every function says what it does without them. The tests run on
Linux, where they remove ``fcntl`` and ``resource`` to take the path of Windows.
"""

import contextlib
import ctypes
import errno
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from matrix_ssl.config.untrusted import open_lock, why
from matrix_ssl.errors import ConfigError

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

# signals that stop a program after a checkpoint; Windows has Ctrl-Break instead of SIGUSR1
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)
)
SHARED_MEMORY = Path("/dev/shm")  # through which workers send batches on Linux
MOVES_HELD_FOLDERS = fcntl is not None  # Windows cannot rename a folder while a file in it is open

_CONTAINER_LIMITS = (
    (Path("/sys/fs/cgroup"), ("memory.max", "memory.current")),
    (Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes")),
)
_CPU_QUOTAS = (  # a quota and its period
    (Path("/sys/fs/cgroup"), ("cpu.max",)),
    (Path("/sys/fs/cgroup/cpu"), ("cpu.cfs_quota_us", "cpu.cfs_period_us")),
)
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_choosing = threading.Lock()  # held while a lock is taken
_holders: dict[tuple[int, int, int], int] = {}  # the thread of this process that holds a file
_SECONDS_BETWEEN_LOOKS = 1.0  # between checks of a parent whose end the system does not report


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file until the block ends or the process dies; uses the package filelock without ``fcntl``.

    A thread that holds it already may take it again in a nested block.

    Raises:
        BlockingIOError: another process holds it, or another thread of this one; ``strerror`` says which of them.
        OSError: the file cannot be written, or its file system has no locks.
    """
    thread, taken = threading.get_ident(), contextlib.ExitStack()
    with _choosing, taken:
        # fcntl locks belong to a process: a second one succeeds, and releasing it releases the first one as well
        place = _identity(path)
        is_mine = _holders.get(place) == thread
        if place in _holders and not is_mine:
            raise _held_by("another thread of this process")
        if not is_mine:
            _take_lock(path, taken)
            place = _identity(path)
            _holders[place] = thread
        release = taken.pop_all()
    try:
        yield
    finally:
        if not is_mine:
            with _choosing, release:
                _holders.pop(place, None)


def _take_lock(path: Path, stack: contextlib.ExitStack) -> None:
    """Locks a file for this process until the stack ends."""
    if fcntl is None:
        import filelock

        try:
            stack.enter_context(filelock.FileLock(path).acquire(blocking=False))
        except filelock.Timeout:
            raise _held_by("another process") from None
    else:
        file = stack.enter_context(open_lock(path))
        try:
            # not flock: worker processes would inherit it and hold it for seconds after the main process was killed
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, PermissionError, FileNotFoundError):  # POSIX leaves open which of the first two it is
            is_there = False
        except OSError as error:  # as on Lustre, unless it is mounted with locks
            raise OSError(error.errno, f"its file system cannot lock files ({why(error)})") from error
        if not is_there:  # or another process has removed it since it was opened here
            raise _held_by("another process")


def _held_by(holder: str) -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, holder)


def _identity(path: Path) -> tuple[int, int, int]:
    """Identifies a path's file for this process, and not for a fork of it; zeros if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return os.getpid(), 0, 0
    return os.getpid(), status.st_dev, status.st_ino


def claim(descriptor: int) -> None:
    """Marks an open file as in use until this process closes it or dies; Windows protects open files by itself."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_abandoned(path: Path) -> bool:
    """Whether a file that ``claim`` has marked is no longer in use by any process; False on Windows."""
    if fcntl is None:
        return False
    try:
        with open_lock(path) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def give_usual_permissions(descriptor: int) -> None:
    """Gives a file made by ``mkstemp``, which is private, the permissions of any other new file."""
    if hasattr(os, "fchmod"):
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(descriptor, 0o666 & ~mask)


def with_slashes(path: str, *, separator: str = os.sep) -> str:
    """A path with / between its parts, as ``PurePath.as_posix`` writes it; the system's own is \\ on Windows."""
    return path.replace(separator, "/")


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder survive a crash of the machine; Windows cannot open folders and needs no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_file_limit() -> int | None:
    """How many files this process may have open; None if there is no limit."""
    if resource is None:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit


def cores() -> int:
    """Number of CPU cores that this process may use; in a container, at most its quota, rounded up."""
    return min([_visible_cores(), *_quota()])


def limit_threads() -> None:
    """Limits libraries that are imported later to as many threads as a container's quota has cores.

    They count the cores of the machine, and the system would throttle them most of the time. A number of threads that
    the user has chosen is kept.
    """
    if cores() < _visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def busy_share() -> float:
    """The share of the machine's CPU time that programs use now, from 0 to 1, measured for a quarter of a second."""
    return float(psutil.cpu_percent(interval=0.25)) / 100


def machine_cores() -> int:
    """Number of CPU cores of the machine, of which ``busy_share`` is a share."""
    return os.cpu_count() or 1


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none


def _quota() -> list[int]:
    """The cores of a container's quota, if it has one."""
    for folder, names in _CPU_QUOTAS:
        try:
            quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
        except (OSError, ValueError):  # no such limit, or "max"
            continue
        if quota > 0 and period > 0:  # -1 means no quota
            return [math.ceil(quota / period)]
    return []


def local_processes() -> int:
    """How many processes a launcher such as ``torchrun`` has started on this machine; ConfigError for a bad number."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"LOCAL_WORLD_SIZE={text}: expected a number of processes; start them by torchrun.")
    return int(text)


def processor() -> str:
    """The CPU's model name, or what the system reports about it."""
    name: str | None = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
            name = match[1].strip() if match else None
    elif sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            name = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return name or platform.processor()


def memory() -> tuple[int, int]:
    """Bytes of memory that this process may use, and how many of them are free; a container may limit both."""
    total, free = psutil.virtual_memory()[:2]
    for folder, names in _CONTAINER_LIMITS:
        try:
            most, used = (int((folder / name).read_text()) for name in names)
        except (OSError, ValueError):  # no such limit, or "max"
            continue
        if most < total:
            return most, min(free, most - used)
    return total, free


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    if sys.platform == "linux":  # its ru_maxrss includes the peak of the process that started this one
        if match := re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(match[1]) * 2**10
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def run_apart(work: Callable[[], bytes], *, memory: int, seconds: float) -> bytes | None:
    """What a function returns in a fork of this process, with so many more bytes of memory and seconds of CPU time.

    Empty if the fork failed or exceeded the time; None if the system cannot fork.
    """
    if not hasattr(os, "fork"):
        return None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            if resource is not None and sys.platform == "linux":
                size = psutil.Process().memory_info().vms + memory
                _, most = resource.getrlimit(resource.RLIMIT_AS)
                least = size if most == resource.RLIM_INFINITY else min(size, most)
                resource.setrlimit(resource.RLIMIT_AS, (least, most))
            os.write(writer, work())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    return answer


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in a block that uses more CPU time, in the main thread only; Windows has no such timer."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"it takes longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def own_group() -> dict[str, Any]:
    """Arguments of ``subprocess.Popen`` that keep Ctrl-C from a process: only its parent decides."""
    if os.name == "posix":
        return {"start_new_session": True}
    return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]


def forward(number: int, process: "subprocess.Popen[bytes]") -> None:
    """Forwards a stopping signal to a process of ``own_group``; on Windows Ctrl-Break, the only one it can receive."""
    process.send_signal(number if os.name == "posix" else signal.CTRL_BREAK_EVENT)  # type: ignore[attr-defined]


def outlive_signals(seconds: int) -> None:
    """Lets a worker ignore Ctrl-C and outlive SIGTERM by some seconds: both reach the whole group; the parent decides.

    Windows has neither SIGALRM nor a SIGTERM for groups; there a worker ends when its parent closes it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(seconds))


@contextmanager
def child_handler_kept() -> Iterator[None]:
    """Restores the handler of SIGCHLD that the block replaces; Windows has no such signal."""
    usable = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if usable else None
    yield
    if usable:
        signal.signal(signal.SIGCHLD, handler)


def end_with_parent(parent: int) -> None:
    """Sends SIGTERM to this process when ``parent``, the process that started it, has ended.

    The Linux kernel sends it at once; elsewhere a thread checks every second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the line above
            raise SystemExit(128 + signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(psutil.Process(parent),), daemon=True).start()


def _watch(parent: psutil.Process) -> None:
    while parent.is_running():
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    signal.raise_signal(signal.SIGTERM)
