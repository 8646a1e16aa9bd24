"""Puts the results of a published comparison back into its folder, so that a further seed or method can be measured.

    python -m benchmarks.pages.restore cifar10_full runs/cifar10-full

The folder is that of the same comparison, started by its command with the seeds or methods to add and stopped again. It
then has the results of ``benchmarks/results/compare_NAME.json``, and the same command only runs what is missing. Every
result keeps the machine and commit that it was measured with.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.pages.publish import rounded
from matrix_ssl.compare.comparison import PLAN
from matrix_ssl.compare.job import RESULT
from matrix_ssl.report.comparison.data import RESULTS as COMPARISON
from matrix_ssl.runs.files import read_json, write_json

_ALIKE = ("recipe", "reference", "budget", "rivals_budget", "measure", "data", "settings", "tuning")
_JOB = ("method", "seed", "epochs", "settings")  # of a row: what was run, not what came out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("comparison", type=Path, help="the folder of the comparison, which has been started")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    count = restore(read_json(arguments.results / f"compare_{arguments.name}.json"), arguments.comparison)
    print(f"{count} results in {arguments.comparison}; run its command again for the others")


def restore(published: dict[str, Any], folder: Path) -> int:
    """Writes the results that the folder lacks and returns their number.

    Raises:
        SystemExit: the folder is that of another comparison, or none yet.
    """
    for name in (PLAN, COMPARISON):
        if not (folder / name).exists():
            raise SystemExit(f"{folder} has no {name}: start the comparison by its command, and stop it with Ctrl-C.")
    started = rounded(read_json(folder / COMPARISON))
    if different := [key for key in _ALIKE if started[key] != published[key]]:
        raise SystemExit(f"{folder} is a different comparison: {', '.join(different)} differ.")
    results = {folder / "baselines" / RESULT: {"accuracy": published["baselines"]}}
    for row in published["rows"]:
        run = folder / "runs" / f"{row['method']}-{row['epochs']}-epochs" / f"seed-{row['seed']}"
        results[run / RESULT] = {key: value for key, value in row.items() if key not in _JOB}
    missing = {path: result for path, result in results.items() if not path.exists()}
    for path, result in missing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    return len(missing)


if __name__ == "__main__":
    main()
