"""Whether the fast path costs accuracy: the published loop, rewritten, beside trainings of this package.

    python -m benchmarks.experiments.paths                                        (digits; three CPU minutes)
    python -m benchmarks.experiments.paths --only imagenette --data-root DATA     (half an hour of a CPU core)

*plain* has torchvision's views of PIL images, one at a time, the published loss of dense matrices by automatic
differentiation, and a loop of Python over the tensors of the teacher. *fast* is a run of this package, in float32 and
in bfloat16. Networks, views, the Taylor series of the loss and the schedules of rate and momentum are equal; random
numbers are not, so that only distributions can agree. Three seeds, linear accuracy on a fifth of the training images
that was held out; no test image is opened. The rule was fixed before the first run: two paths agree if their means
differ by no more than the larger of their standard deviations over seeds. A row that is there is not computed again.
The rows are in ``paths_digits.json`` and ``paths_imagenette.json``.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF

from benchmarks.experiments.sweep import HELD_OUT, SPLIT_SEED, measure_encoder, run_once
from benchmarks.harness import RESULTS, resume, save
from benchmarks.speed import published
from benchmarks.speed.pil_views import Images, published_views
from matrix_ssl import config, networks
from matrix_ssl.data import Source, open_source, split_source
from matrix_ssl.data.base import MemorySource
from matrix_ssl.data.sources import choose_subset
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.networks.teacher import cosine_momentum
from matrix_ssl.training import optim, setup

SEEDS = (0, 1, 2)
ARMS = {"plain": "float32", "fast": "float32", "fast, bfloat16": "bfloat16"}
LOSS = {"ridge": 0.5, "uniformity_weight": 0.5, "order": 4}  # the published script's
# so many images and epochs that an encoder learns and a core is busy for minutes and for half an hour
DATASETS: dict[str, dict[str, Any]] = {
    "digits": {"image_size": 8, "images": 0, "epochs": 12, "batch_size": 64},
    "imagenette": {"image_size": 64, "images": 3000, "epochs": 8, "batch_size": 64},
}
PROTOCOLS = ["linear"]


def configure(name: str, *, seed: int, precision: str) -> config.RunConfig:
    """The run of a dataset."""
    sizes = DATASETS[name]
    return setup.complete(
        config.RunConfig(
            recipe="paths",
            data=config.DataConfig(source=name, image_size=sizes["image_size"], crop_fraction=1.0, workers=0),
            views=config.asymmetric_views(),
            network=config.NetworkConfig(encoder=networks.TINY_RESNET, width=16),
            method=config.MethodConfig(
                "matrix_ssl",
                {"hidden_dim": 256, "output_dim": 128, "teacher_momentum": 0.9, "logarithm": "taylor", **LOSS},
            ),
            optimizer=config.OptimizerConfig(name="sgd", learning_rate=1.0, warmup_epochs=1),
            epochs=sizes["epochs"],
            batch_size=sizes["batch_size"],
            seed=seed,
            precision=precision,
        )
    )


def open_splits(name: str, data: str, data_root: Path | None) -> tuple[Source, Source]:
    """Training images in colours, and those held out of them."""
    source = open_source(data, split="train", data_root=data_root)
    if name == "digits":
        assert isinstance(source, MemorySource)
        colours = source.images.expand(-1, 3, -1, -1).contiguous()
        source = MemorySource(source.name, colours, source.places, labels=source.labels, classes=source.classes)
    return split_source(choose_subset(source, DATASETS[name]["images"], seed=SPLIT_SEED), HELD_OUT, SPLIT_SEED)


def train_plain(run: config.RunConfig, learn: Source) -> nn.Module:
    """The encoder of the published loop, with the schedules of a run."""
    torch.manual_seed(run.seed)
    size, options, settings = run.data.image_size, run.method.options, run.optimizer
    encoder, features = networks.build_encoder(
        run.network.encoder, channels=3, image_size=size, width=run.network.width
    )
    widths = options["hidden_dim"], options["output_dim"]
    student = nn.Sequential(encoder, networks.projector(features, *widths)).to(memory_format=torch.channels_last)
    predictor = networks.predictor(options["output_dim"])
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD(
        [*student.parameters(), *predictor.parameters()],
        lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay,
    )  # fmt: skip
    images = [TF.to_pil_image(learn.read(index)).convert("RGB") for index in range(len(learn))]
    loader = DataLoader(
        Images(images, published_views(size)), batch_size=run.batch_size, shuffle=True, drop_last=True,
    )  # fmt: skip
    total, warmup = run.epochs * len(loader), round(settings.warmup_epochs * len(loader))
    peak = settings.learning_rate * run.batch_size / 256
    for step, (x1, x2) in enumerate(views for _ in range(run.epochs) for views in loader):
        rate = optim.learning_rate(step, total_steps=total, warmup_steps=warmup, peak=peak)
        optim.set_learning_rate(optimizer, rate)
        z1, z2 = predictor(student(x1)), predictor(student(x2))
        with torch.no_grad():
            p1, p2 = teacher(x1), teacher(x2)
        optimizer.zero_grad()
        published.loss(z1, z2, p1, p2, **LOSS).backward()
        optimizer.step()
        momentum = cosine_momentum((step + 1) / total, options["teacher_momentum"])
        with torch.no_grad():
            for mine, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
                theirs.data = theirs.data * momentum + mine.data * (1 - momentum)
    return encoder


def train(arm: str, name: str, seed: int, learn: Source, judge: Source) -> dict[str, Any]:
    """The row of an arm and a seed."""
    run = configure(name, seed=seed, precision=ARMS[arm])
    started = time.process_time()
    if arm == "plain":
        encoder = train_plain(run, learn)
        accuracy = measure_encoder(encoder, run.data, learn, judge, PROTOCOLS)
    else:
        accuracy = run_once(run, learn, judge, PROTOCOLS)["accuracy"]
    return {"arm": arm, "seed": seed, "accuracy": accuracy, "cpu_seconds": time.process_time() - started}


def agreement(rows: Sequence[dict[str, Any]], arm: str, other: str) -> dict[str, Any] | None:
    """Difference of the means, the spread that it is held against, and whether the rule is met; None: rows missing."""
    values = {name: [row["accuracy"]["linear"] for row in rows if row["arm"] == name] for name in (arm, other)}
    if any(len(numbers) < len(SEEDS) for numbers in values.values()):
        return None
    here, there = (summarise(values[name]) for name in (arm, other))
    difference, spread = here["mean"] - there["mean"], max(here["sd"], there["sd"])
    return {"difference": difference, "spread": spread, "agree": abs(difference) <= spread}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=DATASETS, default="digits")
    parser.add_argument("--data", help="A different place of the images.")
    parser.add_argument("--data-root", type=Path, help="Folder with the images of Imagenette.")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="Where the JSON files are.")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    name, out = arguments.only, arguments.folder / f"paths_{arguments.only}.json"
    learn, judge = open_splits(name, arguments.data or name, arguments.data_root)
    rows: list[dict[str, Any]] = resume(out).get("rows", [])
    for seed in SEEDS:
        for arm in ARMS:
            if not any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                rows.append(train(arm, name, seed, learn, judge))
                save(out, {"settings": config.to_dict(configure(name, seed=0, precision="float32")), "rows": rows})
    for arm in list(ARMS)[1:]:
        print(name, arm, "against plain:", agreement(rows, arm, "plain"))


if __name__ == "__main__":
    main()
