"""Gathers the results of finished runs into one small JSON beside the command that made them.

    python -m benchmarks.pages.collect benchmarks/results/demo.json "make demo" runs/demo runs/demo-1 runs/demo-2

Prints mean ± sd over the runs for every accuracy.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.report.tables import read_evaluations
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.runs.folder import ENVIRONMENT, SUMMARY, read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("command", help="what made the runs")
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    rows = [
        {
            "seed": read_config(run).seed,
            "summary": read_json(run / SUMMARY),
            "evaluation": asdict(next(one for one in read_evaluations(run) if one.is_own)),
            "environment": read_json(run / ENVIRONMENT),
        }
        for run in arguments.runs
    ]
    write_json(arguments.out, {"command": arguments.command, "runs": rows})
    for results in zip(*(row["evaluation"]["results"] for row in rows), strict=True):
        for key in results[0]["measures"]:
            value = summarise([result["measures"][key]["accuracy"] for result in results])
            print(f"{key:12s} {100 * value['mean']:.1f} ± {100 * value['sd']:.1f}  n={value['n']}")


if __name__ == "__main__":
    main()
