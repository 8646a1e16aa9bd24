"""Runs that are killed, interrupted and moved end with the bits of a run that was left alone."""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from matrix_ssl.runs import checkpoint
from tests.support import runs
from tests.support.runs import (
    BARE,
    PATIENCE,
    Command,
    Ended,
    from_files,
    lines,
    make_images,
    start,
    succeed,
    tensors,
    timeless,
    tiny,
)

SETTINGS = ("log_every=1", "checkpoint_every=3", "data.subset=704")
STEPS = 22


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(folder, tiny(*SETTINGS, epochs=2), before=BARE)
    assert [line["step"] for line in lines(folder / "r")] == list(range(1, STEPS + 1))
    return folder / "r"


def assert_same(run: Path, expected: Path) -> None:
    """The same tensors and the same lines of metrics, to the bit."""
    assert tensors(run) == tensors(expected)
    assert timeless(run) == timeless(expected)


def run_and_kill(folder: Path, draw: random.Random) -> Ended:
    """Kills a run during its start, or some steps after it began or resumed."""
    run = folder / "r"
    from_the_start = not checkpoint.list_checkpoints(run)
    command = start(folder, tiny(*SETTINGS, epochs=2), before=BARE)
    if draw.random() < 0.25:
        time.sleep(draw.uniform(0, 0.5))
    else:
        steps = draw.randrange(9)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            resumed = re.search(r"Resuming after step (\d+)", command.err())
            begun = resumed is not None or from_the_start
            first = int(resumed[1]) if resumed else 0
            text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
            if begun and text.count("\n") >= min(first + steps, STEPS - 5):
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
    command.send(signal.SIGKILL)
    return command.wait()


@pytest.mark.slow  # quick: test_engine.py, and the kills below; more of them: tests/faults/test_counts_kills.py
def test_kills_at_random_moments_leave_no_trace(tmp_path: Path, whole: Path) -> None:
    draw = random.Random(282)  # of the five, the third falls into a start
    began = []
    for _ in range(5):
        ended = run_and_kill(tmp_path, draw)
        assert ended.code == -signal.SIGKILL, ended.err
        began += re.findall(r"Resuming after step (\d+)", ended.err)
    assert began  # some came after the first checkpoint
    succeed(tmp_path, tiny(*SETTINGS, epochs=2), before=BARE)
    assert_same(tmp_path / "r", whole)
    assert not list((tmp_path / "r").rglob("*.tmp"))


DIE_AT_CALL = """
import os, signal, tempfile
left = [{call}]
def dying(name, real):
    def call(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **keywords)
    return call
os.fsync, os.replace, os.unlink = (dying(n, getattr(os, n)) for n in ("fsync", "replace", "unlink"))
os.fchmod, tempfile.mkstemp = dying("fchmod", os.fchmod), dying("mkstemp", tempfile.mkstemp)
"""


