"""Writes time and memory of the toolbox beside other programs into docs/speed-functions.md, between its markers.

python -m benchmarks.pages.publish_toolbox      (reads benchmarks/results/toolbox.json)
"""

import textwrap
from statistics import median
from typing import Any

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages.tables import FUNCTIONS, fill, table
from benchmarks.speed.toolbox import is_kernel, jobs
from matrix_ssl.runs.files import read_json

Row = dict[str, Any]


def main() -> None:
    fill(ROOT / "docs" / FUNCTIONS, "toolbox", section(read_json(RESULTS / "toolbox.json")))


def section(results: Row) -> str:
    """The measurements as pairs of ours and another program, and what is left out."""
    rows: list[Row] = results["rows"]
    measured = {(row["quantity"], row["form"], row["n"], row["d"]): row for row in rows if "seconds" in row}
    pairs = [
        (measured[(quantity, "here", n, d)], row)
        for (quantity, form, n, d), row in measured.items()
        if form not in ("here", "floor") and (quantity, "here", n, d) in measured
    ]
    where = results["environment"]
    return (
        f"Measured at commit {where['commit']} with PyTorch {where['torch']} and NumPy {where['numpy']}, "
        f"{where['processor']}, one thread, float32.\n\n{wrap(summary(pairs))}\n\n{pair_table(pairs, measured)}\n"
        f"{wrap(left_out(rows))}\n\n{wrap(not_measured(results))}"
    )


def summary(pairs: list[tuple[Row, Row]]) -> str:
    """How much faster at the median, and where slower."""
    public = [there["seconds"] / here["seconds"] for here, there in pairs if not there["form"].startswith("NumPy")]
    own = [there["seconds"] / here["seconds"] for here, there in pairs if there["form"].startswith("NumPy")]
    slower = [
        f"{here['quantity']} at {here['n']} x {here['d']} ({there['form']})"
        for here, there in pairs
        if there["seconds"] < here["seconds"]
    ]
    return (
        f"Median speed-up over public programs: {median(public):.1f} ({len(public)} cases); over the shortest formula "
        f"in NumPy: {median(own):.1f} ({len(own)} cases). Slower: {'; '.join(slower) or 'none'}."
    )


def pair_table(pairs: list[tuple[Row, Row]], measured: dict[Any, Row]) -> str:
    """One row a pair; ``floor`` is the products and eigenvalues alone."""
    rows = []
    for here, there in sorted(pairs, key=lambda pair: (pair[1]["quantity"], pair[1]["form"])):
        floor = measured.get((here["quantity"], "floor", here["n"], here["d"]))
        rows.append([
            here["quantity"], there["form"], f"{here['n']}, {here['d']}",
            _ms(here), "" if floor is None else _ms(floor), _ms(there), f"{there['seconds'] / here['seconds']:.1f}",
            f"{here['peak_mib']:.0f}", f"{there['peak_mib']:.0f}",
        ])  # fmt: skip
    head = [
        "quantity",
        "compared with",
        "n, d",
        "here, ms",
        "floor, ms",
        "there, ms",
        "speed-up",
        "here, MiB",
        "there, MiB",
    ]
    return table(head, rows)


def left_out(rows: list[Row]) -> str:
    """What was not measured, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "left_out" in row:
            reasons.setdefault(row["left_out"], []).append(
                f"{row['quantity']} ({row['form']}) at {row['n']}, {row['d']}"
            )
    if not reasons:
        return ""
    return "Not measured: " + " ".join(f"{'; '.join(what)}: {why}." for why, what in reasons.items())


def not_measured(results: Row) -> str:
    """How many measurements the command has not come to."""
    keys = ("quantity", "form", "n", "d")
    done = {tuple(row[key] for key in keys) for row in results["rows"]}
    missing = [job for job in jobs(results["sizes"]) if tuple(job[key] for key in keys) not in done]
    sizes = dict.fromkeys(f"{job['n']}, {job['d']} ({'n x n kernels' if is_kernel(job) else 'all'})" for job in missing)
    return f"Not measured yet, {len(missing)} rows: {'; '.join(sizes)}." if missing else ""


def wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _ms(row: Row) -> str:
    return f"{1e3 * row['seconds']:.3g}"


if __name__ == "__main__":
    main()
