"""Several real processes on the CPU do what one process does."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from matrix_ssl import distributed, losses
from matrix_ssl.config import system
from matrix_ssl.distributed import batch_norm
from matrix_ssl.distributed import losses as parallel
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs import checkpoint
from tests.support import process_checks, runs
from tests.support.runs import (
    BARE,
    PATIENCE,
    Command,
    Ended,
    check_failure,
    from_files,
    make_images,
    start_processes,
    succeed,
    timeless,
    tiny,
)

SHORT = ("precision=float64", "log_every=1", "batch_size=66", "checkpoint_every=4", "data.subset=528")  # 8 steps
SHORTEST = (*SHORT, "data.subset=198", "views.2.image_size=4")  # 3 steps of two views and a small one


CHECKS = ("gather", "gather_uneven", "all_reduce_sum", "sum_of_parts", "batch_norm", "uneven_batch_norm",
          "half_precision", "whole_network", "agreement", "streams", "matrix_ssl_loss", "matrix_entropy_loss",
          "loss_shapes", "loss_scale", "teacher_gradient")  # fmt: skip
UNEVEN = ("gather_uneven", "all_reduce_sum", "uneven_batch_norm", "agreement")  # what three processes show in seconds
TOGETHER = {"all": CHECKS, "uneven": UNEVEN}  # one after another in the same processes


@pytest.mark.parametrize(
    ("check", "count"),
    [
        ("all", 2),
        ("uneven", 3),
        *(pytest.param(check, count, marks=pytest.mark.slow) for count in (2, 3, 4) for check in CHECKS),
        ("every_order_shared", 4),  # two processes share each
        pytest.param("metric_objects", 2, marks=pytest.mark.slow),
        *(pytest.param("sharded_encoder", count, marks=pytest.mark.slow) for count in (2, 3)),
        ("different_methods", 2),
        *(pytest.param("methods", count, marks=pytest.mark.slow) for count in (2, 3)),
    ],
)
def test_together_they_compute_what_one_process_computes(tmp_path: Path, check: str, count: int) -> None:
    folder = str(Path(process_checks.__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import torch, process_checks\n"
        f"from matrix_ssl import distributed; distributed.start('cpu')\n"
        f"assert distributed.world_size() == {count}\n"
        f"for check in {TOGETHER.get(check, (check,))}:\n"
        f"    torch.manual_seed(0); getattr(process_checks, check)()\n"
        f"distributed.stop(); raise SystemExit(0)"
    )
    for command in start_processes(tmp_path, [], count=count, before=code):
        ended = command.wait()
        assert ended.code == 0, ended.err


@pytest.mark.parametrize(("variables", "message"), [
    ({"WORLD_SIZE": "2"}, r"^WORLD_SIZE=2 without RANK: start all processes by torchrun, or unset WORLD_SIZE\.$"),
    ({"RANK": "1"}, r"^RANK=1 without WORLD_SIZE: start all"),
    ({"RANK": "x", "WORLD_SIZE": "2"}, r"^RANK and WORLD_SIZE of the launcher must be numbers"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, r"^RANK=2 and WORLD_SIZE=2: ranks count from 0 to 1\.$"),
])  # fmt: skip
def test_a_launcher_that_says_half_of_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not distributed.start("cpu")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        distributed.start("cpu")


def test_numbers_of_a_launcher_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(ConfigError, match=r"^LOCAL_RANK=x: expected the number of a process on its machine"):
        distributed.local_rank()
    for text in ("0", "x"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", text)
        with pytest.raises(ConfigError, match=rf"^LOCAL_WORLD_SIZE={text}: expected a number of processes"):
            system.local_processes()


def test_in_a_single_process_everything_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x and distributed.all_reduce_sum(x) is x
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.gather_for_parts(x) is x and distributed.sum_of_parts(x) is x
    assert distributed.row_counts(x) == [3]
    rows = torch.randn(4, 6, 3).unbind()
    assert parallel.matrix_ssl_terms(*rows).loss.equal(losses.matrix_ssl_terms(*rows).loss)
    assert parallel.matrix_entropy_terms(*rows[:2]).loss.equal(losses.matrix_entropy_terms(*rows[:2]).loss)
    for terms in (parallel.matrix_ssl_terms, lambda *z, **options: parallel.matrix_entropy_terms(*z[:2], **options)):
        with pytest.raises(ValueError, match="exchange must be 'auto', 'rows' or 'covariances', got 'row'"):
            terms(*rows, exchange="row")
    with pytest.raises(ValueError, match=r"exchange='covariances' cannot serve a kernel, width=0\.5: use 'rows'"):
        parallel.matrix_entropy_terms(*rows[:2], width=0.5, exchange="covariances")
    module = nn.Sequential(nn.BatchNorm1d(2))
    assert distributed.wrap(module) is module
    assert batch_norm.synchronise_batch_norm(module, "cpu") is module and type(module[0]) is nn.BatchNorm1d
    assert distributed.broadcast_object(3) == 3
    with pytest.raises(RuntimeError, match="Connection closed by peer"), distributed.connected():
        raise RuntimeError("Connection closed by peer")  # alone, this is no lost process


def test_many_processes_count_whole_determinants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve twelfths in float32 are 1 - 1e-7, which is no determinant as an integer."""
    z = torch.randn(64, 3)
    for name, stub in {
        "world_size": lambda: 24,
        "rank": lambda: 0,
        "row_counts": lambda rows, sizes: [len(rows)],
        "gather_for_parts": lambda rows, sizes: rows,
        "sum_of_parts": lambda x: functools.reduce(torch.add, [x] * 12),
    }.items():
        monkeypatch.setattr(distributed, name, stub)
    assert int(parallel.matrix_ssl_terms(z, z, -z, -z, exchange="rows").negative_determinants) == 1


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("single")
    succeed(folder, tiny(*SHORTEST), before=BARE)
    return folder / "r"


