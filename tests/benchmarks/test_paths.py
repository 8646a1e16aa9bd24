"""The plain path beside the fast one: what the rule decides, and that the script runs and resumes."""

import json
from pathlib import Path

import pytest

from benchmarks.experiments import paths


def rows(plain: list[float], fast: list[float]) -> list[dict]:
    return [
        {"arm": arm, "seed": seed, "accuracy": {"linear": value}}
        for arm, values in {"plain": plain, "fast": fast}.items() for seed, value in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("plain", "fast", "agree"),
    [
        ([0.90, 0.92, 0.94], [0.92, 0.94, 0.95], True),
        ([0.90, 0.92, 0.94], [0.89, 0.91, 0.92], True),
        ([0.90, 0.91, 0.92], [0.93, 0.94, 0.95], False),
        ([0.93, 0.94, 0.95], [0.90, 0.91, 0.92], False),
    ],
)
def test_the_rule(plain: list[float], fast: list[float], agree: bool) -> None:
    decided = paths.agreement(rows(plain, fast), "fast", "plain")
    assert decided is not None and decided["agree"] is agree
    assert paths.agreement(rows(plain, fast[:2]), "fast", "plain") is None


@pytest.mark.slow
def test_the_script_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "SEEDS", (0,))
    monkeypatch.setitem(paths.DATASETS, "digits", {"image_size": 8, "images": 200, "epochs": 1, "batch_size": 32})
    paths.main(["--folder", str(tmp_path)])
    content = json.loads((tmp_path / "paths_digits.json").read_text())
    assert [row["arm"] for row in content["rows"]] == list(paths.ARMS)
    assert all(row["accuracy"]["linear"] > 0.3 for row in content["rows"])
    monkeypatch.setattr(paths, "train", lambda *_: pytest.fail("a row that is there is computed again"))
    paths.main(["--folder", str(tmp_path)])
