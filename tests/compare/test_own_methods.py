"""Comparisons with methods in files of the user, which may change and move."""

import shutil
from pathlib import Path

import pytest

from matrix_ssl import config as configuration
from matrix_ssl.compare.job import run_job
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.files import fingerprint, read_json, write_json
from matrix_ssl.training.configure import outline
from tests.support import runs
from tests.support.comparisons import FORKED, compare, fail, moments, results, timeless, words
from tests.support.runs import check_failure

OWN = '''"""A method of one's own."""

import torch
from torch import Tensor, nn

from matrix_ssl.methods._base import StepOutput
from matrix_ssl.methods.simsiam import SimSiam


class Own(SimSiam):
    """SimSiam with a weight, and without luck where the seed is 1."""

    def __init__(self, encoder: nn.Module, feature_dim: int, *, hidden_dim: int = 16, output_dim: int = 8,
                 weight: float = 1.0, lucky: bool = True):
        super().__init__(encoder, feature_dim, hidden_dim=hidden_dim, output_dim=output_dim)
        self.weight = weight if lucky or torch.initial_seed() != 1 else float("nan")
        self.late = False

    def before_step(self, step: int, total_steps: int) -> None:
        """Notes whether the first steps are over."""
        self.late = step >= 3

    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        """The loss times the weight."""
        output = super().forward(view1, view2)
        return output._replace(loss=output.loss * (self.weight if self.late else 1.0))
'''


def own_method(folder: Path, **changes: str) -> str:
    """Writes the method with some of its text changed; returns the argument that names it beside another one."""
    text = OWN
    for before, after in changes.values():
        assert before in text
        text = text.replace(before, after)
    (folder / "methods").mkdir(exist_ok=True)
    (folder / "methods" / "own.py").write_text(text)
    (folder / "elsewhere").mkdir(exist_ok=True)
    return "simsiam,../methods/own.py"


def with_own(folder: Path, *options: str, **changes: str) -> list[str]:
    """Arguments of a comparison with the method, from the folder ``elsewhere``."""
    return words("--trials", "1", "--budget", "2", *options, methods=own_method(folder, **changes), out="../c")


def test_a_method_of_ones_own_from_another_folder(tmp_path: Path) -> None:
    """When its default changes, its old run is kept aside and done again, and no other."""
    arguments = with_own(tmp_path, "--seeds", "1")
    compare(tmp_path / "elsewhere", arguments)
    path = str(tmp_path / "methods" / "own.py")
    before, times = results(tmp_path), moments(tmp_path)
    assert [row["method"] for row in before["rows"]] == before["methods"] == ["simsiam", path]
    assert before["reference"] == "simsiam" and before["tuning"] is None
    assert before["rows"][1]["settings"]["method.weight"] == 1.0
    ended = compare(tmp_path / "elsewhere", with_own(tmp_path, "--seeds", "1", weight=("= 1.0,", "= 2.0,")))
    assert ended.err.splitlines()[0].startswith("2 methods, 3 jobs (2 done)")
    own, aside = "c/runs/own-2-epochs/seed-0", "c/runs/own-2-epochs/seed-0.1"
    after = moments(tmp_path)
    assert after.keys() == times.keys() | {aside}
    assert after[aside] == times[own] and {k for k in times if after[k] != times[k]} == {own}
    assert timeless(results(tmp_path)["rows"][0]) == timeless(before["rows"][0])
    assert results(tmp_path)["rows"][1]["settings"]["method.weight"] == 2.0
    assert runs.tensors(tmp_path / own) != runs.tensors(tmp_path / aside)


def test_a_comparison_and_the_file_of_its_method_may_be_moved(tmp_path: Path) -> None:
    """Also one that an earlier version has begun, which kept the whole path of the file."""
    compare(tmp_path / "elsewhere", [*with_own(tmp_path, "--seeds", "1"), "--reference", "own"])
    path, old, new = str(tmp_path / "methods" / "own.py"), tmp_path / "c", tmp_path / "moved" / "c"
    assert (read_json(old / "plan.json")["methods"], read_json(old / "plan.json")["reference"]) == (
        ["simsiam", "own.py"], "own.py"
    )  # fmt: skip
    shutil.copytree(tmp_path, tmp_path / "moved")
    (tmp_path / "methods" / "own.py").unlink()
    times = moments(tmp_path / "moved")
    again = [*words("--trials", "1", "--budget", "2", "--seeds", "1", methods="simsiam,own.py"), "--reference", "own"]
    ended = compare(tmp_path / "moved" / "methods", [*again, "--out", "../c"])
    assert ended.err.splitlines()[0].startswith("2 methods, 3 jobs (3 done)")
    assert moments(tmp_path / "moved") == times
    plan = read_json(new / "plan.json")
    write_json(new / "plan.json", plan | {"methods": ["simsiam", path], "reference": path})
    for folder in ("baselines", "runs/own-2-epochs/seed-0"):
        job = read_json(new / folder / "job.json")
        config = configuration.from_dict(job["config"])
        assert job.pop("source", None) is None or folder != "baselines"
        write_json(new / folder / "job.json", job)
        result = read_json(new / folder / "result.json")
        earlier = fingerprint(job["stage"], path, configuration.identifying(config))
        write_json(new / folder / "result.json", result | {"job": earlier})
    times = moments(tmp_path / "moved")
    compare(tmp_path / "moved" / "methods", [*again, "--out", "../c"])
    assert moments(tmp_path / "moved") == times and read_json(new / "plan.json") == plan


