"""Takes a finished comparison into the repository: its numbers and the page of docs/results.

    python -m benchmarks.pages.publish runs/compare-demo digits "Handwritten digits, 8 px"

Writes ``benchmarks/results/compare_NAME.json``, that is ``compare.json`` with curves only at the moments whose accuracy
was measured, and ``docs/results/NAME.md``: command, table, differences, trials, hardware, versions and commits. What
stands around the markers of the page stays.
"""

import shlex
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, page_command_line, without_folders
from benchmarks.pages.tables import fill, table
from matrix_ssl.report.comparison.data import RESULTS as COMPARISON
from matrix_ssl.report.comparison.data import parse_comparison
from matrix_ssl.report.comparison.table import markdown
from matrix_ssl.runs.files import read_json, write_json

CURVE = "knn_20_held_out"


def main() -> None:
    parser = page_command_line(__doc__, docs="docs/results")
    parser.add_argument("comparison", type=Path, help="the folder of the comparison")
    parser.add_argument("name")
    parser.add_argument("title")
    arguments = parser.parse_args()
    results = shortened(read_json(arguments.comparison / COMPARISON))
    write_json(arguments.results / f"compare_{arguments.name}.json", results)
    page = arguments.docs / f"{arguments.name}.md"
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"# {arguments.title}\n\n<!-- comparison:begin -->\n<!-- comparison:end -->\n", "utf-8")
    fill(page, "comparison", section(results))


def shortened(results: dict[str, Any]) -> dict[str, Any]:
    """Without folders in the command and the points of curves between the measured ones, and with seven digits."""
    results["command"] = shlex.join(map(without_folders, shlex.split(results["command"])))
    for row in results["rows"]:
        if "curve" in row:
            row["curve"] = [point for point in row["curve"] if CURVE in point]
    found: dict[str, Any] = rounded(results)
    return found


def rounded(value: Any) -> Any:
    """The value with seven digits of every number in it."""
    if isinstance(value, dict):
        return {key: rounded(member) for key, member in value.items()}
    if isinstance(value, list):
        return [rounded(member) for member in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def section(results: dict[str, Any]) -> str:
    """Everything that a reader needs to judge the comparison."""
    commits = sorted({row["environment"]["commit"] for row in results["rows"] if "environment" in row})
    lines = [
        f"`{results['command']}`\n",
        made_on(results, commits),
        markdown(parse_comparison(results, Path(RESULTS))),
    ]
    if results["tuning"]:
        lines.append(trials(results))
    return "\n".join(lines)


def made_on(results: dict[str, Any], commits: list[str]) -> str:
    """The sentence on the machine."""
    environment, precision = results["environment"], results["settings"]["precision"]
    processors = {f"an {row['environment']['processor']}" for row in results["rows"] if "environment" in row}
    return (
        f"Measured on {' and '.join(sorted(processors))}, {environment['device']}, with one thread per run and several "
        f"runs in parallel on a shared machine, precision {precision}, Python {environment['python']}, PyTorch "
        f"{environment['torch']}, commit {', '.join(commits)}.\n"
    )


def trials(results: dict[str, Any]) -> str:
    """The trials of every method and what was chosen."""
    tuning = results["tuning"]
    own = f" with {', '.join(tuning['settings'])}" if tuning["settings"] else ""
    rows = []
    for row in tuning["rows"]:
        settings = ", ".join(f"{k.partition('.')[2]} {shown(v)}" for k, v in row["settings"].items()) or "the recipe's"
        score = f"{100 * row['accuracy'][tuning['measure']]:.1f}" if "accuracy" in row else f"failed: {row['error']}"
        cells = [row["method"], settings, score]
        rows.append([f"**{cell}**" for cell in cells] if row["chosen"] else cells)
    return (
        f"## Trials\n\n{tuning['trials']} per method, {tuning['budget']} epochs each{own}, judged by "
        f"{tuning['measure']} accuracy in % on held-out training images; the selected trials are in bold.\n\n"
        + table(["method", "settings", "held-out accuracy"], rows)
    )


def shown(value: Any) -> str:
    """A number without digits that say nothing."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
