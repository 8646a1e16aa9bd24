"""Whole steps beside other loops: what is counted, and that the scripts run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from benchmarks.pages import steps
from benchmarks.pages.tables import FUNCTIONS
from benchmarks.speed import gpu, loss_peak, step
from benchmarks.speed.loops import Case


def test_a_block_counts_its_steps_after_the_first_and_ratios_are_those_of_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(step.time, "monotonic", lambda: now)
    monkeypatch.setattr(step, "cpu_seconds", lambda: 2 * now)

    def loop(first: float, each: float) -> Iterator[None]:
        nonlocal now
        for number in range(100):
            now += first if number < 3 else each
            yield

    case = Case("tiny_resnet", 32, 8, workers=1)
    loops = {"ours": lambda: loop(50.0, 1.0), "published": lambda: loop(90.0, 4.0)}
    rounds = [step.measure(loops, case, turn=turn, seconds=16.0) for turn in range(2)]
    assert rounds == [{"ours": (8.0, 4.0), "published": (2.0, 1.0)}] * 2
    ours, published = sorted(step.summarise(rounds), key=lambda row: row["loop"])
    assert ours["over"] == "published" and ours["times_per_cpu_second"]["median"] == 4.0
    assert published["images_per_second"]["median"] == 2.0 and "over" not in published


def test_cpu_seconds_grow_with_work() -> None:
    before = step.cpu_seconds()
    x = torch.randn(300, 300)
    for _ in range(20):
        x = x @ x / x.abs().max()
    assert step.cpu_seconds() > before


@pytest.mark.slow
@pytest.mark.parametrize(("module", "words"), [(step, []), (gpu, ["--device", "cpu", "--eager"])])
def test_the_scripts_run(module: object, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightly")
    monkeypatch.setattr(sys, "argv", ["script", "--quick", "--out", str(tmp_path / "out.json"), *words])
    module.main()  # type: ignore[attr-defined]
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["environment"]["processor"]
    if module is step:
        assert {row["loop"] for row in content["cases"][0]["rows"]} > {"lightly, BYOL", "published"}
    else:
        assert content["not_begun"] == [] and {"losses", "views", "language head"} < content["rows"].keys()


def test_a_file_of_a_different_commit_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    assert harness.resume(path) == {}
    monkeypatch.setattr(harness, "environment", lambda **_: {"commit": "aaa"})
    harness.save(path, {"rows": [1]})
    assert harness.resume(path)["rows"] == [1] and len(harness.resume(path)["load_average"]) == 3
    monkeypatch.setattr(harness, "environment", lambda **_: {"commit": "bbb"})
    with pytest.raises(SystemExit, match="measured at commit aaa, and this is bbb"):
        harness.resume(path)


def test_a_file_of_different_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    harness.save(path, {"images": 10, "rows": [1]})
    assert harness.resume(path, {"images": 10})["rows"] == [1]
    with pytest.raises(SystemExit, match=r"out\.json: measured with images 10, and this is 20\."):
        harness.resume(path, {"images": 20})


def test_a_result_has_the_command_without_the_folders_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = harness.ROOT / "benchmarks" / "speed" / "step.py"  # as python -m gives it
    words = ["--data-root", str(tmp_path / "my images"), f"--out={tmp_path / 'a.json'}", "--set", "epochs=2", "page"]
    monkeypatch.setattr(sys, "argv", [str(program), *words])
    harness.save(tmp_path / "a.json", {})
    command = json.loads((tmp_path / "a.json").read_text())["command"]
    assert command == "python -m benchmarks.speed.step --data-root 'my images' --out=a.json --set epochs=2 page"


def test_the_peak_of_the_loss_is_that_of_the_resident_memory() -> None:
    """Two ways to measure it: tensors that are followed, and what the system says."""
    followed, resident = (
        json.loads((harness.RESULTS / f"{name}.json").read_text()) for name in ("loss_peak", "losses")
    )
    row = followed["rows"][0]
    peak = next(
        row["mib"] for row in resident["memory"] if (row["variant"], row["n"], row["d"]) == ("exact, auto", 1024, 2048)
    )
    assert max(phase["mib"] for phase in row["phases"].values()) == pytest.approx(peak, rel=0.05)
    row = loss_peak.measure(128, 256)
    assert list(row["phases"]) == ["products of the rows", "logarithm", "uniformity", "gradient by the rows"]
    assert {held["shape"] for held in row["highest"]} == {"128 x 128"}


def test_the_page_has_the_results() -> None:
    text = "".join((harness.ROOT / "docs" / name).read_text("utf-8") for name in ("speed.md", FUNCTIONS))
    for name, section in steps.SECTIONS.items():
        assert section(json.loads((harness.RESULTS / f"{name}.json").read_text())).strip() in text
    assert steps.precision_section(harness.RESULTS).strip() in text
    assert steps.view_backends_section(harness.RESULTS).strip() in text
