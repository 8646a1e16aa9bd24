"""Completion in a shell: commands, options, choices, recipes, methods and datasets."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, CompletionItem, ShellComplete, get_completion_class

from matrix_ssl.cli import completion
from matrix_ssl.cli.main import commands
from matrix_ssl.config.recipes import list_recipes
from matrix_ssl.data.sources import NAMED_SETS
from matrix_ssl.methods import list_methods


def complete(line: str) -> list[CompletionItem]:
    """What is offered for the last word of a line."""
    *words, text = line.split(" ")[1:]
    return ShellComplete(commands, {}, "matrix-ssl", "_MATRIX_SSL_COMPLETE").get_completions(words, text)


def values(line: str) -> list[str]:
    return [item.value for item in complete(line)]


def test_commands_are_offered() -> None:
    assert set(values("matrix-ssl ")) == commands.commands.keys()
    assert values("matrix-ssl pre") == ["pretrain"]
    assert values("matrix-ssl llm fi") == ["finetune"]


def test_options_and_choices_are_offered() -> None:
    assert {"--method", "--data", "--set", "--out"} <= set(values("matrix-ssl pretrain --"))
    assert values("matrix-ssl pretrain --device c") == ["cpu", "cuda"]


def test_recipes_come_with_their_descriptions() -> None:
    offered = complete("matrix-ssl pretrain ima")
    assert {item.value: item.help for item in offered} == {
        name: text for name, text in list_recipes().items() if name.startswith("ima")
    }
    assert values("matrix-ssl recipes dem") == ["demo"]


def test_methods_and_files_of_methods_are_offered() -> None:
    assert values("matrix-ssl methods ") == values("matrix-ssl pretrain --method ") == list_methods()
    assert [(item.value, item.type) for item in complete("matrix-ssl pretrain --method ./my")] == [("./my", "file")]


def test_datasets_and_folders_are_offered() -> None:
    assert completion.DATASETS == NAMED_SETS
    assert values("matrix-ssl pretrain --data cif") == ["cifar10", "cifar100"]
    assert [item.type for item in complete("matrix-ssl pretrain --data pho")] == ["file"]
    assert complete("matrix-ssl pretrain --data ")[-1].type == "file"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_line_of_each_shell_is_the_one_of_click(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BashComplete, "_check_version", staticmethod(lambda: None))  # which starts the shell
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text("utf-8")
    assert f"_MATRIX_SSL_COMPLETE={shell}_source matrix-ssl" in page
    source = get_completion_class(shell)(commands, {}, "matrix-ssl", "_MATRIX_SSL_COMPLETE").source()
    assert f"_MATRIX_SSL_COMPLETE={shell}_complete" in source


def test_a_key_press_loads_no_torch() -> None:
    code = (
        "import os, sys; os.environ |= {'_MATRIX_SSL_COMPLETE': 'bash_complete', 'COMP_CWORD': '3',"
        " 'COMP_WORDS': 'matrix-ssl pretrain --method '}\n"
        "from matrix_ssl.cli import main\nsys.argv = ['matrix-ssl']\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "print(sys.modules.keys() & {'torch', 'numpy'})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [*(f"plain,{name}" for name in list_methods()), "set()"]
