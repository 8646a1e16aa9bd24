"""What our own JSON may lack, and what is refused."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from matrix_ssl.errors import RunFolderError
from matrix_ssl.report.records import Number, Text, parse
from matrix_ssl.report.run.data import read_run
from tests.support.synthetic_run import make_run


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: Text = ""
    share: Number | None = None
    parts: tuple[Inner, ...] = ()
    more: dict[Text, Any] = field(default_factory=dict)


def test_what_is_missing_has_its_default_and_what_is_unknown_is_ignored() -> None:
    assert parse(Outer, {"future": 1}, Path("x.json"), remedy="") == Outer()
    values = {"name": "caf\udce9", "share": 1, "parts": [{"size": 2}], "more": {"a": None}}
    assert parse(Outer, values, Path("x.json"), remedy="") == Outer("caf\udce9", 1.0, (Inner(2),), {"a": None})


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ([], "the whole file"),
        ({"name": 3}, "name"),
        ({"share": float("nan")}, "share"),
        ({"share": 10**400}, "share"),
        ({"parts": [{"size": 2}, {}]}, "parts.1.size"),
        ({"parts": [{"size": 2.5}]}, "parts.0.size"),
        ({"more": None}, "more"),
    ],
)
def test_what_is_wrong_is_one_sentence(values: object, place: str) -> None:
    with pytest.raises(RunFolderError) as caught:
        parse(Outer, values, Path("x.json"), remedy="Write it again")
    assert str(caught.value).startswith(f"x.json is damaged at {place}: ")
    assert str(caught.value).endswith("; Write it again.") and "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"steps": "many"}, {"data": 3}, {"seconds": [1]}, {"finished": None}])
def test_a_summary_of_wrong_values_is_skipped_with_a_note(tmp_path: Path, values: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", lines=2)
    (run / "summary.json").write_text(json.dumps(values))
    data = read_run(run)
    assert data.summary.steps is None and "summary.json is damaged" in data.notes[0].text
