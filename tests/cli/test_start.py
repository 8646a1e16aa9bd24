"""Help and lists come at once: nothing on their way imports PyTorch, which takes seconds."""

import os
import sys
from typing import Any

import pytest

from matrix_ssl.methods import describe_method, list_methods

LISTS = [["--help"], ["--version"], ["recipes"], ["methods"], ["pretrain", "--help"], ["compare", "--help"]]


class Refusal:
    """A finder of modules that refuses PyTorch."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "torch":
            raise ImportError(f"{name} is refused here")


@pytest.mark.parametrize("words", LISTS, ids=" ".join)
def test_without_torch(words: list[str]) -> None:
    child = os.fork()
    if child == 0:
        try:
            for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "matrix_ssl")]:
                del sys.modules[name]
            sys.meta_path.insert(0, Refusal())
            from matrix_ssl.cli.main import commands

            commands.main(words, standalone_mode=False)
            os._exit(0 if "torch" not in sys.modules else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_list_of_methods_has_their_first_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from matrix_ssl.cli.main import commands

    commands.main(["methods"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_methods()
    for name, line in zip(list_methods(), lines, strict=True):
        assert line.split(maxsplit=1)[1] == describe_method(name).partition("\n")[0]