def end(commands: list[Command], seconds: float = PATIENCE) -> list[Ended]:
    """Waits for the first process and then ends the others, as torchrun does."""
    first = commands[0].wait(seconds)
    if first.code:
        for command in commands[1:]:
            command.send(signal.SIGTERM)
    return [first, *(command.wait(seconds) for command in commands[1:])]


def assert_close(run: Path, expected: Path, tolerance: float) -> None:
    """The same metrics, weights and moments of the gradient up to a tolerance."""
    found, other = timeless(run), timeless(expected)
    assert [line["step"] for line in found] == [line["step"] for line in other]
    for line, reference in zip(found, other, strict=True):
        assert line.keys() == reference.keys()
        for key, value in reference.items():
            if key != "alarm":
                np.testing.assert_allclose(line[key], value, rtol=tolerance, atol=tolerance, err_msg=key)
    (ours, _), (theirs, _) = checkpoint.load_newest(run), checkpoint.load_newest(expected)
    assert ours is not None and theirs is not None and ours.step == theirs.step
    assert ours.model.keys() == theirs.model.keys()
    for name, tensor in theirs.model.items():
        torch.testing.assert_close(ours.model[name], tensor, rtol=tolerance, atol=tolerance)
    for index, state in theirs.optimizer["state"].items():
        for name, tensor in state.items():
            torch.testing.assert_close(ours.optimizer["state"][index][name], tensor, rtol=tolerance, atol=tolerance)


