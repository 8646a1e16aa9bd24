"""Jobs of a comparison and stages of a chain without seconds of start-up each: forked from what starts them, which has
imported PyTorch.

Importing this replaces how ``matrix_ssl.runs.processes`` starts a process. What it starts runs the same function in a
process of its own, with the signals, the output and the session of a program that was executed.
"""

import os
import signal
import sys
import traceback
import types
from typing import IO, Any

from matrix_ssl.cli import main as command_line
from matrix_ssl.compare import job
from matrix_ssl.runs import processes

MAIN = {"matrix_ssl.compare.job": job.main, "matrix_ssl": command_line.main}  # what python -m runs, by module


class ForkedJob:
    """What the schedule needs of ``subprocess.Popen``."""

    def __init__(self, command: list[str], *, stdout: IO[bytes] | None, env: dict[str, str], **_: Any):
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = run(command, stdout, env)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, the negative number of the signal, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to a process that still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def run(command: list[str], stdout: IO[bytes] | None, env: dict[str, str]) -> int:
    """What the forked process does. Returns its exit code."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    if stdout is not None:
        for number in (1, 2):
            os.dup2(stdout.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    python, option, module, *sys.argv[1:] = command
    assert (python, option) == (sys.executable, "-m")
    try:
        MAIN[module]()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


processes.subprocess = types.SimpleNamespace(Popen=ForkedJob, DEVNULL=None)  # type: ignore[assignment]
