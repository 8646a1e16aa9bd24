"""Whether views by OpenCV cost accuracy: the same trainings with views by PyTorch and by OpenCV.

    python -m benchmarks.experiments.view_backends --data-root DATA      (twenty CPU minutes)
    python -m benchmarks.experiments.view_backends --only digits

Datasets and trainings are those of ``precision``: three seeds, linear accuracy on a fifth of the training images that
was held out; the test images are not opened. The rule, that of ``paths``, was fixed before the first run: the two agree
on a dataset if their means differ by no more than the larger of their standard deviations over seeds. A row that is
there is not computed again. The rows are in ``view_backends_digits.json`` and ``view_backends_imagenette.json``.
"""

import argparse
from pathlib import Path

from benchmarks.experiments import paths, sweep
from benchmarks.experiments.precision import DATASETS, SEEDS
from benchmarks.harness import RESULTS
from matrix_ssl.runs.files import read_json

ARMS = ("torch", "opencv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--data-root", type=Path, help="Folder with the images of Imagenette.")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="Where the JSON files are.")
    arguments = parser.parse_args()
    for name in arguments.only:
        out = arguments.folder / f"view_backends_{name}.json"
        words = [*DATASETS[name], "--protocol", "linear", "--seeds", *SEEDS, "--out", str(out)]
        words += [word for arm in ARMS for word in ("--arm", f"{arm}: data.view_backend={arm}")]
        sweep.main(words + (["--data-root", str(arguments.data_root)] if arguments.data_root else []))
        print(f"{name}: {paths.agreement(read_json(out)['rows'], 'opencv', 'torch')}")


if __name__ == "__main__":
    main()
