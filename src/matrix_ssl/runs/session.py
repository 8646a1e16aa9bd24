"""The start and the end of a command that may run in several processes."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from matrix_ssl import distributed
from matrix_ssl.config import RunConfig, flatten, to_dict
from matrix_ssl.runs import devices
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.environment import command, versions
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import ENVIRONMENT, claim, held, identity

_OWN = ("data.source", "data.workers", "start.reference", "start.origin")  # settings in which processes may differ


@dataclass(frozen=True)
class Session:
    """What a command has between start and end of its process group; only the main process has a loud ``display``."""

    device: torch.device
    display: Display
    main: bool
    stack: ExitStack

    def claim(
        self,
        folder: Path,
        describe: Callable[[], RunConfig | Mapping[str, Any]],
        *,
        is_complete: Callable[[], bool],
        fresh: bool,
        may_change: Collection[str] = (),
        packages: Collection[str] = (),
    ) -> bool:
        """Locks a folder until the session ends, makes sure that it is for this run and writes ``environment.json``.

        Args:
            describe: gives what ``folder.claim`` takes, and the same on every process.
            is_complete: called on the main process alone.
            may_change: dotted keys of the description that may differ from an earlier call.
            packages: further packages whose versions are recorded.

        Returns:
            Whether the run is complete, on every process.
        """
        complete = False
        with distributed.together():
            description = describe()
        distributed.check_equal(_common(description), "settings or data")
        with distributed.together():
            if self.main:
                self.stack.enter_context(held(folder, fresh=fresh, say=self.display.say))
                claim(folder, description, may_change=may_change)
                complete = is_complete()
                if not complete:
                    environment = devices.environment(self.device) | versions(packages)
                    write_json(folder / ENVIRONMENT, {**environment, "command": command(), "run": identity(folder)})
        complete = bool(distributed.broadcast_object(complete))
        if complete:
            self.display.say(f"{folder} is complete. Use --fresh to start over.")
        return complete


def _common(description: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """What all processes of a run must have in common: everything but places and the number of workers."""
    values = to_dict(description) if isinstance(description, RunConfig) else description
    return {key: value for key, value in flatten(values) if key not in _OWN and not key.startswith("places.")}


@contextmanager
def session(device: str, *, quiet: bool = False) -> Iterator[Session]:
    """Joins the processes of a launcher, if there are any, and leaves them when the block ends.

    A process group that exists already stays. ``quiet`` shows nothing on the main process either.
    """
    joined = distributed.start(devices.choose_device(device).type)
    chosen, main = devices.choose_device(device), distributed.is_main()  # the number of this process is known by now
    with ExitStack() as stack:
        if joined:
            stack.callback(distributed.stop)
        stack.enter_context(distributed.connected())
        distributed.check_equal(versions(("matrix-ssl", "torch", "numpy")) | {"python": sys.version}, "versions")
        yield Session(chosen, Display(quiet=quiet or not main), main, stack)
