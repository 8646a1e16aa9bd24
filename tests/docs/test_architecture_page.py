"""docs/architecture.md is true: its tree and imports are those of the package, and its instructions work to the letter.

A code block that follows "In `path`:" is a new file; one that follows "In `path`, after `line`:" is inserted after that
line, and one that follows "In `path`, instead of `line`:" replaces it.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import succeed
from tests.test_architecture import IMPORTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
MOST_FILES = {"Add a method": 1, "Add a protocol": 3, "Add a kind of data": 3, "Add an export format": 3}
STEP = re.compile(
    r"^In\s`(?P<path>[^`\n]+)`(?:,\s(?P<how>after|instead\sof)\s`(?P<line>[^`\n]+)`)?:\n\n```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SMALLEST = ("data.subset=40", "batch_size=8", "epochs=1", "network.width=8", "data.workers=0")


def section(title):
    """The text below a heading."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


def apply(title, folder):
    """Follows the instructions of a section in ``folder`` and returns the files that were touched."""
    steps = list(STEP.finditer(section(title)))
    assert len(steps) == section(title).count("```python")  # no instruction is overlooked
    for step in steps:
        path = folder / step["path"]
        if step["line"] is None:
            assert not path.exists(), path
            path.write_text(step["code"], "utf-8")
            continue
        lines = path.read_text("utf-8").splitlines(keepends=True)
        places = [number for number, line in enumerate(lines) if line.strip() == step["line"]]
        assert len(places) == 1, (step["path"], step["line"])
        lines[places[0] + (step["how"] == "after") : places[0] + 1] = [step["code"]]
        path.write_text("".join(lines), "utf-8")
    return {step["path"] for step in steps}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package to which all four sections were applied."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for title, most in MOST_FILES.items():
        assert 1 <= len(apply(title, folder)) <= most, title
    return folder


@pytest.fixture(scope="module")
def matrix_ssl(house):
    """Runs a command of the copy in its folder and returns what it printed."""
    source = str(house / "src")
    copy = (
        f"import sys; sys.path.insert(0, {source!r})\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] == 'matrix_ssl']: del sys.modules[name]\n"
        f"import matrix_ssl; assert matrix_ssl.__file__.startswith({source!r})"
    )
    return lambda *words: succeed(house, list(words), before=copy).out


@pytest.fixture(scope="module")
def pretrain(matrix_ssl):
    settings = [word for setting in SMALLEST for word in ("--set", setting)]
    return lambda *words: matrix_ssl("pretrain", *words, *settings, "--device", "cpu", "--no-report")


@pytest.fixture(scope="module")
def run(house, pretrain):
    """A run that was trained by the method of the page."""
    pretrain("demo", "--method", "spread_out", "--out", "run")
    return house / "run"


def test_add_a_method(matrix_ssl, run):
    assert "spread_out " in matrix_ssl("methods")
    assert json.loads((run / "config.json").read_text())["method"]["options"]["spread_weight"] == 1.0
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["loss"] == pytest.approx(line["alignment"] + line["spread"])


def test_add_a_protocol(matrix_ssl, run):
    printed = matrix_ssl("evaluate", "run", "--protocol", "nearest-mean", "--device", "cpu", "--no-report")
    result = json.loads((run / "evaluation" / "digits" / "nearest-mean.json").read_text())
    assert result["baselines"]["raw_pixels"]["nearest_mean"]["accuracy"] > 0.8  # of ten digits
    assert "nearest mean" in printed


def test_add_a_kind_of_data(house, pretrain):
    (house / "photos").mkdir()
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number, 0, 0)).save(house / "photos" / f"{number}.png")
    rows = [f"photos/{number}.png,{'dark' if number < 4 else 'light'}" for number in range(8)]
    (house / "list.csv").write_text("\n".join(["file,label", *rows]))
    small = ("--set", "network.encoder=tiny_resnet", "--set", "data.image_size=16")
    pretrain("images_small", "--data", "list.csv", "--out", "listed", *small, "--set", "data.subset=0")
    assert json.loads((house / "listed" / "summary.json").read_text())["data"] == {"name": "list", "images": 8}


def test_add_an_export_format(matrix_ssl, run):
    matrix_ssl("export", "run", "--format", "numpy")
    with np.load(run / "export.npz") as arrays:
        assert any(array.ndim == 4 for array in arrays.values())
    assert (run / "export.npz.md").exists()


def test_tree_is_complete():
    """Every path of the tree exists; every package and every module at the top of the package is in it."""
    code = next(
        block for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "errors.py" in block
    )
    parents, listed = [], set()
    for line in code.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        parents = [*parents[:depth], name]
        listed.add(Path(*parents))
    assert [path for path in listed if not (ROOT / path).exists()] == []
    package = ROOT / "src" / "matrix_ssl"
    folders = {path.parent.relative_to(ROOT) for path in package.rglob("__init__.py")}
    modules = {path.relative_to(ROOT) for path in package.iterdir() if path.is_file()}
    assert (folders | modules) - listed == set()


def test_imports_are_those_of_the_package():
    code = re.search(r"^```\n(.*?)^```$", section("Who imports whom"), re.MULTILINE | re.DOTALL)[1]
    rows = {line.split()[0]: set(re.findall(r"\w+", line)[1:]) for line in code.splitlines()}
    expected = {name: set(names) - {"__init__"} for name, names in IMPORTS.items() if name != "__main__"}
    assert rows == expected
    assert list(rows) == list(expected)  # in the same order


@pytest.mark.parametrize(
    "path", re.findall(r"`((?:src|tests|docs)/[\w/.]+)`", section("Three questions") + section("Tests"))
)
def test_named_files_exist(path):
    assert (ROOT / path).exists()