def torchrun(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs two processes with PyTorch's launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "matrix_ssl", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE)


@pytest.mark.slow  # the processes of the next test are forked
def test_torchrun_gives_the_losses_gradients_and_weights_of_one_process(tmp_path: Path, single: Path) -> None:
    ended = torchrun(tmp_path, tiny(*SHORTEST))
    assert ended.returncode == 0, ended.stderr
    assert_close(tmp_path / "r", single, 1e-8)
    assert ended.stderr.count("matrix_ssl on 198 images") == 1 and "2 processes" in ended.stderr
    assert ended.stdout == "encoder r/encoder.safetensors\nreport  r/report.html\n"
    assert "Warning" not in ended.stderr
    (encoder, _), (expected, _) = (
        checkpoint.read_safetensors(r / "encoder.safetensors") for r in (tmp_path / "r", single)
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(encoder[name], tensor, rtol=1e-8, atol=1e-8)


@pytest.mark.slow  # four starts of Python; quick: a_mistake_is_told_by_the_first_process_alone
def test_torchrun_shows_a_mistake_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ended = torchrun(tmp_path, ["pretrain", "dmeo"])
    assert ended.returncode != 0
    assert ended.stderr.count("error: There is no recipe 'dmeo'. Did you mean 'demo'?") == 1
    assert ended.stderr.count("Traceback") <= 1  # the launcher's own
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_three_processes_agree_with_one(tmp_path: Path, single: Path) -> None:
    first, *others = end(start_processes(tmp_path, tiny(*SHORTEST), count=3))
    assert [(e.code, e.out, e.err) for e in others] == [(0, "", "")] * 2 and first.code == 0
    assert first.out == "encoder r/encoder.safetensors\n"
    assert first.err.count("matrix_ssl on 198 images") == 1 and "3 processes" in first.err
    assert "Warning" not in first.err
    assert_close(tmp_path / "r", single, 1e-8)
    (encoder, _), (expected, _) = (
        checkpoint.read_safetensors(r / "encoder.safetensors") for r in (tmp_path / "r", single)
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(encoder[name], tensor, rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    ended = end(start_processes(folder, tiny(*SHORT), count=2))
    assert [(e.code, e.out) for e in ended] == [(0, "encoder r/encoder.safetensors\n"), (0, "")]
    return folder / "r"


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_death_of_one_process_ends_the_other_and_the_run_resumes(tmp_path: Path, pair: Path, victim: int) -> None:
    commands = start_processes(tmp_path, tiny(*SHORT, "checkpoint_every=3"), count=2)
    wait_for_step(tmp_path / "r", 4, commands[0])
    commands[victim].send(signal.SIGKILL)
    survivor = commands[1 - victim].wait()
    assert commands[victim].wait().code == -signal.SIGKILL
    if victim == 1:
        assert runs.check_failure(survivor).startswith("Another process of this run has ended")
    else:
        assert survivor.code > 0 and survivor.err == ""
    again = end(start_processes(tmp_path, tiny(*SHORT, "checkpoint_every=3"), count=2))
    assert [e.code for e in again] == [0, 0]
    assert re.search(r"Resuming after step [36] of 8", again[0].err)
    assert timeless(tmp_path / "r") == timeless(pair)
    assert runs.tensors(tmp_path / "r") == runs.tensors(pair)


@pytest.mark.parametrize("receivers", [*(pytest.param((one,), marks=pytest.mark.slow) for one in (0, 1)), (0, 1)])
def test_a_signal_to_any_process_stops_all_at_the_same_step(tmp_path: Path, receivers: tuple[int, ...]) -> None:
    commands = start_processes(tmp_path, tiny(*SHORT, epochs=50), count=2)
    wait_for_step(tmp_path / "r", 2, commands[0])
    for receiver in receivers:
        commands[receiver].send(signal.SIGUSR1)
    first = commands[0].wait()
    assert first.code == 138 and "Stopped by SIGUSR1 after step" in first.err
    second = commands[1].wait()
    assert (second.code, second.err) == (138, "")
    found, problems = checkpoint.load_newest(tmp_path / "r")
    assert found is not None and not problems and f"after step {found.step}." in first.err


def wait_for_step(run: Path, step: int, command: Command) -> None:
    """Waits until a run has logged a step."""
    deadline = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < step:
        assert time.monotonic() < deadline, command.err()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("batch_size=65",), "batch_size=65 must be a multiple of the 2 processes."),
        (("batch_size=2000",), "batch_size=2000 is larger than the 1437 images of 'digits'"),
        (("method.name=matrixssl",), "method.name='matrixssl' is not a method. Did you mean 'matrix_ssl'?"),
        (("data.source=absent",), "'absent' is not a file or folder here"),
    ],
)
def test_a_mistake_is_told_by_the_first_process_alone(tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    first, second = end(start_processes(tmp_path, tiny(*settings), count=2))
    assert message in runs.check_failure(first)
    assert second.err == ""
    assert not list(tmp_path.iterdir())


def test_what_only_the_first_process_sees_ends_all(tmp_path: Path, pair: Path) -> None:
    """The lock and the settings of the run folder, which the second process does not look at."""
    (tmp_path / "r").mkdir()
    for path in pair.iterdir():
        if path.is_file():
            (tmp_path / "r" / path.name).write_bytes(path.read_bytes())
    first, second = end(start_processes(tmp_path, tiny(*SHORT, epochs=3), count=2))
    assert "r was started with other settings (epochs: 1 -> 3)" in runs.check_failure(first)
    assert second.err == ""


def test_what_only_another_process_sees_is_told_by_it(tmp_path: Path) -> None:
    code = BARE + (
        "\nimport os, matrix_ssl.data.loading as d; from matrix_ssl.errors import DataError\n"
        "def iterate(self, start, stop):\n"
        "    if self._rank == 1: raise DataError('the disk of this machine is gone.')\n"
        "    yield from real(self, start, stop)\n"
        "real, d.TrainingBatches.iterate = d.TrainingBatches.iterate, iterate\n"
    )
    commands = start_processes(tmp_path, tiny(*SHORT), count=2, before=code)
    second, first = commands[1].wait(30), commands[0].wait(30)
    assert runs.check_failure(second) == "Process 1: the disk of this machine is gone."
    assert runs.check_failure(first).startswith("Another process of this run has ended")


def test_a_complete_run_is_complete_for_all(pair: Path) -> None:
    before = (pair / "encoder.safetensors").read_bytes()
    first, second = end(start_processes(pair.parent, tiny(*SHORT), count=2))
    assert (first.code, second.code) == (0, 0)
    assert first.err.startswith("r is complete. Use --fresh to start over.\n") and second.err == ""
    assert (pair / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("second", "words"),
    [
        pytest.param("sys.argv += ['--set', 'seed=7']", "on their settings, seed: 0 and 7.", id="settings"),
        pytest.param("sys.argv[sys.argv.index('a/photos')] = 'b/photos'", "on their settings or data, ", id="data"),
        pytest.param("session.versions = lambda names: {'torch': '1.0'}", "on their versions, ", id="versions"),
    ],
)
def test_processes_that_disagree_refuse_together(tmp_path: Path, second: str, words: str) -> None:
    """The second one has a different seed, an image less in a folder of the same name, or a different version."""
    for folder, count in (("a", 24), ("b", 23)):
        make_images(tmp_path / folder / "photos", count)
    arguments = from_files("a/photos")
    before = f"{BARE}\nimport os, sys\nfrom matrix_ssl.runs import session\nif os.environ['RANK'] == '1':\n    {second}"
    first, other = end(start_processes(tmp_path, arguments, count=2, before=before))
    assert first.code > 0 and words in check_failure(first) and other.code != 0
    assert not (tmp_path / "r" / "config.json").exists()
