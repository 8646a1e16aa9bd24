"""Runs commands in separate processes, which receive every signal that this process receives."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, TypeVar

from matrix_ssl.config import system
from matrix_ssl.config.untrusted import open_to_append
from matrix_ssl.runs.signals import TIME_LIMIT

_POLL = 0.1  # seconds between two checks of the processes
Key = TypeVar("Key")


class Processes(Generic[Key]):
    """Processes that run concurrently.

    Args:
        received: the numbers of the signals so far, a list that ``signals.collected`` extends. ``wait`` forwards
            them, not the handler, which may run while a process is being started.
    """

    def __init__(self, received: list[int]):
        self._received, self._forwarded = received, 0
        self._active: list[tuple[Key, subprocess.Popen[bytes]]] = []

    @property
    def active(self) -> list[Key]:
        """The keys of the processes that have not ended, in the order in which they were started."""
        return [key for key, _ in self._active]

    def start(
        self, key: Key, command: Sequence[str], *, log: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts a command; its output is appended to ``log``, and ``environment`` is added to this process's."""
        with ExitStack() as stack:
            output = None if log is None else stack.enter_context(open_to_append(log))
            process = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **(environment or {})},
                **system.own_group(),  # Ctrl-C reaches only this process, which forwards it once
            )  # fmt: skip
        self._active.append((key, process))

    def wait(self) -> list[tuple[Key, int]]:
        """Forwards signals until a process has ended; returns the keys and exit codes (negative: signals)."""
        while True:
            for number in self._received[self._forwarded :]:
                for _, process in self._active:
                    system.forward(signal.SIGTERM if number == TIME_LIMIT else number, process)
                self._forwarded += 1
            codes = [(key, process, process.poll()) for key, process in self._active]
            self._active = [(key, process) for key, process, code in codes if code is None]
            if ended := [(key, code) for key, _, code in codes if code is not None]:
                return ended
            time.sleep(_POLL)
