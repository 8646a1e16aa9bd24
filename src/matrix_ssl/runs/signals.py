"""Signals that let a program finish what it is doing before it stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from matrix_ssl.errors import MatrixSSLError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(MatrixSSLError):
    """A signal ended the work after a checkpoint; the exit code is 128 plus the signal's number."""

    def __init__(self, number: int, *, after: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{after}; the same command resumes.")
        self.exit_code = 128 + number


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collects signals in a list, which the program looks at when it suits, instead of dying from them.

    A second SIGINT raises KeyboardInterrupt: an impatient Ctrl-C stops at once, and the last checkpoint stands.
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
