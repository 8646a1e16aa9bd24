"""The shape of the package: who imports whom, what stays light, and that everything public is described."""

import ast
import graphlib
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import matrix_ssl

ROOT = Path(matrix_ssl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "matrix_ssl.") if not m.name.endswith("__main__"))

# what each module or subpackage may import from its siblings; errors may be imported by all
MAY_IMPORT = {
    "randomness": [],
    "config": [],
    "matrix": [],
    "optim": [],
    "signals": [],
    "observer": [],
    "momentum": [],
    "progress": [],
    "pretrained": [],
    "distributed": [],
    "networks": ["distributed"],
    "augment": ["config", "randomness"],
    "devices": ["distributed", "record"],
    "losses": ["matrix"],
    "parallel": ["distributed", "losses"],
    "diagnostics": ["matrix"],
    "llm": ["config", "devices", "distributed", "matrix", "options", "pretrained", "progress", "record", "report",
            "signals"],
    "views": ["config"],
    "recipes": ["config", "views"],
    "data": ["augment", "config", "pretrained", "randomness"],
    "record": ["config"],
    "checkpoint": ["config", "record"],
    "encoder": ["checkpoint", "config", "networks", "record"],
    "methods": ["config", "distributed", "losses", "matrix", "momentum", "networks", "parallel",
                "views"],
    "evaluate": ["augment", "checkpoint", "config", "data", "devices", "diagnostics", "distributed", "encoder",
                 "matrix", "networks", "observer", "optim", "options", "progress", "randomness", "record", "report",
                 "signals"],
    "report": ["config", "progress", "record"],
    "loop": ["checkpoint", "config", "data", "diagnostics", "distributed", "methods", "observer", "optim", "progress",
             "randomness", "record", "signals"],
    "train": ["checkpoint", "config", "data", "devices", "diagnostics", "distributed", "encoder", "loop", "methods",
              "networks", "optim", "progress", "randomness", "record"],
    "options": ["config", "recipes", "train"],
    "detection": ["checkpoint", "config", "data", "devices", "diagnostics", "distributed", "encoder", "networks",
                  "options", "progress", "randomness", "record", "signals", "weights"],
    "compare": ["config", "data", "devices", "encoder", "evaluate", "methods", "observer", "options", "progress",
                "randomness", "record", "report", "signals", "train"],
    "weights": ["augment", "checkpoint", "config", "encoder", "networks", "options", "pretrained", "record"],
    "chain": ["config", "data", "detection", "distributed", "evaluate", "record", "signals"],
}  # fmt: skip
MAY_IMPORT |= {"cli": [*MAY_IMPORT, "__init__"], "__main__": ["cli"]}


def unit(path):
    """The module or subpackage that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def siblings(path):
    """Names of the modules and subpackages that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            parts = (node.module or "").split(".")
            if parts == ["matrix_ssl"]:
                names = [alias.name for alias in node.names]
                found |= {
                    name if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists() else "__init__" for name in names
                }
            elif parts[0] == "matrix_ssl":
                found.add(parts[1])
        elif isinstance(node, ast.Import):
            inside = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == "matrix_ssl"]
            found |= {parts[1] if parts[1:] else "__init__" for parts in inside}
    return found - {unit(path)}


def test_imports_follow_the_plan():
    wrong = {}
    for path in FILES:
        allowed = {"errors", *MAY_IMPORT.get(unit(path), [])}
        if siblings(path) - allowed:
            wrong[str(path.relative_to(ROOT))] = sorted(siblings(path) - allowed)
    assert wrong == {}


def test_the_plan_has_no_circle_and_no_stale_entry():
    assert tuple(graphlib.TopologicalSorter(MAY_IMPORT).static_order())
    assert MAY_IMPORT.keys() == {unit(path) for path in FILES} - {"__init__", "errors"}


def test_one_place_talks_to_other_processes():
    mention = [path.name for path in FILES if "torch.distributed" in path.read_text()]
    assert mention == ["distributed.py"]


OPENERS = {"from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "HFLM", "pipeline"}


def opens_foreign_code(tree):
    """Lines of calls that could run code of a model's folder, and do not refuse it themselves."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        refuses = any(
            k.arg == "trust_remote_code" and isinstance(k.value, ast.Constant) and k.value.value is False
            for k in node.keywords
        )
        if called in OPENERS and not refuses:
            yield node.lineno


def test_no_call_can_run_code_of_a_model_or_dataset():
    hidden = "AutoModel.from_pretrained(x)\nload_dataset(x, trust_remote_code=True)\nHFLM(x, trust_remote_code=False)"
    assert list(opens_foreign_code(ast.parse(hidden))) == [1, 2]
    wrong = {str(path.relative_to(ROOT)): list(opens_foreign_code(ast.parse(path.read_text()))) for path in FILES}
    assert {path: lines for path, lines in wrong.items() if lines} == {}
    trusting = [path.name for path in FILES if re.search(r"trust_remote_code(?!=False|\")", path.read_text())]
    assert trusting == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


def public(module):
    """Public functions and classes that a module defines, and the public methods of its classes."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            for member, function in vars(value).items():
                if not member.startswith("_") and inspect.isfunction(function):
                    # an override may rely on the description of what it overrides: getdoc finds it through the class
                    yield f"{module.__name__}.{name}.{member}", getattr(value, member)


def test_everything_public_is_described():
    modules = [importlib.import_module(name) for name in MODULES]
    missing = [module.__name__ for module in modules if not module.__doc__]
    for module in modules:
        for name, value in public(module):
            is_recipe = name.startswith("matrix_ssl.config.recipes.") and name.endswith(
                ".recipe"
            )  # the file describes it
            if not inspect.getdoc(value) and not is_recipe:
                missing.append(name)
    assert missing == []


def loaded_by(statement):
    """Top-level modules in memory after a statement in a new interpreter."""
    code = f"{statement}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import matrix_ssl") & {"torch", "torchvision", "numpy", "sklearn", "matplotlib", "rich"} == set()


def test_the_report_needs_no_torch():
    names = [name for name in MODULES if name.startswith("matrix_ssl.report")]
    assert "matrix_ssl.report.run.figures" in names
    loaded = loaded_by(f"import {', '.join(names)}")
    assert "matplotlib" in loaded
    assert loaded & {"torch", "torchvision", "sklearn", "scipy"} == set()


def test_recipes_and_configuration_need_no_torch():
    loaded = loaded_by("from matrix_ssl.config.recipes import find_recipe; find_recipe('demo')")
    assert loaded & {"torch", "torchvision", "sklearn"} == set()
