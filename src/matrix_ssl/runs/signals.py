"""Signals that are collected, so that a program can write a checkpoint before it stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from matrix_ssl.config.system import STOPPING
from matrix_ssl.errors import MatrixSSLError


class Interrupted(MatrixSSLError):
    """A signal stopped the program after a checkpoint; the exit code is 128 plus the number of the signal."""

    def __init__(self, number: int, *, after: str = ""):
        super().__init__(f"Stopped by {signal.Signals(number).name}{after}. Run the same command to resume.")
        self.exit_code = 128 + number


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collects the numbers of received signals in a list, for the program to read between two steps.

    After a first signal, SIGINT (Ctrl-C) raises KeyboardInterrupt: the program stops at once, its last checkpoint
    remains.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
