"""The results of an evaluation, for programs, terminals and notebooks."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # its package takes a second to import
    from matrix_ssl.report.tables import Evaluation, ResultTable, Score


class Results(Mapping[str, "Score"]):
    """An encoder's measures on one dataset, by name, such as ``results["knn_20"].accuracy``.

    Attributes:
        evaluation: the contents of the run's result files, baselines included.
        report: the page of the run; None if it was not written.
    """

    def __init__(self, evaluation: "Evaluation", report: Path | None):
        self.evaluation, self.report = evaluation, report
        self._scores = {name: score for one in evaluation.results for name, score in one.measures.items()}

    def __getitem__(self, name: str) -> "Score":
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def accuracies(self) -> dict[str, float]:
        """The accuracy of every measure, in [0, 1]."""
        return {name: score.accuracy for name, score in self.items()}

    @property
    def verdict(self) -> str:
        """In words, whether the accuracies are a gain over raw pixels and the untrained network."""
        from matrix_ssl.report.verdict import accuracy_verdict  # as above

        return accuracy_verdict(self.evaluation.results)

    def __repr__(self) -> str:
        return "\n\n".join([*map(_text, self.evaluation.tables()), self.verdict, *self.evaluation.remarks])

    def _repr_html_(self) -> str:
        return "".join(map(table_html, self.evaluation.tables())) + f"<p>{escape(self.verdict)}</p>"


def table_html(table: "ResultTable") -> str:
    """An HTML table for notebooks, with its title above and its note below."""
    heading = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in table.rows
    )
    return (
        f"<table><caption>{escape(table.title)}</caption><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"
        f"<small>{escape(table.note)}</small>"
    )


def _text(table: "ResultTable") -> str:
    """The title, and the rows in columns of equal width."""
    rows = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([table.title, *lines])
