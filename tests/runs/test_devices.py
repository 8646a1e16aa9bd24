"""The warning about threads on a machine whose cores other programs keep busy."""

import os
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


@pytest.mark.parametrize(
    ("cores", "threads", "busy", "warns"),
    [(8, 8, 24.9, False), (8, 8, 25.2, True), (2, 2, 50.0, True), (2, 2, 10.0, False), (64, 8, 89.9, False),
     (64, 8, 95.2, True)],
)  # fmt: skip
def test_where_enough_cores_are_idle_there_is_no_warning(
    cores: int, threads: int, busy: float, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(system.psutil, "cpu_percent", lambda interval: busy)
    assert devices.busy_remark(CPU).startswith(f"Other programs use {busy:.0f}% of the CPU.") == warns
