"""A comparison goes into the repository as it was measured, and out of it again to be continued."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import ROOT
from benchmarks.pages import publish
from benchmarks.pages.restore import restore
from matrix_ssl.compare.plan import RATE, Plan, baselines, runs
from matrix_ssl.compare.schedule import read_result
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.training.configure import outline
from tests.support.comparisons import compare, job_folders, moments, results, words


def printed(*arguments: str | Path) -> str:
    """What a program of ``benchmarks.pages`` prints."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a comparison ``c`` of one seed, its JSON and its page."""
    folder = tmp_path_factory.mktemp("published")
    compare(folder, words("--seeds", "1", "--trials", "1", "--budget", "1"))
    printed(
        "benchmarks.pages.publish", folder / "c", "small", "Digits", "--results", folder, "--docs", folder
    )  # fmt: skip
    return folder


def test_what_is_published(published: Path) -> None:
    kept, measured = read_json(published / "compare_small.json"), results(published)
    assert [row["accuracy"] for row in kept["rows"]] == [publish.rounded(row["accuracy"]) for row in measured["rows"]]
    text = (published / "small.md").read_text()
    processor = measured["rows"][0]["environment"]["processor"]
    assert text.startswith("# Digits\n")
    assert f"Measured on an {processor}, cpu" in text
    for row in measured["rows"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['method']}"))
        assert f"{100 * row['accuracy']['linear']['mean']:.1f}" in line


def test_processors_of_all_rows(published: Path) -> None:
    kept = read_json(published / "compare_small.json")
    for row, processor in zip(kept["rows"], ("Intel", "AMD"), strict=True):
        row["environment"]["processor"] = processor
    assert publish.section(kept).splitlines()[2].startswith("Measured on an AMD and an Intel, cpu")


def test_a_published_comparison_gets_another_seed_elsewhere(published: Path, tmp_path: Path) -> None:
    # what a comparison leaves that was started and stopped
    shutil.copytree(published / "c", tmp_path / "c", ignore=shutil.ignore_patterns("runs", "baselines"))
    said = printed("benchmarks.pages.restore", "small", tmp_path / "c", "--results", published)
    assert said.startswith("3 results")
    before = moments(tmp_path)
    compare(tmp_path, words("--seeds", "2", "--trials", "1", "--budget", "1"))
    assert before.items() <= moments(tmp_path).items()
    assert {folder.name for folder in job_folders(tmp_path)} == {"seed-1"}
    rows, kept = results(tmp_path)["rows"], read_json(published / "compare_small.json")
    assert [row for row in rows if row["seed"] == 0] == kept["rows"]
    assert [row["method"] for row in rows if row["seed"] == 1] == ["matrix_ssl", "simsiam"]
    assert restore(kept, tmp_path / "c") == 0


OWN_VALUE = "simclr:temperature=0.5"
RATE_CHOSEN = 0.0035355339059327377  # published with seven digits


def begun(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """A plan of two seeds in a folder, as if started and stopped after its trials; and its results once published."""
    base = dataclasses.replace(outline("demo", None, ()), seed=0)
    plan = Plan(
        base=base, methods=("simsiam", OWN_VALUE), reference="simsiam", seeds=2, budget=4, rivals_budget=0, trials=2,
        tuning_budget=1, tuning_settings=(), measure="linear",
    )  # fmt: skip
    settings: dict[str, dict[str, Any]] = {"simsiam": {}, OWN_VALUE: {RATE: RATE_CHOSEN}}
    tuning = [{"method": method, "settings": one, "chosen": True} for method, one in settings.items()]
    started = {"recipe": "demo", "budget": 4, "rivals_budget": None, "measure": "linear", "data": {}, "settings": {},
               "methods": list(plan.methods), "reference": "simsiam", "tuning": {"rows": tuning}}  # fmt: skip
    folder.mkdir()
    write_json(folder / "plan.json", plan.describe())
    write_json(folder / "compare.json", started)
    rows = [
        {"method": method, "epochs": 4, "seed": seed, "settings": runs(plan, method, one)[seed].choices,
         "accuracy": {"linear": {"mean": 0.5 + seed / 8}}}
        for method, one in settings.items() for seed in range(2)
    ]  # fmt: skip
    published = started | {"baselines": {"raw_pixels": {"linear": {"mean": 0.25}}}, "rows": rows}
    return plan, publish.rounded(json.loads(json.dumps(published)))


def test_every_result_comes_back_to_its_own_job(tmp_path: Path) -> None:
    plan, published = begun(tmp_path / "c")
    published["rows"][1] = published["rows"][1] | {"error": "The process ended with signal 9: no output"}
    assert restore(published, tmp_path / "c") == 4
    assert read_result(tmp_path / "c", baselines(plan)) == {"accuracy": published["baselines"]}
    (first, failed), own = runs(plan, "simsiam", {}), runs(plan, OWN_VALUE, {RATE: RATE_CHOSEN})
    assert read_result(tmp_path / "c", failed) is None  # it is run again
    assert [read_result(tmp_path / "c", job) for job in (first, *own)] == [
        {"accuracy": {"linear": {"mean": mean}}} for mean in (0.5, 0.5, 0.625)
    ]


def test_results_of_other_settings_or_seeds_do_not_come_back(tmp_path: Path) -> None:
    """A method's default has changed since, which would mix two values in the seeds of one row."""
    _, published = begun(tmp_path / "c")
    published["rows"][2]["settings"]["method.hidden_dim"] = 7
    with pytest.raises(SystemExit, match=r"seed 0 was published with other settings \(method\.hidden_dim: 7 -> \d+\)"):
        restore(published, tmp_path / "c")
    published["rows"][2] |= {"seed": 5}
    with pytest.raises(SystemExit, match=r"has no run of simclr:temperature=0\.5 for 4 epochs with seed 5: start the"):
        restore(published, tmp_path / "c")
    assert not list((tmp_path / "c").rglob("result.json"))


def test_results_of_another_comparison_are_refused(published: Path, tmp_path: Path) -> None:
    kept = read_json(published / "compare_small.json")
    with pytest.raises(SystemExit, match="start the comparison"):
        restore(kept, tmp_path)
    with pytest.raises(SystemExit, match="budget differ"):
        restore(kept | {"budget": 2}, published / "c")
