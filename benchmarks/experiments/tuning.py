r"""Trainings with few labels from public weights, way by way: which of them are better than a linear classifier?

    python -m benchmarks.experiments.tuning --from WEIGHTS --data cifar10 --data-root DATA --labelled 300 --judge 600 \
        --out tuning.json --way "public:as before:0.02,0.1" --way "public:regression, kept:0.002,2"

Training images alone are read: some are labelled, others judge. Every way is trained by ``fine_tune.tune`` with one
pair of rates; "linear" is a logistic regression on the frozen features of the labelled ones, with the penalty that the
fine-tuning begins with. A row that is already in the output is not computed again, so the command resumes.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import command, resume
from matrix_ssl.compare.worth.plan import TuningSettings
from matrix_ssl.config import DataConfig, ViewConfig
from matrix_ssl.data import Source, open_source
from matrix_ssl.data.sources import choose_subset, split_source
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.encoder.opening import open_encoder
from matrix_ssl.errors import Diverged
from matrix_ssl.evaluate.trained import supervised
from matrix_ssl.evaluate.trained.fine_tune import FineTune, tune
from matrix_ssl.evaluate.trained.first_head import frozen_features
from matrix_ssl.evaluate.trained.supervised import ClassifierTraining
from matrix_ssl.runs import devices
from matrix_ssl.runs import environment as run_environment
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import write_json

CPU = torch.device("cpu")


def ways(encoder: float, head: float) -> dict[str, dict[str, Any]]:
    """Settings of ``FineTune`` by name; rates for the batch that is used."""
    return {
        "random head, batch": {"rates": ((encoder, head),), "scale": "unit"},
        "regression, batch": {"rates": ((encoder, head),), "scale": "unit", "head": "regression"},
        "random head, kept": {"rates": ((encoder, head),), "scale": "unit", "statistics": "kept"},
        "regression, kept": {
            "rates": ((encoder, head),), "scale": "unit", "head": "regression", "statistics": "kept",
        },
        "as before": {"rates": ((encoder, head),), "decay": "epoch"},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="reference", required=True, help="public weights")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--labelled", type=int, nargs="+", default=[800])
    parser.add_argument("--judge", type=int, default=1000, help="images that the accuracy is about")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--way", action="append", required=True, metavar="START:NAME:ENCODER,HEAD",
        help="public or random, a key of ways(), and the rates",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    opened = open_encoder(arguments.reference)
    data = dataclasses.replace(opened.config.data, image_size=arguments.image_size, crop_fraction=1.0, workers=0)
    fresh, width = initialise_encoder(dataclasses.replace(opened.config, data=data, seed=arguments.seed))
    starts = {"public": opened.encoder, "random": fresh}
    images = open_source(arguments.data, split="train", data_root=arguments.data_root)
    images = choose_subset(images, max(arguments.labelled) + arguments.judge, seed=0)
    learn, judge = split_source(images, arguments.judge / len(images), 0)
    head = {
        "from": Path(arguments.reference).name, "data": arguments.data, "image_size": arguments.image_size,
        "judge": arguments.judge, "batch_size": arguments.batch_size,
    }  # fmt: skip
    rows = resume(arguments.out, head).get("rows", [])
    for count in arguments.labelled:
        labelled = choose_subset(learn, count, seed=arguments.seed)
        for way in ["public:linear:0,0", "random:linear:0,0", *arguments.way]:
            key = {"labelled": len(labelled), "steps": arguments.steps, "seed": arguments.seed, "way": way}
            if any(key.items() <= row.items() for row in rows):
                continue
            start, name, pair = way.split(":")
            encoder, head = (float(one) for one in pair.split(","))
            begun = time.process_time()
            if name == "linear":
                row = linear(starts[start], labelled, judge, data)
            else:
                size = min(arguments.batch_size, len(labelled))
                tuning = TuningSettings(
                    steps=arguments.steps, batch_size=size, view=ViewConfig(crop_scale=(0.5, 1.0), flip=0.5)
                )
                one = tuning.for_labels(len(labelled), 2)[-1]
                changes = ways(encoder * 256 / size, head * 256 / size)[name]
                row = train(starts[start], width, labelled, judge, data, dataclasses.replace(one, **changes))
            rows.append(key | row | {"cpu_seconds": round(time.process_time() - begun, 1)})
            print(rows[-1], flush=True)
            write(arguments.out, head, rows)


def linear(encoder: nn.Module, labelled: Source, judge: Source, data: DataConfig) -> dict[str, Any]:
    """Accuracy of a logistic regression on frozen features, and their scale, which bounds the rate of a head."""
    frozen = frozen_features(encoder, labelled, data, device=CPU, statistics="kept")
    weight, bias = frozen.regression()
    features = frozen_features(encoder, judge, data, device=CPU, statistics="kept").features
    answers = (features.vectors[""].double() @ weight.double().mT + bias).argmax(1)
    x = frozen.features.vectors[""].double()
    return {
        "accuracy": float((answers == features.labels).double().mean()),
        "square_norm": frozen.square_norm,
        "largest_eigenvalue": float(torch.linalg.matrix_norm(x, 2) ** 2 / len(x)),  # of the second moment
    }


def train(
    encoder: nn.Module, width: int, labelled: Source, judge: Source, data: DataConfig, settings: FineTune
) -> dict[str, Any]:
    """Accuracies with the running statistics and, where those are computed anew, with the new ones."""
    accuracies = {}
    renew = ClassifierTraining.renew_statistics
    with tempfile.TemporaryDirectory() as folder:
        for kind, method in (("running", lambda *_: None), ("anew", renew)):
            ClassifierTraining.renew_statistics = method
            try:
                tuned = tune(
                    encoder, width, labelled, data, settings=[settings], folder=Path(folder), device=CPU,
                    display=Display(quiet=True),
                )  # fmt: skip
            except Diverged as error:
                return {"error": str(error)}
            finally:
                ClassifierTraining.renew_statistics = renew
            outcome = supervised.score(tuned.classifier, tuned.fitted, judge, data, device=CPU)
            accuracies[kind] = float((outcome.scores.argmax(1) == outcome.labels).double().mean())
    return {"accuracy": accuracies["anew"], "running": accuracies["running"], "train": tuned.fitted.train_accuracy}


def write(path: Path, head: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes all rows with the environment that produced them."""
    environment = run_environment.environment(
        device=CPU.type, device_name=devices.device_name(CPU), threads=1, processes=1
    )
    write_json(path, {"command": command(), **head, "environment": environment, "rows": rows})


if __name__ == "__main__":
    main()
