"""A run's lines of metrics as curves of bounded size: a file of millions of lines is read one line at a time."""

import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.untrusted import MOST_DIGITS, each_line, open_file, parse_json
from matrix_ssl.report.figures import Curve

MOST_POINTS = 2**14  # of a curve; if there are more values, each point stands for several
MOST_SPECTRA = 2**7
_PIECE = 2**11  # lines that are added to the curves together

Steps = NDArray[np.int64]
Values = NDArray[np.float64]


class Line(NamedTuple):
    """A line of ``metrics.jsonl``; values that are not finite numbers are NaN."""

    step: int
    values: Mapping[str, float]
    spectrum: Sequence[float]
    alarms: Sequence[str]
    run: str = ""  # its identity, on the first line


class Alarm(NamedTuple):
    """Alarms with the same wording: the text of the last, their number, and the steps of the first and the last."""

    text: str
    times: int
    first: int
    last: int


class Log:
    """What a run's page shows of its lines, which are added in the order of their steps.

    Attributes:
        lines: the number of lines.
        last_step: the step of the last line.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.last_step: int | None = None
        self._names: set[str] = set()
        self._series: dict[str, Series] = {}
        self._missing: Counter[str] = Counter()  # values that are not finite
        self._alarms: dict[str, Alarm] = {}
        self._spectra: list[tuple[int, Values]] = []  # of every ``_every``-th line that has one
        self._newest_spectrum: tuple[int, Values] | None = None
        self._every, self._with_spectrum = 1, 0
        self._piece: list[Line] = []  # not yet in the series

    def add(self, line: Line) -> None:
        """Adds the next line."""
        self.lines += 1
        self.last_step = line.step
        self._piece.append(line)
        for text in line.alarms:
            wording = re.sub(r"\d[\d.,e+-]*", "0", text)
            first, times = (old.first, old.times) if (old := self._alarms.get(wording)) else (line.step, 0)
            self._alarms[wording] = Alarm(text, times + 1, first, line.step)
        if values := [v for v in line.spectrum if math.isfinite(v)]:
            self._add_spectrum(line.step, np.sort(np.array(values))[::-1])
        if len(self._piece) == _PIECE:
            self._flush()

    def curve(self, key: str, label: str) -> Curve | None:
        """The finite values logged under ``key``; None if there are none."""
        self._flush()
        series = self._series.get(key)
        return None if series is None else series.curve(label, self._missing[key])

    def names(self) -> set[str]:
        """Names of all quantities that were logged, finite or not."""
        self._flush()
        return self._names

    def finite_names(self) -> list[str]:
        """Names of the quantities that have a finite value, in the order of their first one."""
        self._flush()
        return list(self._series)

    def spectra(self) -> list[tuple[int, Values]]:
        """(step, descending eigenvalues) of every line with a spectrum, or of evenly chosen ones if there are many."""
        newest = self._newest_spectrum
        if newest is None or self._spectra[-1][0] == newest[0]:
            return self._spectra
        return [*self._spectra, newest]

    def alarms(self) -> list[Alarm]:
        """Alarms of the lines; sentences that differ only in their numbers are one alarm."""
        return list(self._alarms.values())

    def _flush(self) -> None:
        piece, self._piece = self._piece, []
        keys = dict.fromkeys(key for line in piece for key in line.values)
        self._names |= keys.keys()
        if new := keys.keys() - self._series.keys():
            seen = (key for line in piece for key, value in line.values.items() if key in new and math.isfinite(value))
            self._series |= {key: Series() for key in dict.fromkeys(seen)}
        for key in keys:
            logged = [(line.step, line.values[key]) for line in piece if key in line.values]
            steps, values = (np.array(column) for column in zip(*logged, strict=True))
            finite = np.isfinite(values)
            self._missing[key] += len(values) - int(finite.sum())
            if finite.any():
                self._series[key].extend(steps[finite], values[finite])

    def _add_spectrum(self, step: int, values: Values) -> None:
        if self._with_spectrum % self._every == 0:
            self._spectra.append((step, values))
        self._newest_spectrum = step, values
        self._with_spectrum += 1
        if len(self._spectra) == MOST_SPECTRA:
            self._spectra, self._every = self._spectra[::2], 2 * self._every


class Series:
    """Finite values in the order of their steps; up to ``MOST_POINTS`` of them are kept as they are.

    Beyond that, every point stands for ``each`` values, a power of two: their mean, smallest and largest. The first and
    the last value stay exact.
    """

    def __init__(self) -> None:
        self.each = 1
        self._count = 0  # of points
        self._steps = np.empty(MOST_POINTS, np.int64)
        self._points = np.empty((3, MOST_POINTS))  # mean, least, largest
        self._rest: tuple[Steps, Values] = np.empty(0, np.int64), np.empty(0)  # fewer than ``each``
        self._ends: list[tuple[int, float]] = []

    def extend(self, steps: Steps, values: Values) -> None:
        """Adds values at later steps."""
        ends = (int(steps[0]), float(values[0])), (int(steps[-1]), float(values[-1]))
        self._ends = [self._ends[0] if self._ends else ends[0], ends[1]]
        steps, values = np.concatenate([self._rest[0], steps]), np.concatenate([self._rest[1], values])
        while len(steps) >= self.each:
            points = min(len(steps) // self.each, MOST_POINTS - self._count)
            size = points * self.each
            self._add(steps[:size].reshape(points, self.each), values[:size].reshape(points, self.each))
            steps, values = steps[size:], values[size:]
            if self._count == MOST_POINTS:
                self._halve()
        self._rest = steps, values

    def curve(self, label: str, missing: int) -> Curve:
        """The values with that label; ``missing`` as in ``Curve``."""
        steps, (mean, least, largest) = self._steps[: self._count], self._points[:, : self._count]
        if self.each == 1:
            return Curve(label, steps.copy(), mean.copy(), missing=missing)
        rest = [_together(self._rest[0][None], self._rest[1][None])] if len(self._rest[0]) else []
        parts = [
            (np.array([self._ends[0][0]]), *[np.array([self._ends[0][1]])] * 3),
            (steps, mean, least, largest),
            *rest,
            (np.array([self._ends[1][0]]), *[np.array([self._ends[1][1]])] * 3),
        ]
        x, y, low, high = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Curve(label, x, y, low, high, missing=missing, each=self.each)

    def _add(self, steps: Steps, values: Values) -> None:
        places = slice(self._count, self._count + len(steps))
        middle, *points = _together(steps, values)
        self._steps[places], self._points[:, places] = middle, np.stack(points)
        self._count += len(steps)

    def _halve(self) -> None:
        steps, (mean, least, largest) = self._steps.reshape(-1, 2), self._points.reshape(3, -1, 2)
        self._count //= 2
        self._steps[: self._count] = steps[:, 0] + (steps[:, 1] - steps[:, 0]) // 2
        halves = np.stack([(mean / 2).sum(1), least.min(1), largest.max(1)])
        self._points[:, : self._count] = halves
        self.each *= 2


def _together(steps: Steps, values: Values) -> tuple[Steps, Values, Values, Values]:
    """Middle step, and mean, smallest and largest value of each row of (p, k)."""
    middle = steps[:, 0] + (steps[:, -1] - steps[:, 0]) // 2
    return middle, (values / values.shape[1]).sum(1), values.min(1), values.max(1)


@dataclass
class Reading:
    """The log, and what was noticed while its lines were read."""

    log: Log
    damaged: int = 0
    first_damaged: int = 0  # number of the line, from 1
    owner: str = ""  # the first identity of a run on a line


def read_log(path: Path) -> Reading:
    """Reads ``metrics.jsonl``; OSError if that is impossible.

    A resumed run may repeat steps, in which case the later line counts and the lines are read a second time, in the
    order of their steps. In addition to the curves, a line takes 16 bytes of memory, or less than 100 when read again.
    """
    reading, steps, places, place, is_ascending = Reading(Log()), array("q"), array("q"), 0, True
    for number, raw in enumerate(each_line(path), 1):
        here, place = place, place + len(raw)
        if not raw.strip():
            continue
        line = parse_line(raw)
        if line is None:
            reading.damaged += 1
            reading.first_damaged = reading.first_damaged or number
            continue
        reading.owner = reading.owner or line.run
        is_ascending = is_ascending and (not steps or line.step > steps[-1])
        steps.append(line.step)
        places.append(here)
        if is_ascending:
            reading.log.add(line)
    if not is_ascending:
        reading.log = Log()
        for line in _in_order(path, np.array(steps), np.array(places)):
            reading.log.add(line)
    return reading


def _in_order(path: Path, steps: Steps, places: Steps) -> Iterator[Line]:
    """The last line of every step, ordered by step, given the places where lines begin."""
    order = np.argsort(steps, kind="stable")
    is_last = np.append(np.diff(steps[order]) > 0, True)
    with open_file(path) as file, BufferedReader(file) as lines:
        for place in places[order[is_last]]:
            lines.seek(int(place))
            line = parse_line(lines.readline())
            if line is not None:
                yield line


def parse_line(raw: bytes) -> Line | None:
    """A line of ``metrics.jsonl``; None if it is damaged."""
    try:
        line = parse_json(raw, digits=MOST_DIGITS)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or not 0 <= line["step"] < 2**62:
        return None
    owner = line.pop("run", "")
    alarms = [str(text) for text in _listed(line.pop("alarm", None))]
    spectrum = [_number(value) for value in _listed(line.pop("spectrum", None))]
    return Line(line["step"], {key: _number(value) for key, value in line.items()}, spectrum, alarms, str(owner))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _number(value: Any) -> float:
    """The value if it is a finite JSON number (not a Boolean), else NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        return math.nan
    return float(value)
