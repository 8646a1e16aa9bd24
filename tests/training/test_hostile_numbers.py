"""Numbers that are not finite: never saved, and no end of a training that they only describe."""

import math
from pathlib import Path

import pytest
import torch

from matrix_ssl.training import diagnostics
from matrix_ssl.training.pretraining import _read


def test_a_diagnostic_that_fails_is_null() -> None:
    rows = torch.full((4, 3), math.nan)
    values, eigenvalues, failure = _read({"loss": torch.tensor(0.1)}, (rows, rows, rows))
    assert values.pop("loss") == torch.tensor(0.1).item()
    assert set(values) == set(diagnostics.NAMES) and set(values.values()) == {None}
    assert eigenvalues == [] and failure


def test_a_diagnostic_that_succeeds_has_the_same_names() -> None:
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    values, eigenvalues, failure = _read({}, (rows, rows, rows))
    expected, spectrum = diagnostics.describe(rows, rows, rows)
    assert values == {name: value.item() for name, value in expected.items()} and eigenvalues == spectrum.tolist()
    assert tuple(values) == diagnostics.NAMES and len(eigenvalues) == 3 and failure == ""


@pytest.mark.parametrize("missing", [None, math.nan])
def test_lines_without_diagnostics_raise_no_alarm(missing: float | None) -> None:
    line = dict.fromkeys(diagnostics.NAMES, missing)
    assert diagnostics.alarms([{"step": step, **line} for step in range(1, 9)]) == []


def test_statistics_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    from matrix_ssl.config import override
    from matrix_ssl.config.recipes import find_recipe
    from matrix_ssl.data import open_source
    from matrix_ssl.errors import Diverged
    from matrix_ssl.runs.display import Display
    from matrix_ssl.training import setup
    from matrix_ssl.training.engine import Engine

    settings = ("network.width=8", "batch_size=64", "method.hidden_dim=8", "method.output_dim=4")
    config = setup.complete(override(find_recipe("demo"), settings))
    source = open_source("digits", split="train", data_root=None)
    training = setup.prepare(config, source=source, device=torch.device("cpu"), display=Display(quiet=True))
    engine = Engine(training, tmp_path)
    engine.save()
    before = sorted(tmp_path.rglob("*"))
    norm = next(module for module in training.module.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var[0] = math.inf
    training.step = 5
    with pytest.raises(Diverged, match=r"running_var is not finite after step 5"):
        engine.save()
    assert sorted(tmp_path.rglob("*")) == before
