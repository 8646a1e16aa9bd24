"""The first day with a folder of a thousand JPEG files, with a stopwatch: from the first command to the lasso.

    python -m benchmarks.experiments.first_day --data-root DATA --work FOLDER [--set epochs=20]

DATA holds the packed copy of Imagenette. FOLDER gets ``photos`` with the images, a hundred of each class, as files, and
then what a new user types is run there: ``pretrain``, ``evaluate`` and ``explore``, each in a process of its own, with
the settings that the first of them chooses unless ``--set`` changes them. Measured are seconds of the clock and of the
CPU, by the user and system time of the processes; where other programs run, the latter say more. Then the page of
``explore`` is opened in Chromium and a lasso drawn. A command that has been measured is not run again.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.harness import command_line, save
from benchmarks.speed import explore_page
from matrix_ssl.data import open_source
from matrix_ssl.data.randomness import permutation
from matrix_ssl.runs.files import read_object, write_json
from tests.support.browser import CHROMIUM, DRIVER, open_browser

_ORDER = 0xF1D  # coordinate of the choice of images
_MEASURED = "measured.json"


def write_photos(folder: Path, source: Any, count: int) -> int:
    """Writes as many JPEG files of every class, in folders of their names; how many there are."""
    labels, classes = source.labelled()
    order = permutation(len(source), _ORDER)
    written = 0
    for label, name in enumerate(classes):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(order[labels[order] == label][:count]):
            pixels = source.read(int(row)).expand(3, -1, -1).permute(1, 2, 0).numpy()
            Image.fromarray(np.ascontiguousarray(pixels)).save(place / f"{number:03d}.jpg", quality=95)
            written += 1
    return written


def commands(settings: list[str]) -> dict[str, list[str]]:
    """What is typed, by the name of the step."""
    changes = [word for setting in settings for word in ("--set", setting)]
    return {
        "pretrain": ["pretrain", "--data", "photos", "--out", "run", *changes],
        "evaluate": ["evaluate", "run"],
        "explore": ["explore", "run", "--data", "photos", "--out", "page"],
    }


def timed(words: list[str], folder: Path) -> dict[str, Any]:
    """Runs a command in a folder; raises CalledProcessError where it fails."""
    before, started = psutil.Process().cpu_times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "matrix_ssl", *words], cwd=folder, check=True)
    after, seconds = psutil.Process().cpu_times(), time.perf_counter() - started
    cpu = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return {"command": " ".join(["matrix-ssl", *words]), "seconds": seconds, "cpu_seconds": cpu}


def lasso(page: Path) -> dict[str, Any] | None:
    """How fast the page opens and answers; None without Chromium."""
    if not (CHROMIUM and DRIVER):
        return None
    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile), webgl=True) as browser:
        return explore_page.measure(browser, page.resolve(), rounds=2)


def main() -> None:
    """Writes the images, runs what is missing, prints and writes."""
    parser = command_line(__doc__, "first_day.json")
    parser.add_argument("--data-root", type=Path, help="The folder of the packed images.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for images and results.")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    name, each = ("digits", 4) if options.quick else (str(options.data_root / "imagenette128"), 100)
    settings = ["epochs=1", *options.settings] if options.quick else options.settings
    count = write_photos(options.work / "photos", open_source(name, split="train", data_root=None), each)
    path = options.work / _MEASURED
    steps: dict[str, Any] = read_object(path) if path.exists() else {}
    for step, words in commands(settings).items():
        if step not in steps:
            steps[step] = {**timed(words, options.work), "load_average": os.getloadavg()[0]}
            write_json(path, steps)
        print(f"{step}: {steps[step]['seconds']:.0f} s, {steps[step]['cpu_seconds']:.0f} s of the CPU")
    result = {"images": count, "settings": settings, "steps": steps}
    save(options.out, {**result, "page": None if options.quick else lasso(options.work / "page" / "index.html")})


if __name__ == "__main__":
    main()
