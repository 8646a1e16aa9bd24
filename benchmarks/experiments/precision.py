"""Whether bfloat16 on a CPU costs accuracy: the same trainings in float32 and in bfloat16, on digits and Imagenette.

    python -m benchmarks.experiments.precision --data-root DATA
    python -m benchmarks.experiments.precision --only digits

Three seeds, linear accuracy on a fifth of the training images that was held out; the test images are not opened. The
rule was fixed before the first run: bfloat16 costs nothing on a dataset if its mean is not below that of float32 by
more than the larger of the two standard deviations over seeds. A row that is there is not computed again, so the same
command goes on where it was stopped. The rows are in ``precision_digits.json`` and ``precision_imagenette.json``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.experiments import sweep
from benchmarks.harness import RESULTS
from matrix_ssl.evaluate.probes.accuracy import summarise

SEEDS = ("0", "1", "2")
ARMS = ("float32: precision=float32", "bfloat16: precision=bfloat16")
# of the digits all; of Imagenette so many images and epochs that both arms learn and a core is busy for hours, not days
DATASETS: dict[str, list[str]] = {
    "digits": ["--recipe", "demo"],
    "imagenette": [
        "--recipe", "images_small", "--data", "imagenette", "--images", "3000",
        "--set", "epochs=10", "--set", "data.workers=0",
    ],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--data-root", type=Path, help="Folder with the images of Imagenette.")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="Where the JSON files are.")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for every run.")
    arguments = parser.parse_args()
    for name in arguments.only:
        out = arguments.folder / f"precision_{name}.json"
        words = [*DATASETS[name], "--protocol", "linear", "--seeds", *SEEDS, "--out", str(out)]
        words += [word for setting in arguments.set for word in ("--set", setting)]
        words += [word for arm in ARMS for word in ("--arm", arm)]
        sweep.main(words + (["--data-root", str(arguments.data_root)] if arguments.data_root else []))
        print(f"{name}: {verdict(json.loads(out.read_text())['rows'])}")


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the rule says of the rows of one dataset."""
    values = {
        arm.partition(":")[0]: [
            row["accuracy"]["linear"] for row in rows if row["arm"] == arm.partition(":")[0] and "accuracy" in row
        ]
        for arm in ARMS
    }
    if any(len(found) < len(SEEDS) for found in values.values()):
        return "not decided, rows are missing."
    float32, bfloat16 = (summarise(values[name]) for name in ("float32", "bfloat16"))
    lost, noise = float32["mean"] - bfloat16["mean"], max(float32["sd"], bfloat16["sd"])
    decision = "bfloat16 costs nothing" if lost <= noise else "bfloat16 costs accuracy"
    return f"{decision}: {100 * lost:.2f} points are lost, the spread over seeds is {100 * noise:.2f}."


if __name__ == "__main__":
    main()
