"""The lines of metrics as curves of bounded size."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from matrix_ssl.report.run import log
from matrix_ssl.report.run.log import MOST_POINTS, Line, Log, read_log
from matrix_ssl.runs.metrics import History


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_few_values_stay_as_they_are(tmp_path: Path) -> None:
    lines = [{"step": 3 * i, "loss": 1 / (i + 1), "late": None if i < 5 else float(i)} for i in range(20)]
    reading = read_log(write(tmp_path / "metrics.jsonl", lines))
    loss, late = reading.log.curve("loss", "Loss"), reading.log.curve("late", "late")
    assert loss is not None and late is not None and reading.log.curve("absent", "") is None
    assert (loss.label, loss.each, loss.low, loss.missing, late.missing) == ("Loss", 1, None, 0, 5)
    assert loss.x.tolist() == [3 * i for i in range(20)] and loss.y.tolist() == [1 / (i + 1) for i in range(20)]
    assert late.y.tolist() == [float(i) for i in range(5, 20)]
    assert reading.log.finite_names() == ["step", "loss", "late"] and reading.log.lines == 20


@pytest.mark.parametrize("count", [64, 65, 1000, 1024, 1337])
def test_many_values_are_points_of_neighbours(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_POINTS", 64)
    monkeypatch.setattr(log, "_PIECE", 7)
    values = np.random.default_rng(count).normal(size=count)
    mine = Log()
    for step, value in enumerate(values.tolist()):
        mine.add(Line(10 * step, {"loss": value}, [1.0, 0.5] if step % 2 else [], []))
    curve = mine.curve("loss", "loss")
    assert curve is not None and curve.low is not None and curve.high is not None and curve.each > 1
    assert 32 <= len(curve.y) <= 67
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, values[0], 10 * (count - 1), values[-1])
    groups = np.split(values, range(curve.each, count, curve.each))
    np.testing.assert_allclose(curve.y[1:-1], [group.mean() for group in groups], rtol=1e-12)
    np.testing.assert_array_equal(curve.low[1:-1], [group.min() for group in groups])
    np.testing.assert_array_equal(curve.high[1:-1], [group.max() for group in groups])
    assert np.all(np.diff(curve.x) >= 0)


def test_spectra_are_thinned_and_the_newest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_SPECTRA", 8)
    mine = Log()
    for step in range(1, 103):
        mine.add(Line(step, {}, [math.nan, 0.25, 0.75], []))
        assert len(mine.spectra()) <= 8 and mine.spectra()[-1][0] == step and mine.spectra()[0][0] == 1
    assert {b[0] - a[0] for a, b in zip(mine.spectra()[:-1], mine.spectra()[1:-1], strict=False)} == {16}
    assert mine.spectra()[-1][1].tolist() == [0.75, 0.25]


def test_steps_out_of_order_count_once_the_later_line(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lines = [
        {"step": int(step), "loss": float(value)}
        for step, value in zip(draw.integers(0, 60, 200), draw.random(200), strict=True)
    ]
    by_step = {line["step"]: line["loss"] for line in lines}
    curve = read_log(write(tmp_path / "metrics.jsonl", lines)).log.curve("loss", "loss")
    assert curve is not None and dict(zip(curve.x.tolist(), curve.y.tolist(), strict=True)) == by_step
    assert curve.x.tolist() == sorted(by_step)


@pytest.mark.parametrize("shuffled", [False, True])
def test_memory_is_that_of_the_curves(tmp_path: Path, shuffled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_POINTS", 64)
    monkeypatch.setattr(log, "_PIECE", 16)
    peaks = []
    for count in (300, 1300):
        steps = np.random.default_rng(0).permutation(count) if shuffled else np.arange(count)
        lines = [{"step": int(step), **{f"term_{k}": k * 0.5 + step for k in range(10)}} for step in steps]
        path = write(tmp_path / f"{count}.jsonl", lines)
        del lines
        tracemalloc.start()
        read_log(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1000 * (100 if shuffled else 32)  # bytes; ten numbers of Python alone are 240


def test_a_history_has_the_lines_that_alarms_look_at() -> None:
    lines = [
        {"step": step, "alarm": [f"Kind {step % 3}: text {step}"]} if step > 4 else {"step": step} for step in range(20)
    ]
    for count in range(20):
        history = History()
        for line in lines[:count]:
            history.add(line)
        assert len(history) == count
        assert history.alarms == {f"Kind {step % 3}" for step in range(5, count)}
        for start in (0, 1):
            expected = [*lines[:count][start : start + 1], *lines[:count][max(start + 1, count - 5) :]]
            assert history.ends(5, start=start) == expected
    assert MOST_POINTS > 10_000  # a run of ten thousand lines is shown as it is
