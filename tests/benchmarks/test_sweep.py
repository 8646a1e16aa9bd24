"""The sweep on a few digits: arms that start from weights, what is measured without training, and resuming."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.experiments import sweep
from matrix_ssl.data import Source, open_source
from matrix_ssl.encoder import load_encoder
from matrix_ssl.evaluate.online import ask_neighbours
from matrix_ssl.runs.folder import read_config
from tests.support import runs
from tests.support.runs import BARE


def test_arms_that_start_from_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.succeed(tmp_path, runs.tiny("data.subset=128"), before=BARE)
    small = [word for setting in ("batch_size=32", "epochs=1", *runs.TINY[2:]) for word in ("--set", setting)]
    arms = ["--arm", "still: optimizer.learning_rate=0 optimizer.frozen_statistics=true", "--arm", "moved:"]
    words = ["--recipe", "demo", "--from", str(tmp_path / "r"), "--images", "200", "--protocol", "knn"]
    out = tmp_path / "sweep.json"
    monkeypatch.setattr(sys, "argv", ["sweep", *words, *small, *arms, "--out", str(out)])
    sweep.main()
    content = json.loads(out.read_text())
    start, still, moved = content["rows"]
    assert [row["arm"] for row in content["rows"]] == ["start", "still", "moved"]
    assert start["start"]["tensors"] == 36 and start["accuracy"] == still["accuracy"] and moved["steps"] == 5
    learn, judge = divide(open_source("digits", split="train", data_root=None))
    data = read_config(tmp_path / "r").data
    nearest, test = ask_neighbours(
        load_encoder(tmp_path / "r"), learn, judge, data, device=sweep.devices.choose_device("cpu")
    )
    assert start["accuracy"]["knn_20"] == pytest.approx(float((nearest == test.labels).double().mean()))

    monkeypatch.setattr(sweep, "run_once", lambda *_, **__: pytest.fail("an arm that is there is run again"))
    sweep.main()
    assert json.loads(out.read_text()) == content


def divide(source: Source) -> tuple[Source, Source]:
    few = sweep.choose_subset(source, 200, seed=sweep.SPLIT_SEED)
    return sweep.split_source(few, sweep.HELD_OUT, sweep.SPLIT_SEED)
