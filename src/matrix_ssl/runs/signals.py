"""Collects signals and the time limit, so that a program can write a checkpoint before it stops."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from matrix_ssl.config.system import STOPPING
from matrix_ssl.errors import ConfigError, MatrixSSLError

TIME_LIMIT = 75  # used like a signal number, none of which is that large; the exit code EX_TEMPFAIL: try again
received_by_blocks: list[int] = []  # the numbers of all signals that blocks of ``collected`` have consumed
_open_blocks: list[list[int]] = []  # what the blocks that are still open have received
_timers: list[threading.Timer] = []  # for the time limit, at most one
_time_is_up = threading.Event()


class Interrupted(MatrixSSLError):
    """A signal or the time limit stopped the program after a checkpoint.

    The exit code is 128 plus the number of the signal, or ``TIME_LIMIT``.
    """

    def __init__(self, number: int, *, after: str = ""):
        how = "at the limit of --max-hours" if number == TIME_LIMIT else f"by {signal.Signals(number).name}"
        super().__init__(f"Stopped {how}{after}. Run the same command to resume.")
        self.number = number
        self.exit_code = TIME_LIMIT if number == TIME_LIMIT else 128 + number


def limit_time(hours: float | None) -> None:
    """Makes every block of ``collected`` receive ``TIME_LIMIT`` after so many hours; None: no limit."""
    for timer in _timers:
        timer.cancel()
    _timers.clear()
    _time_is_up.clear()
    if hours is not None:
        timer = threading.Timer(min(3600 * hours, threading.TIMEOUT_MAX), _end_of_time)
        timer.daemon = True
        timer.start()
        _timers.append(timer)


@contextmanager
def limited_time(hours: float | None) -> Iterator[None]:
    """Applies ``limit_time`` until the block ends; None keeps an existing limit.

    Raises:
        ConfigError: the limit is not above 0.
    """
    if hours is None:
        yield
        return
    if not hours > 0:
        raise ConfigError(f"max_hours={hours}: expected a number above 0.")
    limit_time(hours)
    try:
        yield
    finally:
        limit_time(None)


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collects the numbers of received signals in a list, for the program to read between two steps.

    After a first signal, SIGINT (Ctrl-C) raises KeyboardInterrupt: the program stops at once, and its last checkpoint
    remains. Outside the main thread, the only one that may handle signals, the list can contain only ``TIME_LIMIT``.
    """
    received: list[int] = []
    _open_blocks.append(received)
    if _time_is_up.is_set():
        received.append(TIME_LIMIT)

    def note(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield received
    finally:
        _open_blocks[:] = [block for block in _open_blocks if block is not received]
        received_by_blocks.extend(number for number in received if number != TIME_LIMIT)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: a handler installed in C


def _end_of_time() -> None:
    _time_is_up.set()
    for received in list(_open_blocks):
        received.append(TIME_LIMIT)