@pytest.mark.parametrize(
    "calls",
    [
        (1, *range(11, 17), 22),
        pytest.param(range(1, 23), marks=pytest.mark.slow),
    ],  # a whole save; all before the end of two
    ids=["one save", "all"],
)
def test_a_kill_at_every_system_call_of_a_save_leaves_a_checkpoint(
    tmp_path: Path, whole: Path, calls: Sequence[int]
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    stopped = start(base, tiny(*SETTINGS, epochs=2), before=BARE + "; " + interrupt_after(6, signal.SIGTERM)).wait()
    assert stopped.code == 143
    calls_of_start = 10  # environment.json and metrics.jsonl
    calls_of_save = 6  # one checkpoint, and the removal of an old one
    for call in calls:
        folder = tmp_path / f"call-{call}"
        shutil.copytree(base, folder)
        ended = runs.run(folder, tiny(*SETTINGS, epochs=2), before=BARE + DIE_AT_CALL.format(call=call))
        assert ended.code == -signal.SIGKILL, (call, ended)
        found, problems = checkpoint.load_newest(folder / "r")
        assert found is not None and not problems
        renamed = sum(call > calls_of_start + calls_of_save * save + 4 for save in range(2))  # the fourth call renames
        assert found.step == 6 + 3 * renamed, call
        if call in (1, calls_of_start + 3):
            succeed(folder, tiny(*SETTINGS, epochs=2), before=BARE)
            assert_same(folder / "r", whole)
        shutil.rmtree(folder)
    assert renamed == 2


def interrupt_after(step: int, number: int) -> str:
    """Code that sends the process a signal during the step after ``step``."""
    return (
        "import os, matrix_ssl.training.engine as e; real = e.Engine.update\n"
        "def update(self, *rest):\n"
        f"    if self.task.step == {step - 1}: os.kill(os.getpid(), {int(number)})\n"
        "    return real(self, *rest)\n"
        "e.Engine.update = update\n"
    )


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGUSR1))],
)  # the tests around it send the other two
def test_a_signal_saves_at_the_step_boundary_and_a_moved_run_resumes(tmp_path: Path, whole: Path, number: int) -> None:
    ended = runs.run(tmp_path, tiny(*SETTINGS, epochs=2), before=BARE + "; " + interrupt_after(10, number))
    assert ended.code == 128 + number
    name = signal.Signals(number).name
    assert ended.err.splitlines()[-1] == f"error: Stopped by {name} after step 10. Run the same command to resume."
    assert "Traceback" not in ended.err
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "r")] == [
        "step-000000009.safetensors",
        "step-000000010.safetensors",
    ]
    assert not (tmp_path / "r" / "summary.json").exists()
    elsewhere = tmp_path / "another place"  # a moved run resumes
    elsewhere.mkdir()
    (tmp_path / "r").rename(elsewhere / "r")
    again = succeed(elsewhere, tiny(*SETTINGS, epochs=2), before=BARE)
    assert f"Resuming after step 10 of {STEPS}" in again.err
    assert_same(elsewhere / "r", whole)


@pytest.mark.slow  # quick: methods/test_conformance.py
def test_sgd_and_small_views_resume_as_well(tmp_path: Path) -> None:
    small = ("views.2.count=2", "views.2.image_size=4")
    settings = ("log_every=1", "data.subset=768", "optimizer.name=sgd", "optimizer.learning_rate=0.2", *small)
    for folder in (alone := tmp_path / "alone", stopped := tmp_path / "stopped"):
        folder.mkdir()
    succeed(alone, tiny(*settings), before=BARE)
    assert runs.run(stopped, tiny(*settings), before=BARE + "; " + interrupt_after(9, signal.SIGTERM)).code == 143
    succeed(stopped, tiny(*settings), before=BARE)
    assert_same(stopped / "r", alone / "r")


@pytest.mark.parametrize("arguments", [tiny(*SETTINGS, epochs=2), ["evaluate", "r"]])
def test_a_second_writer_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    first = start(tmp_path, tiny(*SETTINGS, epochs=200), before=BARE)
    wait_for_lines(tmp_path / "r", 3, first)
    second = runs.fail(tmp_path, arguments, before=BARE)
    assert second == "r is being written by another process: wait for it or choose another folder."
    first.send(signal.SIGTERM)
    assert first.wait().code == 143


def test_the_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    hang = "import time, matrix_ssl.methods.matrix_ssl as m; m.MatrixSSL.after_step = lambda *_: time.sleep(600)"
    command = start(tmp_path, tiny(), before=hang)
    wait_for_text(command, "matrix_ssl on")
    time.sleep(1.0)
    command.send(signal.SIGINT)
    time.sleep(0.2)
    command.send(signal.SIGINT)
    ended = command.wait(20)
    assert (ended.code, ended.err.splitlines()[-1]) == (130, "Stopped.")


def wait_for_lines(run: Path, count: int, command: Command) -> None:
    """Waits for lines of metrics."""
    deadline = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() or len(lines(run)) < count:
        assert time.monotonic() < deadline, command.err()
        time.sleep(0.01)


