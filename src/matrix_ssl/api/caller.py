"""What a function owes its caller: signals reach the program, and PyTorch's generators and flags are restored."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from matrix_ssl.runs.signals import Interrupted, received_by_blocks


@contextmanager
def undisturbed() -> Iterator[None]:
    """A block that may train, in a program that continues afterwards.

    A signal during training first triggers a checkpoint and is then passed to the program's own handler. So Ctrl-C
    raises KeyboardInterrupt, and SIGTERM ends the program, whatever errors a loop around the training catches. After
    the block, PyTorch's random generators, determinism flags and benchmark flag are as they were before it.
    """
    received_by_blocks.clear()
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    text = ""
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    except Interrupted as error:
        text = str(error)
        raise
    finally:
        torch.use_deterministic_algorithms(flags[0])
        torch.backends.cudnn.benchmark = flags[1]
        for number in dict.fromkeys(received_by_blocks):
            _deliver(number, text)


def _deliver(number: int, text: str) -> None:
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(text) from None
