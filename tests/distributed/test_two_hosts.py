"""Two hosts, as two name spaces of the network with a cable between them: training, and a cable that is cut."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.test_distributed import assert_close, wait_for_step
from tests.support.runs import BARE, Command, check_failure, slow_steps, start, succeed, tiny

SETTINGS = ("precision=float64", "log_every=1", "batch_size=60", "checkpoint_every=2", "data.subset=480")  # 8 steps
NAMES = [f"ssl{os.getpid()}{letter}" for letter in "ab"]
ENTER = """
import ctypes, os
with open({place!r}) as space:
    if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")
"""


def ip(*words: str, check: bool = True) -> int:
    return subprocess.run(["ip", *words], check=check, capture_output=True).returncode


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """The names of the two name spaces, whose addresses are 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None or os.geteuid() != 0 or ip("netns", "add", NAMES[0], check=False):
        pytest.skip("name spaces of the network need the program ip and root")
    try:
        ip("netns", "add", NAMES[1])
        ip("link", "add", NAMES[0], "netns", NAMES[0], "type", "veth", "peer", "name", NAMES[1], "netns", NAMES[1])
        for number, name in enumerate(NAMES, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield NAMES
    finally:
        for name in NAMES:
            ip("netns", "del", name, check=False)


def launch(folder: Path, hosts: list[str], *, silence: float, before: str = "") -> list[Command]:
    """A process on each host."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "10.77.0.1",
              "MASTER_PORT": "29777", "MATRIX_SSL_SILENCE_SECONDS": f"{silence}"}  # fmt: skip
    return [
        start(
            folder, tiny(*SETTINGS), before=f"{ENTER.format(place=f'/var/run/netns/{name}')}{BARE}\n{before}",
            environment={**common, "RANK": f"{rank}", "GLOO_SOCKET_IFNAME": name},
        )
        for rank, name in enumerate(hosts)
    ]  # fmt: skip


@pytest.mark.slow
def test_two_hosts_train_as_one_process_and_go_on_after_a_cut(tmp_path: Path, hosts: list[str]) -> None:
    (alone := tmp_path / "alone").mkdir()
    succeed(alone, tiny(*SETTINGS), before=BARE)
    first, second = launch(tmp_path, hosts, silence=5, before=slow_steps(0.5))
    wait_for_step(tmp_path / "r", 3, first)
    ip("-n", hosts[1], "link", "set", hosts[1], "down")
    ended = first.wait(60)
    assert check_failure(ended, code=1).startswith("Another process of this run has ended")
    other = second.wait(60)
    assert other.code > 0 and "Traceback" not in other.err
    ip("-n", hosts[1], "link", "set", hosts[1], "up")
    ends = [command.wait() for command in launch(tmp_path, hosts, silence=100)]
    assert [one.code for one in ends] == [0, 0], ends
    assert "Resuming after step" in ends[0].err
    assert_close(tmp_path / "r", alone / "r", 1e-8)
