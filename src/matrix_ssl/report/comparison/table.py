"""The entries of a comparison as one table: for a terminal, as Markdown, and as rows for the page."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from matrix_ssl.report.comparison.data import Comparison, Entry, Score
from matrix_ssl.report.comparison.statistics import PairedDifference
from matrix_ssl.report.comparison.words import notes, p_value, verdict
from matrix_ssl.report.formats import ABSENT, Cell, duration, percent, points, rate, whole
from matrix_ssl.report.measures import BASELINES
from matrix_ssl.report.terminal import empty_table

_COSTS: tuple[tuple[str, str, Callable[[float], str], Callable[..., float]], ...] = (
    ("seconds", "time", duration, min),
    ("cpu_seconds", "CPU time", duration, min),
    ("images_per_second", "images/s", rate, max),
    ("peak_memory_mib", "peak MiB", whole, min),
)


@dataclass(frozen=True)
class Row:
    """An entry or a baseline; ``remark`` says whether it is the reference and how many of its runs failed."""

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
    """Entries by descending mean of the main measure, then the baselines; every row has the same columns."""
    entries = c.ranked
    baselines = {name: scores for key, name in BASELINES.items() if (scores := c.results.baselines.get(key))}
    baselines |= {public.name: public.accuracy for public in c.results.public if public.error is None}
    accuracy = [
        _accuracies(m.heading, [e.summary(m.key) for e in entries], [b.get(m.key) for b in baselines.values()])
        for m in c.measures
    ]
    nothing = [None] * len(baselines)
    costs = [
        _costs(heading, [*(entry.cost(key) for entry in entries), *nothing], text, prefer)
        for key, heading, text, prefer in _COSTS
    ]
    heads = [(e.label, _remark(c, e), str(len(e.runs)), c.difference(e, c.main.key)) for e in entries]
    heads += [(name, "baseline", ABSENT, None) for name in baselines]
    adjusted = {label: pair.adjusted_p for label, pair in c.against_reference.items()}
    return [
        Row(
            label, remark, Cell("seeds", seeds), [column[i] for column in accuracy],
            difference_cell(difference_heading(c), difference, usual=c.seeds, p=adjusted.get(label)),
            [column[i] for column in costs],
        )
        for i, (label, remark, seeds, difference) in enumerate(heads)
    ]  # fmt: skip


def difference_cell(heading: str, d: PairedDifference | None, *, usual: int, p: float | None = None) -> Cell:
    """A difference in percentage points, its interval and p value, and the number of seeds if it is not ``usual``."""
    if d is None:
        return Cell(heading)
    interval = () if d.low is None or d.high is None else (f"[{points(d.low)}, {points(d.high)}]",)
    count = () if d.n == usual else (f"n = {d.n}",)
    test = () if p is None else (p_value(p),)
    return Cell(heading, points(d.mean, sign="+"), interval + test + count)


def difference_heading(c: Comparison) -> str:
    """The heading of the column with paired differences."""
    return f"{c.main.heading} − {c.reference.label}" if c.reference else f"{c.main.heading}, difference"


def table_note(c: Comparison) -> str:
    """How to read the table."""
    public = [
        f" {one.name}: {one.reference}, a frozen public encoder, not trained here, SHA-256 {one.sha256[:12]}; "
        f"{one.tensors.rstrip('.')}; evaluated in {duration(one.seconds)}."
        for one in c.results.public
        if one.seconds is not None
    ]
    return (
        "Test images classified correctly from frozen features, in percent: mean ± standard deviation over the seeds. "
        f"{difference_heading(c)}: paired difference over common seeds in percentage points, with its 95% interval "
        "and its p value, adjusted by Holm's method over the pairs with the reference. "
        "Wall-clock time, CPU time, images per second and peak memory: means of the pre-training. The best of each "
        "column is bold." + "".join(public)
    )


def terminal(c: Comparison) -> Group:
    """Accuracies, then costs, then verdict and notes, for a terminal of 80 columns or more."""
    table = rows(c)
    accuracy, costs = _with_names("accuracy in %, difference in points"), _with_names("cost of the pre-training")
    for heading in ("n", *(cell.heading for row in table[:1] for cell in (*row.accuracy, row.difference))):
        accuracy.add_column(Text("\n".join(heading.rsplit(" ", 1))), justify="right", no_wrap=True)
    for _, heading, _, _ in _COSTS:
        costs.add_column(Text(heading), justify="right")
    for row in table:
        accuracy.add_row(_name(row), *map(_terminal_cell, (row.seeds, *row.accuracy, row.difference)))
        if row.remark != "baseline":
            costs.add_row(_name(row), *map(_terminal_cell, row.costs))
    return Group(accuracy, costs, *map(Text, [*verdict(c), *notes(c)]))


def markdown(c: Comparison) -> str:
    """The table in Markdown, with the best of each column in bold, followed by the table's note, verdict and notes."""
    table = rows(c)
    headings = ["method", *(cell.heading for row in table[:1] for cell in row.cells)]
    lines = [_line(map(_escape, headings)), _line(["---", *("--:" for _ in headings[1:])])]
    for row in table:
        remark = f" ({_escape(row.remark)})" if row.remark else ""
        lines.append(_line([_escape(row.label) + remark, *map(_markdown_cell, row.cells)]))
    sentences = [_escape(text) for text in [table_note(c), *verdict(c), *notes(c)]]
    return "\n".join(lines) + "\n\n" + "\n\n".join(sentences) + "\n"


def _accuracies(heading: str, entries: Sequence[Score | None], baselines: Sequence[Score | None]) -> list[Cell]:
    """A column; only entries have a spread over seeds."""
    column = [*entries, *(b and Score(b.mean) for b in baselines)]
    best = max((percent(s.mean) for s in column if s), key=float, default="")
    return [
        Cell(heading, percent(s.mean), (f"± {percent(s.sd)}",) if s.n > 1 else (), percent(s.mean) == best)
        if s else Cell(heading)
        for s in column
    ]  # fmt: skip


def _costs(
    heading: str, column: Sequence[float | None], text: Callable[[float], str], prefer: Callable[..., float]
) -> list[Cell]:
    known = [value for value in column if value is not None]
    best = text(prefer(known)) if known else ""
    return [Cell(heading) if v is None else Cell(heading, text(v), best=text(v) == best) for v in column]


def _remark(c: Comparison, entry: Entry) -> str:
    return ", ".join(filter(None, ["reference" if entry is c.reference else "", entry.remark]))


def _with_names(title: str) -> Table:
    table = empty_table(Text(title))
    table.add_column("", overflow="fold")
    return table


def _name(row: Row) -> Text:
    """The label, with a line break before the epochs, and the remark below."""
    return Text("\n".join([*row.label.split(", "), *filter(None, row.remark.split(", "))]))


def _terminal_cell(cell: Cell) -> Text:
    text = Text(cell.value, style="bold" if cell.best else "")
    for line in cell.spread:
        text.append("\n" + line.replace("± ", "±"), style="not bold")
    return text


def _markdown_cell(cell: Cell) -> str:
    return " ".join([f"**{cell.value}**" if cell.best else cell.value, *cell.spread])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line; an underscore within a word needs no escape."""
    return re.sub(r"[\\|`*<>\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))