def wait_for_text(command: Command, text: str) -> None:
    """Waits until a command has written a text to standard error."""
    deadline = time.monotonic() + PATIENCE
    while text not in command.err():
        assert time.monotonic() < deadline, command.err()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four small JPEG files without labels."""
    folder = tmp_path_factory.mktemp("images")
    make_images(folder, 64)
    return folder


def test_worker_processes_change_nothing(tmp_path: Path, images: Path) -> None:
    """Killed and resumed at once, though its workers outlive it; and with another number of them."""
    for folder in (alone := tmp_path / "alone", killed := tmp_path / "killed"):
        folder.mkdir()
    settings = ("log_every=1", "checkpoint_every=4")
    succeed(alone, from_files(images, *settings, "data.workers=0", epochs=5), before=BARE)
    command = start(killed, from_files(images, *settings, epochs=5), before=BARE)
    wait_for_lines(killed / "r", 10, command)
    command.send(signal.SIGKILL)
    assert command.wait().code == -signal.SIGKILL
    ended = succeed(killed, from_files(images, *settings, epochs=5), before=BARE)
    assert "Resuming after step" in ended.err
    assert_same(killed / "r", alone / "r")


def test_a_signal_to_the_whole_group_still_saves(tmp_path: Path, images: Path) -> None:
    """Schedulers signal every process of a job, also the workers."""
    command = start(tmp_path, from_files(images, "log_every=1", epochs=1000), before=BARE)
    wait_for_lines(tmp_path / "r", 6, command)
    os.killpg(command.pid, signal.SIGTERM)
    ended = command.wait()
    assert ended.code == 143, ended
    assert "Stopped by SIGTERM after step" in ended.err


def test_damaged_checkpoints_fall_back_to_the_one_before(tmp_path: Path, whole: Path) -> None:
    ended = runs.run(tmp_path, tiny(*SETTINGS, epochs=2), before=BARE + "; " + interrupt_after(8, signal.SIGTERM))
    assert ended.code == 143
    newest = checkpoint.list_checkpoints(tmp_path / "r")[-1]
    flip_a_bit(newest)
    again = succeed(tmp_path, tiny(*SETTINGS, epochs=2), before=BARE)
    assert f"Warning: {newest.relative_to(tmp_path)} is damaged" in again.err
    assert "Resuming after step 6" in again.err
    assert_same(tmp_path / "r", whole)


def test_with_every_checkpoint_damaged_the_remedy_is_named(tmp_path: Path) -> None:
    ended = runs.run(tmp_path, tiny(*SETTINGS, epochs=2), before=BARE + "; " + interrupt_after(8, signal.SIGTERM))
    assert ended.code == 143
    for path in checkpoint.list_checkpoints(tmp_path / "r"):
        flip_a_bit(path)
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    message = runs.fail(tmp_path, tiny(*SETTINGS, epochs=2), before=BARE)
    assert message.count("is damaged") == 2 and "step-000000006" in message and "--fresh" in message
    kept = {path: path.read_bytes() for path in before}
    assert {p for p in before if before[p] != kept[p]} <= {tmp_path / "r" / "environment.json"}


def flip_a_bit(path: Path) -> None:
    """Damages a file in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_run_that_stops_itself_at_its_limit_of_time_goes_on_by_the_same_command(tmp_path: Path, whole: Path) -> None:
    command = [*tiny(*SETTINGS, epochs=2), "--max-hours", "1e-9"]
    stops = 0
    while (ended := runs.run(tmp_path, command, before=BARE)).code == 75 and stops < 3:
        stops += 1
        assert ended.err.endswith(
            f"error: Stopped at the limit of --max-hours after step {stops}. Run the same command to resume.\n"
        )
    succeed(tmp_path, tiny(*SETTINGS, epochs=2), before=BARE)
    assert stops == 3
    assert_same(tmp_path / "r", whole)
