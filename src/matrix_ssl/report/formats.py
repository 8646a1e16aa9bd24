"""Numbers as text: a true minus sign, commas between thousands, and an en dash for what is absent."""

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matrix_ssl.config import flatten
from matrix_ssl.runs.terminal import printable

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """One number in a table as text, lines about its spread, and whether no other in its column is better."""

    heading: str
    value: str = ABSENT
    spread: tuple[str, ...] = ()
    best: bool = False


def markdown(text: str) -> str:
    """Untrusted text as one line of Markdown or a cell of its tables: no HTML, no new column, row or link."""
    line = printable(" ".join(text.split()))
    return re.sub(r"([\\`|\[\]])", r"\\\1", html.escape(line, quote=False))


def number(value: float) -> str:
    """Up to four significant digits."""
    return f"{value + 0.0:.4g}".replace("-", "−")  # -0.0 + 0.0 = 0.0


def fixed(value: float, digits: int, *, sign: str = "") -> str:
    """A number with so many decimals; one that rounds to zero has no sign, whatever ``sign`` asks for."""
    text = f"{value:{sign}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def whole(value: float | None) -> str:
    """An integer; empty for None."""
    return "" if value is None else f"{int(value):,}"


def rate(value: float | None) -> str:
    """So many a second: an integer or, below ten, one or two digits; empty for None."""
    return whole(value) if value is None or value >= 10 else f"{value:.2g}"


def percent(share: float | None, *, sign: str = "") -> str:
    """A share or accuracy between 0 and 1 in percent, with one decimal; ``sign="+"`` for differences."""
    return ABSENT if share is None else fixed(100 * share, 1, sign=sign)


def points(difference: float, *, sign: str = "") -> str:
    """A difference of accuracies in percentage points, with two decimals."""
    return fixed(100 * difference, 2, sign=sign)


def duration(seconds: float) -> str:
    """A time in a suitable unit: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested settings as pairs of a dotted key and its value."""
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in flatten(values)]


def common_folder(places: Sequence[str]) -> str:
    """The folder, with its separator, with which all of one or more places start; empty if there is none."""
    first, last = min(places), max(places)  # all others share what these share
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: max(first.rfind("/", 0, length), first.rfind(os.sep, 0, length)) + 1]


def device_name(environment: Mapping[str, Any]) -> str:
    """The device of a run by the most telling name on record; empty if none is."""
    return str(environment.get("device_name") or environment.get("device") or "")


def present(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    """The facts that are known, in order."""
    return [(name, text) for name, text in facts.items() if text]
