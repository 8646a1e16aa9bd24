"""A comparison goes into the repository as it was measured, and out of it again to be continued."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import ROOT
from benchmarks.pages import publish
from benchmarks.pages.restore import restore
from matrix_ssl.runs.files import read_json
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


def test_results_of_another_comparison_are_refused(published: Path, tmp_path: Path) -> None:
    kept = read_json(published / "compare_small.json")
    with pytest.raises(SystemExit, match="start the comparison"):
        restore(kept, tmp_path)
    with pytest.raises(SystemExit, match="budget differ"):
        restore(kept | {"budget": 2}, published / "c")
