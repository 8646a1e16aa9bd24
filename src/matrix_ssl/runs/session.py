"""The start and end of a command that may run in several processes."""

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

_OWN = ("data.source", "data.workers", "start.reference", "start.origin")  # settings that may differ between processes


@dataclass(frozen=True)
class Session:
    """The state of a command while its process group exists; ``display`` shows something only on the main process."""

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
        """Locks a folder until the session ends, checks that it is for this run and writes ``environment.json``.

        Args:
            describe: returns the description for ``folder.claim``, the same on every process.
            is_complete: called only on the main process.
            may_change: dotted keys of the description that may differ from an earlier call.
            packages: further packages whose versions are recorded.

        Returns:
            Whether the run is complete, the same on every process.
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
        elif self.main and (busy := devices.busy_remark(self.device)):
            self.display.say(busy)
        return complete


def _common(description: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """What all processes of a run must have in common: everything except places and the number of workers."""
    values = to_dict(description) if isinstance(description, RunConfig) else description
    return {key: value for key, value in flatten(values) if key not in _OWN and not key.startswith("places.")}


@contextmanager
def session(device: str, *, quiet: bool = False) -> Iterator[Session]:
    """Joins the processes of a launcher, if there are any, and leaves them when the block ends.

    A process group that already exists is kept. With ``quiet``, the main process shows nothing either.
    """
    joined = distributed.start(devices.choose_device(device).type)
    chosen, main = devices.choose_device(device), distributed.is_main()  # the rank of this process is known by now
    with ExitStack() as stack:
        if joined:
            stack.callback(distributed.stop)
        stack.enter_context(distributed.connected())
        distributed.check_equal(versions(("matrix-ssl", "torch", "numpy")) | {"python": sys.version}, "versions")
        yield Session(chosen, Display(quiet=quiet or not main), main, stack)
