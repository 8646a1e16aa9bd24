"""Rows of ``counts`` that end a process: by kills, signals and writes that the system refuses."""

import errno
import random
import shutil
import signal
from pathlib import Path

import pytest

from matrix_ssl.runs import checkpoint
from tests.distributed.test_distributed import assert_close, wait_for_step
from tests.faults.counts import count
from tests.support import runs
from tests.support.runs import BARE, Command, check_failure, slow_steps, start, start_processes, succeed, timeless, tiny
from tests.training.test_resume import DIE_AT_CALL, SETTINGS, assert_same, interrupt_after, run_and_kill

WORDS = tiny(*SETTINGS, epochs=2)
FEW = 8  # faults of one run before it is finished and compared


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(folder, WORDS, before=BARE)
    return folder / "r"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped after step 6."""
    folder = tmp_path_factory.mktemp("begun")
    assert runs.run(folder, WORDS, before=f"{BARE}; {interrupt_after(6, signal.SIGTERM)}").code == 143
    return folder


def finish(folder: Path, whole: Path) -> None:
    """Ends a run and demands the bits of one that was left alone, and no unfinished file."""
    succeed(folder, WORDS, before=BARE)
    assert_same(folder / "r", whole)
    assert not list((folder / "r").rglob("*.tmp"))
    shutil.rmtree(folder)


@pytest.mark.slow  # test_resume and test_distributed have a few of these
def test_kills_at_random_moments(tmp_path: Path, whole: Path) -> None:
    draw = random.Random(1)
    for first in range(0, count(1), FEW):
        (folder := tmp_path / f"{first}").mkdir()
        for _ in range(min(FEW, count(1) - first)):
            assert run_and_kill(folder, draw).code == -signal.SIGKILL
        finish(folder, whole)


@pytest.mark.slow  # test_resume and test_distributed have a few of these
def test_kills_before_each_system_call_of_saves(tmp_path: Path, whole: Path, begun: Path) -> None:
    calls = range(1, count(2) + 1) if count(2) > 3 else (11, 14, 16)
    for call in calls:
        shutil.copytree(begun, folder := tmp_path / f"{call}")
        assert runs.run(folder, WORDS, before=BARE + DIE_AT_CALL.format(call=call)).code == -signal.SIGKILL
        newest, problems = checkpoint.load_newest(folder / "r")
        assert newest is not None and not problems and newest.step >= 6
        if call % 10 == 4:
            finish(folder, whole)
        else:
            shutil.rmtree(folder)


PAIR = ("precision=float64", "log_every=1", "batch_size=60", "checkpoint_every=2", "data.subset=480")  # 8 steps


def end(commands: list[Command]) -> list[int]:
    return [command.wait().code for command in commands]


@pytest.mark.slow  # test_resume and test_distributed have a few of these
def test_kills_of_one_of_two_processes(tmp_path: Path) -> None:
    (tmp_path / "pair").mkdir()
    assert end(start_processes(tmp_path / "pair", tiny(*PAIR), count=2)) == [0, 0]
    draw = random.Random(3)
    for number in range(count(3)):
        victim = draw.randrange(2) if count(3) > 1 else 1
        (folder := tmp_path / f"{number}").mkdir()
        commands = start_processes(folder, tiny(*PAIR), count=2)
        wait_for_step(folder / "r", draw.randrange(1, 6), commands[0])
        commands[victim].send(signal.SIGKILL)
        survivor = commands[1 - victim].wait(30)
        assert commands[victim].wait().code == -signal.SIGKILL
        assert survivor.code > 0 and "Traceback" not in survivor.err
        assert end(start_processes(folder, tiny(*PAIR), count=2)) == [0, 0]
        assert timeless(folder / "r") == timeless(tmp_path / "pair" / "r")
        assert runs.tensors(folder / "r") == runs.tensors(tmp_path / "pair" / "r")
        shutil.rmtree(folder)


def moment(draw: random.Random, number: int) -> str:
    """Code that sends a signal in a step, at the first one, or in the middle of a save."""
    kind = draw.choice(["step", "first step", "save"])
    if kind == "save":
        return (
            "import os, matrix_ssl.runs.checkpoint as c; real, saves = c.save_checkpoint, []\n"
            "def save(*rest, **named):\n"
            "    saves.append(0)\n"  # the save that answers gets none: a second Ctrl-C stops at once
            f"    if len(saves) == 1: os.kill(os.getpid(), {int(number)})\n"
            "    return real(*rest, **named)\n"
            "c.save_checkpoint = save\n"
        )
    step = 1 if kind == "first step" else draw.randrange(2, 5)
    return (
        "import os, matrix_ssl.training.engine as e; real, steps = e.Engine.update, []\n"
        "def update(self, *rest):\n"
        "    steps.append(0)\n"
        f"    if len(steps) == {step}: os.kill(os.getpid(), {int(number)})\n"
        "    return real(self, *rest)\n"
        "e.Engine.update = update\n"
    )


@pytest.mark.slow  # test_resume and test_distributed have a few of these
def test_signals_at_any_moment(tmp_path: Path, whole: Path) -> None:
    draw = random.Random(5)
    for number in range(count(5)):
        (folder := tmp_path / "begun").mkdir(exist_ok=True)
        kind = draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
        ended = runs.run(folder, WORDS, before=f"{BARE}; {moment(draw, kind)}")
        assert ended.code == 128 + kind, ended.err
        assert f"Stopped by {kind.name} after step" in check_failure(ended)
        newest, problems = checkpoint.load_newest(folder / "r")
        assert newest is not None and not problems
        if newest.step > 12 or number == count(5) - 1:  # the next signal would come after the last step
            finish(folder, whole)


REFUSE = """
import os, tempfile
left = [{call}]
def refusing(name, real):
    def call(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0:
            raise OSError({error}, os.strerror({error}))
        return real(*arguments, **keywords)
    return call
os.fsync, os.replace, tempfile.mkstemp = (
    refusing("fsync", os.fsync), refusing("replace", os.replace), refusing("mkstemp", tempfile.mkstemp))
"""
REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EMFILE)


@pytest.mark.slow  # test_faults has a full disk and a limit of the size of files
def test_refused_writes(tmp_path: Path, whole: Path, begun: Path) -> None:
    draw = random.Random(6)
    for number in range(count(6)):
        shutil.copytree(begun, folder := tmp_path / f"{number}")
        code = REFUSE.format(call=draw.randrange(1, 25), error=REASONS[number % len(REASONS)])
        message = check_failure(runs.run(folder, WORDS, before=BARE + code))
        assert message.startswith("Cannot write r/"), message
        newest, problems = checkpoint.load_newest(folder / "r")
        assert newest is not None and not problems and not list((folder / "r").rglob("*.tmp"))
        finish(folder, whole) if number % 5 == 0 else shutil.rmtree(folder)


@pytest.mark.slow  # test_distributed has three processes and one
def test_changing_numbers_of_processes(tmp_path: Path) -> None:
    (alone := tmp_path / "alone").mkdir()
    succeed(alone, tiny(*PAIR), before=BARE)
    for number in range(count(7)):
        draw = random.Random(number)
        numbers = (1, 2, 1) if number % 2 == 0 else (4, 2, 3)
        (folder := tmp_path / f"{number}").mkdir()
        stops = sorted(draw.sample(range(1, 8), 2))
        for processes, step in zip(numbers[:2], stops, strict=True):
            code = f"{BARE}\n{interrupt_after(step, signal.SIGUSR1)}"
            ends = end(_start(folder, processes, code))
            assert ends == [138] * processes
        assert end(_start(folder, numbers[2], BARE)) == [0] * numbers[2]
        assert_close(folder / "r", alone / "r", 1e-8)
        shutil.rmtree(folder)


def _start(folder: Path, processes: int, code: str) -> list[Command]:
    if processes == 1:
        return [start(folder, tiny(*PAIR), before=code)]
    return start_processes(folder, tiny(*PAIR), count=processes, before=code)


JUMP = "import time; real = time.time; time.time = lambda: real() + {seconds}"


@pytest.mark.slow  # test_resume and test_distributed have a few of these
def test_writers_moves_and_clocks(tmp_path: Path, whole: Path, begun: Path) -> None:
    for number in range(count(14)):
        shutil.copytree(begun, folder := tmp_path / f"{number}")
        if number % 3 == 0:
            first = start(folder, WORDS, before=BARE + slow_steps(0.2))
            wait_for_step(folder / "r", 7, first)
            second = runs.fail(folder, WORDS, before=BARE)
            assert second == "r is being written by another process: wait for it or choose another folder."
            first.send(signal.SIGTERM)
            assert first.wait().code == 143
        elif number % 3 == 1:
            folder = folder.rename(tmp_path / f"moved {number}")
        else:
            jump = JUMP.format(seconds=(-(10**8), 10**8)[number % 2])
            assert runs.run(folder, WORDS, before=f"{BARE}; {jump}\n{interrupt_after(9, signal.SIGTERM)}").code == 143
        finish(folder, whole)
