"""Signals and the limit of time are collected, and what they do to a program."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import click
import pytest

from matrix_ssl.cli.main import commands
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs import signals
from matrix_ssl.runs.processes import Processes
from matrix_ssl.runs.signals import TIME_LIMIT, Interrupted, collected, limit_time, limited_time

LIMITED = ("chain", "compare", "detect", "evaluate", "pretrain", "worth")


@pytest.fixture(autouse=True)
def _no_limit() -> Iterator[None]:
    yield
    limit_time(None)


def wait_for(received: list[int], count: int) -> None:
    deadline = time.monotonic() + 20
    while len(received) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_the_limit_of_time_reaches_blocks_that_are_open_and_those_that_follow() -> None:
    with collected() as outer, collected() as inner:
        limit_time(1e-6)
        wait_for(inner, 1)
        assert outer == inner == [TIME_LIMIT]
    with collected() as later:
        assert later == [TIME_LIMIT]
    assert TIME_LIMIT not in signals.received_by_blocks  # it is no signal that a program would get again
    limit_time(None)
    with collected() as later:
        assert later == []


def test_a_limit_of_a_block_ends_with_it() -> None:
    with limited_time(1e-6), collected() as received:
        wait_for(received, 1)
        assert received == [TIME_LIMIT]
    with limited_time(None), collected() as later:
        assert later == []
    for hours in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="expected a number above 0"), limited_time(hours):
            raise AssertionError("the block was entered")


def test_a_long_limit_does_nothing() -> None:
    limit_time(1e12)
    with collected() as received:
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(received, 1)
        assert received == [signal.SIGUSR1]


def test_in_another_thread_there_is_the_limit_alone() -> None:
    lists: list[list[int]] = []

    def work() -> None:
        with collected() as received:
            limit_time(1e-6)
            wait_for(received, 1)
            lists.append(list(received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert lists == [[TIME_LIMIT]]


def test_words_and_exit_codes() -> None:
    error = Interrupted(TIME_LIMIT, after=" after step 3")
    assert str(error) == "Stopped at the limit of --max-hours after step 3. Run the same command to resume."
    assert (error.exit_code, Interrupted(signal.SIGUSR1).exit_code) == (75, 138)
    assert str(Interrupted(signal.SIGUSR1)) == "Stopped by SIGUSR1. Run the same command to resume."


def test_a_process_that_was_started_gets_sigterm_at_the_limit() -> None:
    processes: Processes[str] = Processes([TIME_LIMIT])
    processes.start("x", ["sleep", "60"])
    assert processes.wait() == [("x", -signal.SIGTERM)]


@pytest.mark.parametrize("name", LIMITED)
def test_commands_that_take_long_have_the_option(name: str) -> None:
    command = commands.commands[name]
    assert [option for option in command.params if "--max-hours" in option.opts]
    with pytest.raises(click.BadParameter, match=r"0\.0 is not in the range x>0"):
        command.make_context(name, ["--max-hours", "0"])
