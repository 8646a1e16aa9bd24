"""The comparison in parts on a few digits: what is cut off goes on from its pieces with the bits of a whole run."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments import gpu_short
from benchmarks.experiments.gpu_short import Comparison
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.training.pretraining import PreTraining
from tests.support.stops import stop_once

SETTINGS = ["data.subset=96", "batch_size=32", "epochs=2", "network.width=8", "method.hidden_dim=16",
            "method.output_dim=8", "optimizer.warmup_epochs=0"]  # fmt: skip


def table(state: Path, *settings: str, methods: tuple[str, ...] = ("matrix_ssl", "simclr")) -> Comparison:
    return Comparison(
        state=state, work=state / "work", recipe="demo", methods=list(methods), seeds=1,
        settings=[*SETTINGS, *settings], compiled=False,
    )  # fmt: skip


def advance(comparison: Comparison, *, seconds: float = 600.0) -> Comparison:
    comparison.advance(data_root=None, device="cpu", seconds=seconds)
    return comparison


def test_a_part_that_ends_and_goes_on_elsewhere_is_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_short, "PROTOCOLS", ["knn"])
    whole = advance(table(tmp_path / "whole")).content
    assert list(whole["rows"]) == ["matrix_ssl-0", "simclr-0"] and whole["pieces"] == {}

    stop_once(monkeypatch, before=3)  # as the timer of a part does
    monkeypatch.setattr(gpu_short, "PIECE", 50_000)
    first = advance(table(tmp_path / "parts"))
    assert first.content["rows"] == {} and len(first.content["pieces"]["matrix_ssl-0"]) > 2
    first.show()
    assert "0 of 2 rows. Run the same command to go on." in capsys.readouterr().out
    pieces = sorted((tmp_path / "parts" / "pieces").iterdir())
    assert max(path.stat().st_size for path in pieces) == 50_000

    moved = tmp_path / "moved"  # to another machine, without the scratch folder
    shutil.copytree(tmp_path / "parts", moved, ignore=shutil.ignore_patterns("work"))
    found = advance(table(moved)).content
    for name, row in whole["rows"].items():
        assert found["rows"][name] == row
    assert found["pieces"] == {} and not list((moved / "pieces").iterdir())
    assert advance(table(moved), seconds=0).content == found

    with pytest.raises(ConfigError, match="the row of matrix_ssl-0 has different settings; choose a different --state"):
        table(moved, "epochs=3")
    pieces[0].write_bytes(b"")
    shutil.rmtree(tmp_path / "parts" / "work")
    with pytest.raises(DataError, match="the piece is missing or damaged; copy it again"):
        advance(table(tmp_path / "parts"))


def test_an_evaluation_that_was_cut_off_is_done_elsewhere_from_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_short, "PROTOCOLS", ["knn"])
    methods = ("simclr",)
    whole = advance(table(tmp_path / "whole", methods=methods)).content

    def cut_off(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gpu_short, "measure_encoder", cut_off)
        with pytest.raises(KeyboardInterrupt):
            advance(table(tmp_path / "parts", methods=methods))
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "parts", moved, ignore=shutil.ignore_patterns("work"))
    with monkeypatch.context() as patched:
        patched.setattr(PreTraining, "compute", None)  # nothing is trained
        assert advance(table(moved, methods=methods)).content == whole


def test_no_time_changes_nothing(tmp_path: Path) -> None:
    assert advance(table(tmp_path), seconds=0).content == {"rows": {}, "pieces": {}}
