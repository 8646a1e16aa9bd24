"""Shared memory that is too small for a batch, as in a container with the usual 64 MiB, is one sentence."""

import ctypes
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from matrix_ssl.data.workers import Reader, read_batches
from matrix_ssl.errors import TrainingError

NEW_MOUNTS, PRIVATE = 0x00020000, 0x44000  # CLONE_NEWNS; MS_REC and MS_PRIVATE


class Large(Reader[torch.Tensor]):
    """Batches of 4 MB."""

    def batch(self, key: Any) -> torch.Tensor:
        return self._empty([(1000, 1000)])


def read_with_little() -> str:
    """What reading says where /dev/shm has 64 KiB; empty where the system lets a test make no such place."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS) or libc.mount(b"none", b"/", None, PRIVATE, None):
        return ""
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k"):
        return ""
    try:
        list(read_batches(Large(SimpleNamespace(dtype=torch.float32)), range(3), workers=1))  # type: ignore[arg-type]
    except TrainingError as error:
        return str(error)
    return "no error"


def test_too_little_shared_memory_is_one_sentence() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, read_with_little().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode()
    os.waitpid(child, 0)
    if not message:
        pytest.skip("no mounts of one's own")
    assert message.startswith("The shared memory (/dev/shm), through which workers send batches, is full.")
    assert "--set data.workers=0" in message and message.endswith("the same command resumes.")
