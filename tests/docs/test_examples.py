"""The examples run as their docstrings say, with few steps, and the notebooks as they are; their loss falls.

Each example runs in a process of its own, since Lightning, Accelerate and transformers keep state in theirs.
"""

import ast
import importlib.util
import json
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from matrix_ssl.evaluate.embedding_files import write_embedding
from matrix_ssl.evaluate.features import Embedding
from tests.support.quick import some
from tests.support.runs import run

FOLDER = Path(__file__).parents[2] / "examples"
STEPS = {
    "accelerate_loop": 8,
    "lightly_criterion": 6,
    "lightning_module": 8,
    "plain_pytorch": 10,
    "transformers_trainer": 6,
}
ON_FEATURES = ["faiss_index", "sklearn_pipeline"]  # examples that read a feature file and have no loss
LIBRARIES = {
    "accelerate_loop": "accelerate",
    "lightly_criterion": "lightly",
    "lightning_module": "pytorch_lightning",
    "transformers_trainer": "transformers",
}  # what an example needs besides this package and its dependencies
NOTEBOOKS = ["information_in_images", "loss_in_your_loop", "pretrain_and_explore"]

SCRIPT = """
import runpy, sys, warnings
warnings.simplefilter("default")  # Lightning and others warn about themselves
sys.argv = [{path!r}, "--steps", "{steps}"]
sys.path.insert(0, {folder!r})  # as python does, so that no example hides a library
runpy.run_path({path!r}, run_name="__main__")
raise SystemExit(0)
"""


def test_every_example_is_short_and_says_how_to_run_it():
    paths = sorted(FOLDER.glob("*.py"))
    assert [path.stem for path in paths] == sorted([*STEPS, *ON_FEATURES])
    for path in paths:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) < 60, path
        assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or ""), path


@pytest.mark.parametrize("name", some(STEPS, "plain_pytorch", "lightning_module", "lightly_criterion"))
def test_an_example_runs_and_its_loss_falls(name, tmp_path):
    library = LIBRARIES.get(name, "torch")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    script = SCRIPT.format(path=str(FOLDER / f"{name}.py"), folder=str(FOLDER), steps=STEPS[name])
    ended = run(tmp_path, [], before=script)
    assert ended.code == 0, ended.err
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss (-?[\d.]+)$", ended.out, re.MULTILINE)]
    assert len(losses) >= 2 and losses[-1] < losses[0], ended.out


def on_features(name, folder, capsys, monkeypatch):
    """What an example prints about 60 images of three classes, the last of which is labelled as a different one."""
    labels = np.arange(60) % 3
    features = (4 * np.eye(8)[labels] + np.random.default_rng(0).normal(size=(60, 8))).astype(np.float32)
    labels[59] = 0
    paths = [f"{index}.jpg" for index in range(60)]
    write_embedding(folder / "features.npz", Embedding(features, paths, labels, ["a", "b", "c"], "", []))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [name, "features.npz"])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return features, capsys.readouterr().out.splitlines()


def test_the_pipeline_of_scikit_learn_classifies_and_names_the_wrong_label(tmp_path, capsys, monkeypatch):
    _, lines = on_features("sklearn_pipeline", tmp_path, capsys, monkeypatch)
    accuracy, frequent = (float(line.partition(": ")[2]) for line in lines[:2])
    assert accuracy > 0.9 and frequent == pytest.approx(0.35) and "59.jpg: a, predicted c" in lines[2:]


def test_the_index_of_faiss_finds_the_neighbours(tmp_path, capsys, monkeypatch):
    faiss = pytest.importorskip("faiss")
    features, lines = on_features("faiss_index", tmp_path, capsys, monkeypatch)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = np.argsort(-(unit @ unit[0]))[1:6]
    assert lines[0] == "query: 0.jpg" and [line.split()[1] for line in lines[1:6]] == [f"{i}.jpg" for i in near]
    assert lines[6] == "recall: 1.000" and faiss.read_index("features.faiss").ntotal == 60


@pytest.mark.parametrize("name", some(NOTEBOOKS, "information_in_images", "loss_in_your_loop"))
def test_a_notebook_runs_and_its_loss_falls(name, tmp_path, monkeypatch):
    """All code cells in order, in one namespace; every figure is drawn."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    figures = []

    def draw():
        plt.gcf().canvas.draw()
        figures.append(len(plt.gcf().axes))
        plt.close("all")

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", draw)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{name}, cell {number}", "exec"), names)
    assert names["losses"][-1] < names["losses"][0]
    assert len(figures) == sum(cell.count("plt.show()") for cell in cells) >= 2


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)
