"""The commands of the README's first table, three seeds each: accuracies, baselines and CPU time.

    python -m benchmarks.experiments.first_results --data-root DATA --work FOLDER     (an hour and a half of one core)

DATA holds the packed copy of Imagenette, of which FOLDER gets a third as single files in class folders, with a text
file among them that is named .jpg. Every command is run in FOLDER as a user types it, in a process of its own with one
thread. A row that is there is not measured again, and a training that was stopped goes on. The tables of README.md and
docs/results.md follow from the rows, ``--tables`` writes them alone.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.first_day import timed
from benchmarks.harness import ROOT, command_line, save
from benchmarks.pages.tables import fill, table
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.report.formats import duration
from matrix_ssl.report.measures import BASELINES, MEASURES, measure_name
from matrix_ssl.report.tables import OWN, ProtocolResult, read_evaluations
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import ENVIRONMENT, SUMMARY

RESULT = "first_results.json"
SHARD = Path("imagenette128") / "imagenette128_train_0.npz"
SEEDS = (0, 1, 2)
RAW, UNTRAINED = BASELINES["raw_pixels"], BASELINES["random_network"]

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A command and what the tables say of it."""

    name: str
    images: str  # in words
    command: str  # as it is typed for seed 0
    heading: str = OWN  # of its row on the page
    page: str = ""  # the markers of its table on the page; cases may share one


_SETTINGS = "--set data.workers=1"
_IMAGENETTE = f"pretrain images_small --data imagenette128 --out runs/imagenette {_SETTINGS}"
_PHOTOS = f"pretrain images_small --data photos --out runs/photos --set epochs=3 {_SETTINGS}"
_PAPERS = "with `--method matrix_ssl`"
CASES = (
    Case("digits", "Handwritten digits, 8 px", "pretrain demo", page="digits"),
    Case("imagenette", "Imagenette (128 px copy) at 64 px, 15 epochs", _IMAGENETTE, page="imagenette"),
    Case("imagenette, matrix_ssl", "The same with the paper's method", f"{_IMAGENETTE} --method matrix_ssl", _PAPERS,
         page="imagenette"),
    Case("photos", "A folder of 3,159 JPEGs of Imagenette and one broken file, 3 epochs", _PHOTOS, page="photos"),
    Case("photos, matrix_ssl", "The same with the paper's method", f"{_PHOTOS} --method matrix_ssl", _PAPERS,
         page="photos"),
)  # fmt: skip


def main() -> None:
    parser = command_line(__doc__, RESULT)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work", type=Path, help="Folder of the images and the runs.")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="The cases to measure.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--tables", action="store_true", help="Measure nothing, write the tables.")
    arguments = parser.parse_args()
    rows: list[Row] = read_json(arguments.out)["rows"] if arguments.out.exists() else []
    if arguments.tables:
        write_tables(rows, ROOT)
        return
    work, data_root = arguments.work.resolve(), arguments.data_root.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "photos").exists():
        write_files(data_root / SHARD, work / "photos")
    for seed in arguments.seeds[:1] if arguments.quick else arguments.seeds:
        for case in CASES:
            if arguments.only and case.name not in arguments.only:
                continue
            if not any((row["case"], row["seed"]) == (case.name, seed) for row in rows):
                changes = ["--set", "epochs=1"] if arguments.quick else []
                rows.append(measure(case, seed, work, [*changes, "--data-root", str(data_root)]))
                save(arguments.out, {"rows": rows})


def write_files(shard: Path, folder: Path) -> None:
    """The packed JPEG files of a shard as files in class folders, and one that is none."""
    packed = np.load(shard)
    stream, ends, labels, classes = packed["jpeg"], packed["offs"], packed["y"], packed["classes"]
    for number, label in enumerate(labels):
        place = folder / str(classes[label]).replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05d}.jpg").write_bytes(stream[ends[number] : ends[number + 1]].tobytes())
    (place / "notes.jpg").write_text("not an image\n", "utf-8")


def measure(case: Case, seed: int, work: Path, options: list[str]) -> Row:
    """Trains and evaluates as a user does."""
    run = Path("runs") / f"{case.name.replace(', ', '-')}-{seed}"
    words = case.command.split()
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    trained = timed([*words, "--out", str(run), "--set", f"seed={seed}", *options], work)
    evaluated = timed(["evaluate", str(run), *options[-2:]], work)
    (evaluation,) = read_evaluations(work / run)
    accuracy: dict[str, dict[str, float]] = {}
    for result in evaluation.results:
        for name, scores in networks(result).items():
            accuracy.setdefault(name, {}).update({key: score.accuracy for key, score in scores.items()})
    return {
        "case": case.name,
        "seed": seed,
        "accuracy": accuracy,
        "cpu_seconds": {"pretrain": trained["cpu_seconds"], "evaluate": evaluated["cpu_seconds"]},
        "summary": read_json(work / run / SUMMARY),
        "environment": {k: v for k, v in read_json(work / run / ENVIRONMENT).items() if k not in ("command", "run")},
    }


def networks(result: ProtocolResult) -> dict[str, dict[str, Any]]:
    """The scores of the encoder and of the baselines, by the names that the tables have."""
    return {OWN: result.measures} | {BASELINES[key]: scores for key, scores in result.baselines.items()}


def write_tables(rows: list[Row], root: Path) -> None:
    """Fills README.md and docs/results.md."""
    measured = [case for case in CASES if any(row["case"] == case.name for row in rows)]
    head = ["Images", "Command", "1 label per class", "Linear", "20-NN", "Raw pixels, linear", "Untrained, linear",
            "CPU time"]  # fmt: skip
    lines = []
    for case in measured:
        own = [cell(rows, case, OWN, key) for key in ("low_shot_1", "linear", "knn_20")]
        others = [cell(rows, case, name, "linear") for name in (RAW, UNTRAINED)]
        seconds = [sum(row["cpu_seconds"].values()) for row in rows if row["case"] == case.name]
        lines.append([case.images, typed(case), *own, *others, duration(float(np.mean(seconds)))])
    fill(root / "README.md", "results", table(head, lines))
    for page in dict.fromkeys(case.page for case in measured):
        cases = [case for case in measured if case.page == page]
        found = [[case.heading, *(cell(rows, case, OWN, one.key) for one in MEASURES)] for case in cases]
        found += [[name, *(cell(rows, cases[0], name, one.key) for one in MEASURES)] for name in (RAW, UNTRAINED)]
        text = table(["", *(measure_name(one.key) for one in MEASURES)], found)
        fill(root / "docs" / "results.md", page, text)


def typed(case: Case) -> str:
    """The command as the table shows it."""
    if case.heading == _PAPERS:
        return f"the same {_PAPERS}"
    return "`make demo`" if case.name == "digits" else f"`matrix-ssl {case.command}`, then `evaluate`"


def cell(rows: list[Row], case: Case, network: str, key: str) -> str:
    """Mean ± standard deviation over the seeds in per cent, without a deviation that would be shown as zero."""
    found = summarise([row["accuracy"][network][key] for row in rows if row["case"] == case.name])
    deviation = f" ± {100 * found['sd']:.1f}" if found["sd"] and found["sd"] >= 0.0005 else ""
    return f"{100 * found['mean']:.1f}{deviation}"


if __name__ == "__main__":
    main()
