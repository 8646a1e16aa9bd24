"""Puts the results of a published comparison back into its folder, so that a further seed or method can be measured.

    python -m benchmarks.pages.restore cifar10_full runs/cifar10-full

The folder is that of the same comparison, started by its command with the seeds or methods to add and stopped again. It
then has the results of ``benchmarks/results/compare_NAME.json``, and the same command only runs what is missing, and
what failed. Every result keeps the machine and commit that it was measured with.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.pages.publish import rounded
from matrix_ssl import config as configuration
from matrix_ssl.compare.comparison import PLAN
from matrix_ssl.compare.job import RESULT, identify
from matrix_ssl.compare.plan import Job, Plan, baselines, runs
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
        SystemExit: the folder is that of another comparison, or none yet; or a job is not planned there, or would now
            have other settings, such as a new default of its method.
    """
    for name in (PLAN, COMPARISON):
        if not (folder / name).exists():
            raise SystemExit(f"{folder} has no {name}: start the comparison by its command, and stop it with Ctrl-C.")
    started = read_json(folder / COMPARISON)
    if different := [key for key in _ALIKE if rounded(started[key]) != published[key]]:
        raise SystemExit(f"{folder} is a different comparison: {', '.join(different)} differ.")
    plan = plan_of(folder, started)
    chosen = {row["method"]: row["settings"] for row in (started["tuning"] or {"rows": []})["rows"] if row["chosen"]}
    planned = {
        (method, job.epochs, job.number): job
        for method in plan.methods for job in runs(plan, method, chosen.get(method, {}))
    }  # fmt: skip
    results = [(baselines(plan), {"accuracy": published["baselines"]})]
    for row in published["rows"]:
        if "error" not in row:  # it may have been the machine's
            job = planned.get((row["method"], row["epochs"], row["seed"]))
            if job is None:
                raise SystemExit(
                    f"{folder} has no run of {row['method']} for {row['epochs']} epochs with seed {row['seed']}: start "
                    "the comparison with all methods and seeds of the published one."
                )
            check_settings(job, row["settings"])
            results.append((job, {key: value for key, value in row.items() if key not in _JOB}))
    missing = [(job, result) for job, result in results if not (folder / job.folder / RESULT).exists()]
    for job, result in missing:
        (folder / job.folder).mkdir(parents=True, exist_ok=True)
        mark = identify(job.stage, job.method, job.config)
        write_json(folder / job.folder / RESULT, result | {"job": mark})
    return len(missing)


def plan_of(folder: Path, started: dict[str, Any]) -> Plan:
    """The plan of a comparison that has been started; its results have the places of methods' files."""
    values = read_json(folder / PLAN)
    return Plan(**values | {
        "base": configuration.from_dict(values["base"]), "methods": tuple(started["methods"]),
        "reference": started["reference"], "tuning_settings": tuple(values["tuning_settings"]),
    })  # fmt: skip


def check_settings(job: Job, published: dict[str, Any]) -> None:
    """Raises SystemExit if a job's learning rate or an option of its method is not the published one."""
    now = rounded(json.loads(json.dumps(job.choices)))
    different = [f"{key}: {value} -> {now.get(key)}" for key, value in published.items() if now.get(key) != value]
    if different:
        raise SystemExit(f"{job.label} was published with other settings ({'; '.join(different)}).")


if __name__ == "__main__":
    main()
