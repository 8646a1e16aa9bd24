"""Parameters of which some are enough in ``make test``, since the others go the same way."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def some(names: Iterable[str], *quick: str) -> list[Any]:
    """Names as parameters, all but the quick ones marked as slow."""
    names = list(names)
    assert set(quick) <= set(names), quick
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def some_of(cases: Mapping[str, Any], *quick: str) -> list[Any]:
    """The values of a table as parameters with their names, all but the quick ones marked as slow."""
    assert set(quick) <= set(cases), quick
    values = ((name, value if isinstance(value, tuple) and not hasattr(value, "_fields") else (value,))
              for name, value in cases.items())  # fmt: skip
    return [pytest.param(*value, id=name, marks=[] if name in quick else pytest.mark.slow) for name, value in values]
