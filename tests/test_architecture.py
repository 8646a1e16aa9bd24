"""The shape of the package: who imports whom, what stays light, and that everything public is described."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import matrix_ssl

ROOT = Path(matrix_ssl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "matrix_ssl.") if not m.name.endswith("__main__"))

# what each package imports from its siblings, exactly; errors may be imported by all
IMPORTS = {
    "config": {},
    "matrix": {},
    "networks": {},
    "data": {"config"},
    "losses": {"matrix"},
    "distributed": {"losses"},
    "methods": {"config", "data", "distributed", "losses", "matrix", "networks"},
    "runs": {"config", "distributed"},
    "report": {"config", "runs"},
    "encoder": {"config", "data", "networks", "report", "runs"},
    "training": {"config", "data", "distributed", "encoder", "matrix", "methods", "networks", "report", "runs"},
    "llm": {"config", "data", "distributed", "matrix", "report", "runs"},
    "evaluate": {"config", "data", "distributed", "encoder", "matrix", "runs", "training"},
    "compare": {"config", "data", "encoder", "evaluate", "methods", "report", "runs", "training"},
    "api": {"__init__", "config", "data", "distributed", "encoder", "evaluate", "methods", "networks", "report", "runs",
            "training"},
    "cli": {"__init__", "api", "compare", "config", "data", "distributed", "encoder", "evaluate", "llm", "methods",
            "report", "runs", "training"},
    "__main__": {"cli"},
}  # fmt: skip


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


def test_every_package_imports_exactly_what_the_table_says():
    imports = {}
    for path in FILES:
        imports.setdefault(unit(path), set()).update(siblings(path) - {"errors"})
    assert {name: imports[name] for name in imports.keys() - {"__init__", "errors"}} == {
        name: set(names) for name, names in IMPORTS.items()
    }


def test_a_package_imports_only_what_stands_above_it_in_the_table():
    order = ["__init__", *IMPORTS]
    for name, names in IMPORTS.items():
        assert all(order.index(other) < order.index(name) for other in names), name


def test_no_package_imports_a_private_module_of_another():
    private = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("matrix_ssl"):
                continue
            for alias in node.names:
                parts = [*node.module.split(".")[1:], alias.name]
                if any(re.match(r"_[a-z]", part) for part in parts) and parts[0] != unit(path):
                    private.append(f"{path.relative_to(ROOT)}:{node.lineno}: {'.'.join(parts)}")
    assert private == []


def test_the_top_of_the_package_is_small():
    assert len([path for path in ROOT.iterdir() if path.is_file() or (path / "__init__.py").exists()]) <= 20


def test_reading_a_file_knows_no_dataset():
    """What ``data.files`` imports of this package, in which nothing imports it back."""
    found = set()
    for path in (ROOT / "data" / "files").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("matrix_ssl"):
                found.add(".".join(node.module.split(".")[1:3]))
    assert {name for name in found if name.startswith("data")} == {"data.files"}


def test_one_package_talks_to_other_processes():
    mention = {unit(path) for path in FILES if "torch.distributed" in path.read_text()}
    assert mention == {"distributed"}


def test_one_package_knows_click():
    assert {unit(path) for path in FILES if re.search(r"^\s*(import|from) click", path.read_text(), re.MULTILINE)} == {
        "cli"
    }


def test_files_are_short():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {path: count for path, count in lines.items() if count > 400} == {}


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


def test_pages_need_no_torch():
    names = [name for name in MODULES if name.startswith("matrix_ssl.report")]
    assert "matrix_ssl.report.run.figures" in names
    loaded = loaded_by(f"import {', '.join(names)}")
    assert "matplotlib" in loaded
    assert loaded & {"torch", "torchvision", "sklearn"} == set()
    assert "scipy" not in loaded_by("import matrix_ssl.report")


def test_the_command_line_starts_without_torch():
    assert loaded_by("import matrix_ssl.cli.main") & {"torch", "torchvision", "numpy", "sklearn", "matplotlib"} == set()


def test_a_mistake_in_a_command_needs_no_torch():
    code = "import sys, matrix_ssl.cli.main as m; sys.argv = ['matrix-ssl', 'pretrain', 'dmeo']\n"
    assert "torch" not in loaded_by(f"{code}try: m.main()\nexcept SystemExit as end: assert end.code == 2")


def test_recipes_and_configuration_need_no_torch():
    loaded = loaded_by("from matrix_ssl.config.recipes import find_recipe; find_recipe('demo')")
    assert loaded & {"torch", "torchvision", "sklearn"} == set()