def test_a_method_whose_file_has_changed_is_trained_again(tmp_path: Path) -> None:
    """Its settings are the same: without the digest of the file, rows of the old and the new code would be mixed."""
    compare(tmp_path / "elsewhere", with_own(tmp_path, "--seeds", "1"))
    times = moments(tmp_path)
    changed = with_own(tmp_path, "--seeds", "1", late=("self.late = step >= 3", "self.late = step >= 2"))
    ended = compare(tmp_path / "elsewhere", changed)
    assert ended.err.splitlines()[0].startswith("2 methods, 3 jobs (2 done)")
    own, aside = "c/runs/own-2-epochs/seed-0", "c/runs/own-2-epochs/seed-0.1"
    after = moments(tmp_path)
    assert after.keys() == times.keys() | {aside} and after[aside] == times[own]
    assert {name for name in times if after[name] != times[name]} == {own}


def test_a_job_does_not_train_with_a_file_that_has_changed_since(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    own_method(tmp_path)
    config = outline("demo", None, (), method=str(tmp_path / "methods" / "own.py"))
    values = {"config": configuration.to_dict(config), "threads": 0, "device": "cpu", "data_root": None, "stage": "run"}
    folder.mkdir()
    write_json(folder / "job.json", values | {"method": config.method.name, "source": "0" * 64})
    with pytest.raises(ConfigError, match=r"own\.py has changed since the comparison was started: run the command"):
        run_job(folder)


def test_a_comparison_whose_jobs_all_failed_takes_corrected_settings(tmp_path: Path) -> None:
    """The baselines have been evaluated, but with other settings: they are evaluated again."""
    broken = ("output = super()", "assert self.weight > 0, 'no weight'\n        output = super()")
    own_method(tmp_path, forward=broken)
    options = ("--trials", "1", "--budget", "1", "--seeds", "1", "--set")
    zero, two, three = (words(*options, f"method.weight={n}", methods="methods/own.py") for n in (0, 2, 3))
    assert fail(tmp_path, zero, code=1) == "1 of 1 runs failed; the page gives the reasons."
    assert list(moments(tmp_path)) == ["c/baselines"]
    ended = compare(tmp_path, two)
    assert ended.err.splitlines()[0].startswith("1 method, 2 jobs (0 done)")
    (row,) = results(tmp_path)["rows"]
    assert row["settings"]["method.weight"] == 2.0 and 0 < row["accuracy"]["linear"]["mean"] < 1
    assert "c was started with other settings (options.weight: 2.0 -> 3.0)" in fail(tmp_path, three)


def test_a_method_that_diverges_is_told_apart(tmp_path: Path) -> None:
    arguments = with_own(tmp_path, "--seeds", "2", luck=("lucky: bool = True", "lucky: bool = False"))
    ended = runs.run(tmp_path / "elsewhere", arguments, before=FORKED)
    assert check_failure(ended, code=1) == "1 of 4 runs failed; the page gives the reasons."
    rows = results(tmp_path)["rows"]
    assert [(Path(row["method"]).stem, row["seed"]) for row in rows if "error" in row] == [("own", 1)]
    assert "not finite in step 6 (bad steps in a row: 3)" in rows[3]["error"]
    assert all(row["accuracy"].keys() >= {"linear", "knn_20"} for row in rows[:3])
    assert "1 of 2 failed" in ended.out and "own, 2 epochs, seed 1: failed: The loss or its gradient" in ended.err
    assert "not finite" in (tmp_path / "c" / "compare.html").read_text()
    kept = moments(tmp_path)  # it is a result: the same settings would diverge again
    assert len(kept) == 5
    assert fail(tmp_path / "elsewhere", arguments, code=1) == "1 of 4 runs failed; the page gives the reasons."
    assert moments(tmp_path) == kept
