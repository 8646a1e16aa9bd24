"""Signals that are collected, so that a program can write a checkpoint before it stops."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from matrix_ssl.config.system import STOPPING
from matrix_ssl.errors import MatrixSSLError

received_by_blocks: list[int] = []  # the numbers of all signals that blocks of ``collected`` have taken for themselves


class Interrupted(MatrixSSLError):
    """A signal stopped the program after a checkpoint; the exit code is 128 plus the number of the signal."""

    def __init__(self, number: int, *, after: str = ""):
        super().__init__(f"Stopped by {signal.Signals(number).name}{after}. Run the same command to resume.")
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collects the numbers of received signals in a list, for the program to read between two steps.

    After a first signal, SIGINT (Ctrl-C) raises KeyboardInterrupt: the program stops at once, its last checkpoint
    remains. Outside the main thread, which alone may handle signals, the list stays empty.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield received
    finally:
        received_by_blocks.extend(received)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: of a program in C
