"""The warning about threads on a machine whose cores other programs keep busy."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from matrix_ssl.config import system
from matrix_ssl.runs import devices

CPU = torch.device("cpu")


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Programs that use all of so many cores."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
        )
        for _ in range(count)
    ]  # fmt: skip
    try:
        for program in programs:
            assert program.stdout and program.stdout.readline()
        yield
    finally:
        for program in programs:
            program.kill()
            program.communicate()


def test_several_threads_beside_busy_programs_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    with busy_cores(system.cores()):
        remark = devices.busy_remark(CPU)
        assert "% of the CPU. Computing on 8 threads can then be many times slower" in remark
        assert devices.busy_remark(torch.device("meta")) == ""
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert devices.busy_remark(CPU) == ""


def test_on_an_idle_machine_there_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(system.psutil, "cpu_percent", lambda interval: 89.9)
    assert devices.busy_remark(CPU) == ""
    monkeypatch.setattr(system.psutil, "cpu_percent", lambda interval: 95.2)
    assert devices.busy_remark(CPU).startswith("Other programs use 95% of the CPU.")
