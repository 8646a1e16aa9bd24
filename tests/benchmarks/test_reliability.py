"""The command that shows every fault: what it runs, when it goes on, and what it writes."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments import reliability
from matrix_ssl.runs.files import read_json
from tests.faults.counts import ROWS, count, variable

ROOT = Path(__file__).parents[2]


def test_the_rows_are_numbered_and_their_tests_exist() -> None:
    assert [row.number for row in ROWS] == list(range(1, 17))
    for row in ROWS:
        assert 0 < row.quick <= row.full
        for name in row.tests:
            text = (ROOT / name).read_text()
            assert f"_{row.words}" in text if row.words != "test_stored_trajectory" else "test_conformance" in name, row


def test_counts_follow_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(1) == ROWS[0].quick
    monkeypatch.setenv(variable(1), "200")
    assert count(1) == 200


@pytest.fixture
def pytest_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The calls of pytest, none of which is made; the second one fails."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def run(words: list[str], variables: dict[str, str]) -> dict[str, Any]:
        calls.append((words, variables))
        return {"passed": len(calls) != 2, "tests": 1, "seconds": 1.0, "cpu_seconds": 2.0}

    monkeypatch.setattr(reliability, "measure", run)
    return calls


def test_a_row_that_has_passed_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytest_runs: list[tuple[list[str], dict[str, str]]]
) -> None:
    out = tmp_path / "r.json"
    monkeypatch.setattr(sys, "argv", ["reliability", "--quick", "--rows", "1,2,15", "--out", str(out)])
    with pytest.raises(SystemExit, match="Some rows failed"):
        reliability.main()
    assert [variables for _, variables in pytest_runs] == [
        {variable(1): "3"}, {variable(2): "3"}, {variable(15): "1"}
    ]  # fmt: skip
    reliability.main()  # the second one again
    assert len(pytest_runs) == 4 and pytest_runs[3][1] == {variable(2): "3"}
    results = read_json(out)
    assert results["environment"]["processor"] and all(row["passed"] for row in results["rows"].values())
    text = reliability.page(results)
    assert "| 1 | kill -9 at a random moment, one process | 3 | yes | 2 |" in text and "| 3 |" in text


def test_pieces_have_seeds_of_their_own() -> None:
    pieces = reliability.pieces(argparse.Namespace(quick=False))
    assert len({key for key, *_ in pieces}) == len(pieces) == len(reliability.NAMES) * reliability.PIECES
    assert sum(facts["count"] for *_, facts in pieces) == reliability.INPUTS * len(reliability.NAMES)


@pytest.mark.slow
def test_a_failed_test_is_a_failed_row(tmp_path: Path) -> None:
    path = tmp_path / "test_x.py"
    path.write_text("import os\ndef test_x():\n    assert os.environ['X'] == '1'\n")
    good, bad = (reliability.measure([str(path)], {"X": value}) for value in ("1", "2"))
    assert good["passed"] and good["tests"] == 1 and "output" not in good
    assert not bad["passed"] and "test_x" in bad["output"]
