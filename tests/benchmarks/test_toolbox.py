"""Speed and agreement of the toolbox: the scripts run, and the pages say what they measured."""

import json
import math
import sys

import pytest

from benchmarks.experiments import agreement
from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages import publish_agreement, publish_toolbox
from benchmarks.speed import toolbox


def run(script, path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--quick", "--out", str(path)])
    script.main()
    return json.loads(path.read_text("utf-8"))


def test_pages_are_of_the_results():
    results = json.loads((RESULTS / "agreement.json").read_text("utf-8"))
    assert results["shapes"].keys() == publish_agreement.PAGES.keys() == agreement.FAMILIES.keys()
    for family, page in publish_agreement.PAGES.items():
        text = (ROOT / "docs" / page).read_text("utf-8")
        assert publish_agreement.agreement(results, family).strip() in text, page
    if not (RESULTS / "toolbox.json").exists():
        pytest.skip("the toolbox has not been timed")
    timed = json.loads((RESULTS / "toolbox.json").read_text("utf-8"))
    assert publish_toolbox.section(timed).strip() in (ROOT / "docs" / "speed-functions.md").read_text("utf-8")


@pytest.mark.parametrize("name", toolbox.QUANTITIES)
def test_the_forms_of_a_quantity_have_one_value(name):
    """Float32; the mean of reptrix's is that of its packages, with 1e-7 in every share."""
    pair = toolbox.features(300, 30)
    values = [float(function(*pair)) for form, function in toolbox.QUANTITIES[name].items() if form != "floor"]
    assert len(values) > 1 and values == pytest.approx([values[0]] * len(values), rel=2e-4)


def test_what_is_left_out():
    jobs = toolbox.jobs(toolbox.SIZES)
    reasons = {(job["form"], job["n"], job["d"]): toolbox.left_out(job) for job in jobs}
    assert not reasons["torch-CKA", 10_000, 128] and "width" in reasons["torch-CKA", 10_000, 2048]
    assert "so many samples" in reasons["repitl", 50_000, 128] and not reasons["here", 1000, 2048]


@pytest.mark.slow
def test_the_quick_runs(tmp_path, monkeypatch):
    rows = run(toolbox, tmp_path / "toolbox.json", monkeypatch)["rows"]
    assert len(rows) == len(toolbox.jobs(toolbox.QUICK)) and all(row["seconds"] > 0 for row in rows)
    assert run(toolbox, tmp_path / "toolbox.json", monkeypatch)["rows"] == rows  # nothing is measured twice
    for row in run(agreement, tmp_path / "agreement.json", monkeypatch)["rows"]:
        assert math.isfinite(row["ours"])
