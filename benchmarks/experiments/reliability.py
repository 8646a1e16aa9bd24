"""Every fault that runs survive, as often as ``docs/reliability.md`` says.

    python -m benchmarks.experiments.reliability                 (all rows at their full counts, then the page)
    python -m benchmarks.experiments.reliability --rows 1,4      (some rows)
    python -m benchmarks.experiments.reliability --fuzz          (100,000 damaged inputs of every parser, in pieces)
    python -m benchmarks.experiments.reliability --quick         (a few of each, whether it runs)

A row is done when its tests have passed; the same command goes on with the rows that are not done at this commit. Each
is a run of pytest on ``tests/faults``, in a process of its own; CPU seconds are those of it and of all that it started.
What a row did at another commit is done again, unless --any-commit is given.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness import ROOT, command_line, save
from benchmarks.pages.tables import fill, table
from matrix_ssl.runs.files import read_json
from tests.faults.counts import ROWS, Row, variable
from tests.faults.test_fuzzing import NAMES

INPUTS = 100_000  # of every parser
PIECES = 4
_TESTS = "tests/faults/test_fuzzing.py::test_every_answer_is_a_result_or_a_named_error"


def main() -> None:
    parser = command_line(__doc__, "reliability.json")
    parser.add_argument("--rows", default="", help="Numbers of rows, with commas between; all by default.")
    parser.add_argument("--fuzz", action="store_true", help="The parsers instead of the rows.")
    parser.add_argument("--any-commit", action="store_true", help="Keep what was done at another commit.")
    options = parser.parse_args()
    results = read_json(options.out) if options.out.exists() else {}
    done: dict[str, Any] = results.get("rows", {})
    commit = _commit()
    for key, tests, variables, facts in pieces(options) if options.fuzz else rows(options):
        before = done.get(key, {})
        is_done = before.get("passed") and all(before.get(name) == value for name, value in facts.items())
        if is_done and (options.any_commit or before.get("commit") == commit):
            Console().print(f"{key}: done before")
            continue
        done[key] = {**facts, **measure(tests, variables), "commit": commit}
        save(options.out, {"rows": done})
        verdict = "passed" if done[key]["passed"] else "FAILED"
        Console().print(f"{key}: {verdict} in {done[key]['cpu_seconds']:.0f} CPU s", markup=False)
    if not options.quick:
        fill(ROOT / "docs" / "reliability.md", "counts", page(read_json(options.out)))
    if not all(row["passed"] for row in done.values()):
        raise SystemExit("Some rows failed: their output is in the results.")


def rows(options: Any) -> list[tuple[str, list[str], dict[str, str], dict[str, Any]]]:
    """For each chosen row its key, the words of pytest, its variables, and what is recorded of it."""
    chosen = {int(number) for number in options.rows.split(",") if number}
    result = []
    for row in ROWS:
        if not chosen or row.number in chosen:
            times = row.quick if options.quick else row.full
            words = [*row.tests, "-k", row.words] if row.words else list(row.tests)
            if row.number == 15 and not options.quick:
                words = [*words, "-m", "slow"]  # 100 steps instead of 20
            facts = {"number": row.number, "fault": row.fault, "count": times}
            result.append((f"{row.number}", words, {variable(row.number): f"{times}"}, facts))
    return result


def pieces(options: Any) -> list[tuple[str, list[str], dict[str, str], dict[str, Any]]]:
    """As ``rows``, for pieces of the inputs of each parser."""
    inputs = 20 if options.quick else INPUTS // PIECES
    return [
        (
            f"fuzz {name} {seed}", [f"{_TESTS}[{name}]"],
            {"MATRIX_SSL_FUZZ": f"{inputs}", "MATRIX_SSL_FUZZ_SEED": f"{seed}"},
            {"parser": name, "seed": seed, "count": inputs},
        )
        for name in NAMES
        for seed in range(1 if options.quick else PIECES)
    ]  # fmt: skip


def measure(words: list[str], variables: dict[str, str]) -> dict[str, Any]:
    """Runs pytest: whether all passed, how many tests, and how long they took."""
    began, used = time.monotonic(), _cpu_seconds()
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--junitxml={report}", *words]
        # no limit of time: on a busy machine a row takes hours, and the tests have limits of their own for what hangs
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        code, output = ended.returncode, ended.stdout
        text = report.read_text() if report.exists() else ""
    counts = {name: int(number) for name, number in re.findall(r' (tests|skipped|failures|errors)="(\d+)"', text)}
    tests = 2 * counts.get("tests", 0) - sum(counts.values())
    return {
        "passed": code == 0 and tests > 0,
        "tests": tests,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(_cpu_seconds() - used, 1),
        **({} if code == 0 else {"output": output[-2000:]}),
    }


def _commit() -> str:
    """The commit of the package and its tests, marked when one of their files differs; results may."""
    describe = ["git", "describe", "--always", "--abbrev=12", "--exclude=*"]
    status = ["git", "status", "--porcelain", "--", "src", "tests", "benchmarks/experiments"]
    name, changes = (
        subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        for words in (describe, status)
    )
    return f"{name}-dirty" if changes else name


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def page(results: dict[str, Any]) -> str:
    """The table of the page."""
    done, where = results["rows"], results["environment"]
    lines = [_line(row, done.get(f"{row.number}")) for row in ROWS]
    parsers = [_fuzzed(name, [one for one in done.values() if one.get("parser") == name]) for name in NAMES]
    commits = sorted({one["commit"] for one in done.values()})
    return (
        f"Tested on {where['processor']}, Python {where['python']}, PyTorch {where['torch']}, at "
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}. CPU seconds include all processes that the tests "
        f"start.\n\n{table(['row', 'fault', 'times', 'shown', 'CPU s'], lines)}\n\n"
        f"{table(['parser', 'damaged inputs', 'shown', 'CPU s'], parsers)}"
    )


def _line(row: Row, done: dict[str, Any] | None) -> list[str]:
    if done is None:
        return [f"{row.number}", row.fault, f"{row.full:,}", "not yet", ""]
    verdict = "yes" if done["passed"] else "no"
    return [f"{row.number}", row.fault, f"{done['count']:,}", verdict, f"{done['cpu_seconds']:.0f}"]


def _fuzzed(name: str, done: list[dict[str, Any]]) -> list[str]:
    passed = [one for one in done if one["passed"]]
    verdict = "not yet" if not done else "yes" if len(passed) == len(done) else "no"
    total, seconds = sum(one["count"] for one in passed), sum(one["cpu_seconds"] for one in done)
    return [name, f"{total:,}", verdict, f"{seconds:.0f}" if done else ""]


if __name__ == "__main__":
    main()
