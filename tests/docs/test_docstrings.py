"""Examples in docstrings run, every loss has one, and every method names its paper by a link."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch

from matrix_ssl import losses, matrix, methods

MODULES = [
    importlib.import_module(module.name)
    for package in (losses, matrix, methods)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
EXAMPLES = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]
LOSSES = [
    value
    for module in MODULES
    for name, value in vars(module).items()
    if re.fullmatch(r"[a-z]\w*_(loss|terms)", name) and value.__module__ == module.__name__
]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name.removeprefix("matrix_ssl."))
def test_examples_run(test: doctest.DocTest) -> None:
    torch.manual_seed(0)
    test.globs = {}  # an example imports all that it uses
    assert doctest.DocTestRunner().run(test).failed == 0


def test_losses_have_an_example() -> None:
    assert len(LOSSES) > 12
    assert [f.__qualname__ for f in LOSSES if ">>> " not in (inspect.getdoc(f) or "")] == []


@pytest.mark.parametrize("name", methods.list_methods())
def test_methods_link_to_their_paper(name: str) -> None:
    assert re.search(r"https://arxiv\.org/abs/\d{4}\.\d{5}\b", methods.describe_method(name))
