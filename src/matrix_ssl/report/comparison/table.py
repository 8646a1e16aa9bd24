"""The arms of a comparison as one table: for a terminal, as Markdown, and as rows for the page. Imports no torch."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from matrix_ssl.report.comparison.data import Arm, Comparison, Summary, read_arms
from matrix_ssl.report.comparison.statistics import PairedDifference
from matrix_ssl.report.comparison.words import notes, points, verdict
from matrix_ssl.report.run.data import finite_number, mapping
from matrix_ssl.report.run.figures import duration, whole
from matrix_ssl.report.run.results import BASELINES

ABSENT = "–"
_COSTS: tuple[tuple[str, str, Callable[[float], str], Callable[..., float]], ...] = (
    ("seconds", "time", duration, min),
    ("cpu_seconds", "CPU time", duration, min),
    ("images_per_second", "images/s", whole, max),
    ("peak_memory_mib", "peak MiB", whole, min),
)


@dataclass(frozen=True)
class Cell:
    """One number as text, lines on its spread, and whether no other in its column is better at this precision."""

    heading: str
    value: str = ABSENT
    spread: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Row:
    """An arm or a baseline; ``remark`` says that it is the reference and how many of its runs failed."""

    label: str
    remark: str
    seeds: Cell
    accuracy: Sequence[Cell]
    difference: Cell
    costs: Sequence[Cell]

    @property
    def cells(self) -> list[Cell]:
        """All columns after the first."""
        return [self.seeds, *self.accuracy, self.difference, *self.costs]


def rows(c: Comparison) -> list[Row]:
    """Arms by descending mean of the main measure, then the baselines; every row has the same columns."""
    arms, baselines = c.ranked, _baselines(c)
    accuracy = [
        _accuracies(m.heading, [*(arm.summary(m.key) for arm in arms), *(b.get(m.key) for b in baselines.values())])
        for m in c.measures
    ]
    costs = [_costs(heading, [arm.cost(key) for arm in arms], text, prefer) for key, heading, text, prefer in _COSTS]
    found = []
    for i, arm in enumerate(arms):
        seeds = Cell("seeds", str(len(arm.runs)))
        of_arm = [column[i] for column in accuracy], _main_difference(c, arm), [column[i] for column in costs]
        found.append(Row(arm.label, _remark(c, arm), seeds, *of_arm))
    for i, name in enumerate(baselines, start=len(arms)):
        nothing = [Cell(heading) for _, heading, _, _ in _COSTS]
        of_baseline = [column[i] for column in accuracy], Cell(difference_heading(c)), nothing
        found.append(Row(name, "baseline", Cell("seeds"), *of_baseline))
    return found


def difference_cell(heading: str, d: PairedDifference | None, *, usual: int) -> Cell:
    """A difference in percentage points and its interval; the number of seeds where it is not the ``usual`` one."""
    if d is None:
        return Cell(heading)
    interval = () if d.low is None or d.high is None else (f"[{points(d.low)}, {points(d.high)}]",)
    count = () if d.n == usual else (f"n = {d.n}",)
    return Cell(heading, points(d.mean, sign="+"), interval + count)


def difference_heading(c: Comparison) -> str:
    """The heading of the column of paired differences."""
    return f"{c.main.heading} − {c.reference.label}" if c.reference else f"{c.main.heading}, difference"


def table_note(c: Comparison) -> str:
    """How to read the table."""
    text = "Test images classified correctly from frozen features, in percent"
    if c.seeds > 1:
        text += "; mean ± standard deviation over the seeds"
    if c.reference:
        text += f". {difference_heading(c)}: paired difference over common seeds, in points"
        text += ", with its 95% interval" if c.seeds > 1 else ""
    return (
        f"{text}. Time on the clock and of the CPU, images a second and peak memory are means of the pre-training; "
        f"best of a column in bold."
    )


def terminal(results: Mapping[str, Any]) -> Group:
    """Accuracies, then costs, then what a reader must know, to print on a terminal of 80 columns or more.

    Args:
        results: what ``compare.json`` holds.
    """
    c = read_arms(results)
    found = rows(c)
    accuracy, costs = _table("accuracy in %, difference in points"), _table("cost of the pre-training")
    for heading in ("n", *(cell.heading for row in found[:1] for cell in (*row.accuracy, row.difference))):
        accuracy.add_column(Text("\n".join(heading.rsplit(" ", 1))), justify="right", no_wrap=True)
    for _, heading, _, _ in _COSTS:
        costs.add_column(Text(heading), justify="right")
    for row in found:
        accuracy.add_row(_name(row), *map(_terminal_cell, (row.seeds, *row.accuracy, row.difference)))
        if row.remark != "baseline":
            costs.add_row(_name(row), *map(_terminal_cell, row.costs))
    texts = [Text(text) for text in [*verdict(c), *notes(c)]]
    return Group(accuracy, costs, *texts)


def markdown(results: Mapping[str, Any]) -> str:
    """The table in Markdown, the best of each column bold, and below it what a reader must know.

    Args:
        results: what ``compare.json`` holds.
    """
    c = read_arms(results)
    found = rows(c)
    headings = ["method", *(cell.heading for cell in found[0].cells)] if found else ["method"]
    lines = [_line(map(_escape, headings)), _line(["---", *("--:" for _ in headings[1:])])]
    for row in found:
        remark = f" ({_escape(row.remark)})" if row.remark else ""
        lines.append(_line([_escape(row.label) + remark, *map(_markdown_cell, row.cells)]))
    sentences = [_escape(text) for text in [table_note(c), *verdict(c), *notes(c)]]
    return "\n".join(lines) + "\n\n" + "\n\n".join(sentences) + "\n"


def _baselines(c: Comparison) -> dict[str, dict[str, Summary]]:
    """Accuracies of raw pixels and of the untrained network, as far as they were measured."""
    found = {}
    for baseline in BASELINES:
        entries = mapping(mapping(c.results.get("baselines")).get(baseline.key))
        means = {key: finite_number(mapping(entry).get("mean")) for key, entry in entries.items()}
        scores = {key: Summary(mean, 0.0, 1) for key, mean in means.items() if mean is not None}
        if scores:
            found[baseline.heading] = scores
    return found


def _accuracies(heading: str, column: Sequence[Summary | None]) -> list[Cell]:
    best = max((f"{100 * s.mean:.1f}" for s in column if s), key=float, default="")
    cells = []
    for s in column:
        if s is None:
            cells.append(Cell(heading))
        else:
            value, spread = f"{100 * s.mean:.1f}", (f"± {100 * s.sd:.1f}",) if s.n > 1 else ()
            cells.append(Cell(heading, value, spread, value == best))
    return cells


def _costs(
    heading: str, column: Sequence[float | None], text: Callable[[float], str], prefer: Callable[..., float]
) -> list[Cell]:
    known = [value for value in column if value is not None]
    best = text(prefer(known)) if known else ""
    return [Cell(heading) if v is None else Cell(heading, text(v), best=text(v) == best) for v in column]


def _main_difference(c: Comparison, arm: Arm) -> Cell:
    return difference_cell(difference_heading(c), c.difference(arm, c.main.key), usual=c.seeds)


def _remark(c: Comparison, arm: Arm) -> str:
    failed = f"{len(arm.failures)} of {len(arm.failures) + len(arm.runs)} failed" if arm.failures else ""
    return ", ".join(filter(None, ["reference" if arm is c.reference else "", failed]))


def _table(title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold")
    return table


def _name(row: Row) -> Text:
    """The label, broken before the epochs, and the remark below."""
    return Text("\n".join([*row.label.split(", "), *filter(None, row.remark.split(", "))]))


def _terminal_cell(cell: Cell) -> Text:
    text = Text(cell.value, style="bold" if cell.best else "")
    for line in cell.spread:
        text.append("\n" + line.replace("± ", "±"), style="not bold")
    return text


def _markdown_cell(cell: Cell) -> str:
    return " ".join([f"**{cell.value}**" if cell.best else cell.value, *cell.spread])


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line; an underscore within a word needs no mark."""
    return re.sub(r"[\\|`*<>\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))
