"""Whether views by OpenCV cost accuracy: the trainings of ``precision`` in float32 again, with views by OpenCV.

    python -m benchmarks.experiments.view_backends --data-root DATA      (eight CPU minutes)
    python -m benchmarks.experiments.view_backends --only digits

Three seeds, linear accuracy on a fifth of the training images that was held out; the test images are not opened. The
other arm are the rows of ``precision_digits.json`` and ``precision_imagenette.json`` in float32, whose views are by
PyTorch. The rule, that of ``paths``, was fixed before the first run: the two agree on a dataset if their means differ
by no more than the larger of their standard deviations over seeds. A row that is there is not computed again. They are
in ``view_backends_digits.json`` and ``view_backends_imagenette.json``.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.experiments import precision, sweep
from benchmarks.harness import RESULTS
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.runs.files import read_json

ARM = "opencv: data.view_backend=opencv precision=float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=precision.DATASETS, default=list(precision.DATASETS))
    parser.add_argument("--data-root", type=Path, help="Folder with the images of Imagenette.")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="Where the JSON files are.")
    arguments = parser.parse_args()
    for name in arguments.only:
        out = arguments.folder / f"view_backends_{name}.json"
        words = [*precision.DATASETS[name], "--protocol", "linear", "--seeds", *precision.SEEDS, "--out", str(out)]
        sweep.main([*words, "--arm", ARM, *(["--data-root", str(arguments.data_root)] if arguments.data_root else [])])
        print(f"{name}: {verdict(*both_arms(name, arguments.folder))}")


def both_arms(name: str, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a dataset with views by PyTorch and by OpenCV, as far as they are there."""
    by_torch, path = read_json(RESULTS / f"precision_{name}.json")["rows"], folder / f"view_backends_{name}.json"
    by_opencv = read_json(path)["rows"] if path.exists() else []
    return [row for row in by_torch if row["arm"] == "float32"], [row for row in by_opencv if "accuracy" in row]


def verdict(by_torch: list[dict[str, Any]], by_opencv: list[dict[str, Any]]) -> str:
    """What the rule says of the rows of one dataset."""
    if min(len(by_torch), len(by_opencv)) < len(precision.SEEDS):
        return "not decided, rows are missing."
    here, there = (summarise([row["accuracy"]["linear"] for row in rows]) for rows in (by_opencv, by_torch))
    difference, spread = here["mean"] - there["mean"], max(here["sd"], there["sd"])
    decision = "they agree" if abs(difference) <= spread else "they do not agree"
    return f"{decision}: {100 * difference:+.2f} points, the spread over seeds is {100 * spread:.2f}."


if __name__ == "__main__":
    main()
