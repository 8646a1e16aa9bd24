"""The rank of this process, the start and the end of its group, and errors that all processes share."""

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from matrix_ssl.errors import ConfigError, MatrixSSLError, ProcessError, TrainingError

MEETING = "MATRIX_SSL_MEETING_SECONDS"  # environment variable: how long processes wait for each other at the start
SILENCE = "MATRIX_SSL_SILENCE_SECONDS"  # likewise: how long they wait for each other afterwards; 1800 by default
# how the errors of gloo, which have no class of their own, report a lost connection
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "Connection refused",
         "Timed out waiting", "No route to host", "Connection timed out")  # fmt: skip


def start(device_type: str) -> bool:
    """Joins the process group that ``torchrun`` describes and returns whether it did; does nothing without it.

    Raises:
        ConfigError: the machine has fewer GPUs than processes started on it, or a variable set by ``torchrun`` is
            missing or not a number in its range.
        TrainingError: the processes do not meet in time.
    """
    if not _is_launched() or dist.is_initialized():
        return False
    if device_type == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise ConfigError(
                f"Process {local_rank()} has no GPU: this machine has {torch.cuda.device_count()}; "
                f"start torchrun with --nproc-per-node {torch.cuda.device_count()}."
            )
        torch.cuda.set_device(local_rank())
    store = _meet()
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend, silence = "nccl" if device_type == "cuda" else "gloo", datetime.timedelta(seconds=_seconds(SILENCE, 1800))
    store.set_timeout(silence)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=silence)
    return True


def _is_launched() -> bool:
    """Whether a launcher has started this process; ConfigError if only one of its variables says so."""
    variables = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if all(variables.values()):
        return True
    for (name, value), other, harmless in zip(variables.items(), ("WORLD_SIZE", "RANK"), ("0", "1"), strict=True):
        if value not in ("", harmless):
            raise ConfigError(f"{name}={value} without {other}: start all processes by torchrun, or unset {name}.")
    return False


def _seconds(variable: str, usual: float) -> float:
    """A number of seconds above zero from the environment; raises ConfigError if it is not one."""
    text = os.environ.get(variable, "")
    try:
        seconds = float(text or usual)
        datetime.timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"{variable}={text}: expected a number of seconds above 0.")
    return seconds


def _meet() -> dist.Store:
    """The store at which all processes of a launcher have reported.

    Raises:
        ConfigError: the launcher's variables are not numbers.
        TrainingError: the processes do not meet in time.
    """
    try:
        seconds = _seconds(MEETING, 300)
        number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        patience = datetime.timedelta(seconds=seconds)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"RANK and WORLD_SIZE of the launcher must be numbers: {error}.") from None
    if not 0 <= number < count:
        raise ConfigError(f"RANK={number} and WORLD_SIZE={count}: ranks count from 0 to {count - 1}.")
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=patience))
        meeting = dist.PrefixStore(f"meeting-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        meeting.set(f"rank-{number}", "here")
        meeting.wait([f"rank-{each}" for each in range(count)], patience)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise TrainingError(
            f"The {count} processes have not met at {place} within {seconds:g} seconds ({reason}): start all of them, "
            f"and see that the address is reachable. {MEETING} sets the number of seconds."
        ) from error
    return store


def launcher(processes: int) -> list[str]:
    """The arguments after ``python -m`` that start a module in several processes of this machine with ``torchrun``."""
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    text = os.environ.get("LOCAL_RANK", "0")
    if not text.isdecimal():
        raise ConfigError(f"LOCAL_RANK={text}: expected the number of a process on its machine; start it by torchrun.")
    return int(text)


def is_main() -> bool:
    """Whether this is the process that writes files and messages."""
    return rank() == 0


def barrier() -> None:
    """Waits for every process."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """The main process's ``value`` (small, picklable), on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def together() -> Iterator[None]:
    """Runs a block on every process; an error in one is raised in all, so that none waits for it forever."""
    mine: MatrixSSLError | None = None
    try:
        yield
    except MatrixSSLError as error:
        mine = error
    errors: list[Any] = [None] * world_size()
    if world_size() > 1:
        dist.all_gather_object(errors, None if mine is None else (str(mine), mine.exit_code))
    if mine is not None:
        raise mine
    for text, exit_code in filter(None, errors):
        theirs = MatrixSSLError(text)
        theirs.exit_code = exit_code
        raise theirs


def check_equal(values: Mapping[str, Any], what: str) -> None:
    """Raises ConfigError on every process unless all of them have the same values.

    Args:
        values: small, picklable values by name.
        what: what they are, such as "settings", for the message.
    """
    if world_size() == 1:
        return
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, dict(values))
    for number, theirs in enumerate(everyone):
        first = everyone[0]
        for name in sorted({*first, *theirs}):
            if first.get(name) != theirs.get(name):
                raise ConfigError(
                    f"Processes 0 and {number} disagree on their {what}, {name}: {first.get(name)!r} and "
                    f"{theirs.get(name)!r}. Start all of them by the same command, with the same data and versions."
                )


@contextmanager
def alone() -> Iterator[None]:
    """Marks a block whose errors the other processes do not share; the messages name the process."""
    try:
        yield
    except MatrixSSLError as error:
        if is_main():
            raise
        raise ProcessError(f"Process {rank()}: {error}") from error


@contextmanager
def connected() -> Iterator[None]:
    """Reports the end of another process by a readable message.

    Raises:
        TrainingError: a collective operation failed because another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not any(sign in str(error) for sign in _LOST):
            raise
        raise TrainingError(
            "Another process of this run has ended; see its message, if there is one. Run the same command to resume."
        ) from error


def wrap(module: nn.Module) -> nn.Module:
    """The module under DistributedDataParallel, or itself in a single process.

    Raises:
        ProcessError: fully_shard (FSDP2) has sharded its parameters across the processes.
    """
    if world_size() == 1:
        return module
    if any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):
        raise ProcessError(
            "The parameters are spread over processes by fully_shard, which averages gradients itself, and a run "
            "copies, checks and saves whole tensors. Use the module as it is, in a loop of your own: docs/own-loop.md."
        )
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
    # buffers are equal already: BatchNorm is synchronised and the teacher follows the same average everywhere; set
    # here because the constructor's argument has different names in different releases
    wrapped.broadcast_buffers = False
    return wrapped
