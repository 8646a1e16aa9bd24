"""What a message tells the user to change is an option of the command that prints it."""

import os
import sys
from pathlib import Path

import pytest

from matrix_ssl.cli.main import _open_descriptors, commands, main
from matrix_ssl.cli.offered import find_command, has, running_has
from matrix_ssl.data.files.open_files import open_files_error
from matrix_ssl.errors import OFFERED
from tests.support import runs


@pytest.mark.parametrize(
    ("words", "remedy", "expected"),
    [
        (["pretrain", "demo"], "data.workers", True),
        (["pretrain"], "workers", False),
        (["detect"], "workers", True),
        (["pack"], "--workers", True),
        (["explore", "r"], "data.workers", False),
        (["llm", "finetune"], "batch_size", True),
        (["llm", "score"], "--batch-size", True),
        (["evaluate"], "linear_sgd.rate", True),
        (["evaluate"], "data.workers", False),
        (["import"], "--architecture", True),
    ],
)
def test_options_and_settings_of_a_command(words: list[str], remedy: str, expected: bool) -> None:
    found = find_command(commands, words)
    assert found is not None and has(*found, remedy) is expected


def test_a_program_without_a_command_has_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program.py", "--fresh"])
    assert running_has(commands, "data.workers")


def test_too_many_open_files_name_the_option_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, end in (("pretrain", "(--set data.workers=0)."), ("pack", "(--workers 0)."), ("explore", "1024'.")):
        monkeypatch.setattr(OFFERED, "_has", lambda remedy, name=name: has(name, commands.commands[name], remedy))
        monkeypatch.setattr("matrix_ssl.config.system.open_file_limit", lambda: 64)
        assert str(open_files_error()).endswith(end)


def test_too_little_memory_names_no_option_of_other_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(commands, "main", refuse)
    monkeypatch.setattr(OFFERED, "_has", OFFERED._has)  # main replaces it
    for words, ways in (
        (["report"], "smaller inputs"),
        (["llm", "score"], "smaller batches (--batch-size N), smaller inputs"),
        (["pack"], "smaller inputs, fewer workers (--workers 0)"),
    ):
        monkeypatch.setattr(sys, "argv", ["matrix-ssl", *words])
        with pytest.raises(SystemExit, match="1"):
            main()
        assert capsys.readouterr().err.startswith(f"error: The memory is not enough. Use {ways} or a machine with more")


def test_standard_output_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OFFERED, "_has", OFFERED._has)
    monkeypatch.setattr(sys, "argv", ["matrix-ssl", "recipes"])
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after >&-
    with pytest.raises(SystemExit, match="0"):
        main()


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        for number in range(3):
            os.close(number)
        _open_descriptors()
        with (tmp_path / "file").open("wb") as file:
            are_nothing = all(os.fstat(number).st_rdev == os.stat(os.devnull).st_rdev for number in range(3))  # noqa: PTH116
            os._exit(0 if are_nothing and file.fileno() > 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_named_option_that_the_command_lacks_is_noticed() -> None:
    runs.check_remedies(["explore"], "error: Full: raise it, or run matrix-ssl pretrain --set data.workers=0 again.")
    with pytest.raises(AssertionError, match=r"explore has no data\.workers"):
        runs.check_remedies(["explore"], "error: Full: use --set data.workers=0.")
