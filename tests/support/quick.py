"""Parameters of which some are enough in ``make test``, since the others go the same way."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def some(names: Iterable[str], *quick: str) -> list[Any]:
    """Names as parameters, all but the quick ones marked as slow."""
    names = list(names)
    assert set(quick) <= set(names), quick
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def some_of(cases: Mapping[str, tuple[Any, ...]], *quick: str) -> list[Any]:
    """The rows of a table as parameters with their names, all but the quick ones marked as slow."""
    assert set(quick) <= set(cases), quick
    return [pytest.param(*row, id=name, marks=[] if name in quick else pytest.mark.slow) for name, row in cases.items()]


def cross(rows: Iterable[Any], columns: Iterable[Any], *, row: Any, column: Any) -> list[Any]:
    """All pairs as parameters; those neither in the quick row nor in the quick column are marked as slow."""
    rows, columns = list(rows), list(columns)
    assert row in rows and column in columns, (row, column)
    return [
        pytest.param(r, c, marks=[] if r == row or c == column else pytest.mark.slow) for r in rows for c in columns
    ]
