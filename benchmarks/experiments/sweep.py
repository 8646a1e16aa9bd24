r"""Trains and evaluates arms of settings on a split of the training set; the test set is never opened.

    python -m benchmarks.experiments.sweep --recipe demo --out sweep.json --seeds 0 1 2 \
        --arm "exact 0.1: method.ridge=0.1 method.uniformity_weight=0.1" \
        --arm "taylor 1: method.logarithm=taylor method.ridge=1 method.uniformity_weight=1"

Four fifths of the training images, stratified, serve for pre-training and for the probes, one fifth for accuracy. An
arm and seed that is already in the output is not run again, so the command resumes. Prints mean ± sd over seeds. With
--from, the arms start from weights, with exactly the settings of recipe, --set and arm, and the arm "start" is measured
without any training. These arms decided the defaults of a training that starts from weights:

    python -m benchmarks.experiments.sweep --recipe images_small --data cifar10 --data-root DATA --from WEIGHTS \
        --images 3000 --protocol knn --seeds 0 1 --out from_weights_arms.json --set data.image_size=64 \
        --set data.crop_fraction=1 --set data.workers=0 --set epochs=1 --set batch_size=32 \
        --set optimizer.warmup_epochs=0.1 --set optimizer.frozen_statistics=true --set optimizer.learning_rate=4e-4 \
        --arm "rate 0.1, statistics stay:" --arm "rate 1, statistics stay: optimizer.learning_rate=4e-3" \
        --arm "layer decay 0.8: optimizer.layer_decay=0.8" --arm "heads first: optimizer.frozen_epochs=0.25" \
        --arm "warm-up 0.5: optimizer.warmup_epochs=0.5"
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.harness import command, resume
from matrix_ssl import config
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data import Source, open_source, split_source
from matrix_ssl.data.sources import choose_subset
from matrix_ssl.encoder import load_encoder
from matrix_ssl.errors import TrainingError
from matrix_ssl.evaluate.features import extract
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.evaluate.probes.protocols import PROTOCOLS, measure
from matrix_ssl.runs import devices
from matrix_ssl.runs import environment as run_environment
from matrix_ssl.runs.checkpoint import load_strictly
from matrix_ssl.runs.display import Display
from matrix_ssl.runs.files import read_lines, write_json
from matrix_ssl.runs.folder import CONFIG, METRICS
from matrix_ssl.training import setup
from matrix_ssl.training.start import start_from

HELD_OUT = 0.2
SPLIT_SEED = 0  # one split for all arms and seeds
START = "start"  # the arm that is not trained


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--method", help="another than the recipe's: a name or a Python file")
    parser.add_argument("--data", help="replaces the recipe's dataset")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--from", dest="reference", help="weights that all arms start from")
    parser.add_argument("--images", type=int, default=0, help="only so many of the training images; 0: all")
    parser.add_argument("--set", action="append", default=[], help="key=value for every arm")
    parser.add_argument("--arm", action="append", required=True, help="'NAME: key=value key=value'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--protocol", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)

    base = find_recipe(arguments.recipe)
    if arguments.method:
        base = setup.use_method(base, arguments.method, papers=False)
    source = open_source(arguments.data or base.data.source, split="train", data_root=arguments.data_root)
    if arguments.data:
        base = config.override(base, [f"data.source={arguments.data}"])
    source = choose_subset(source, arguments.images, seed=SPLIT_SEED)
    learn, judge = split_source(source, HELD_OUT, SPLIT_SEED)
    head = describe(arguments)
    rows: list[dict[str, Any]] = resume(arguments.out, head).get("rows", [])
    if arguments.reference:
        base = config.override(base, [f"start.reference={arguments.reference}"])
        if not any(row["arm"] == START for row in rows):
            rows.append(
                {"arm": START, "seed": 0, **measure_start(base, arguments.set, learn, judge, arguments.protocol)}
            )
            write(arguments, head, rows)
    for seed in arguments.seeds:  # seeds outside: every arm gets its first seed before any gets its second
        for arm in arguments.arm:
            name, _, settings = (part.strip() for part in arm.partition(":"))
            if any(row["arm"] == name and row["seed"] == seed for row in rows):
                continue
            run_config, tensors = begin(base, [*arguments.set, *settings.split(), f"seed={seed}"])
            row = run_once(run_config, learn, judge, arguments.protocol, start=tensors)
            rows.append({"arm": name, "settings": settings, "seed": seed, **row})
            write(arguments, head, rows)
    show(rows)


def begin(base: config.RunConfig, settings: list[str]) -> tuple[config.RunConfig, dict[str, Tensor] | None]:
    """The complete run of an arm, and the tensors that it starts from."""
    run_config = setup.complete(config.override(base, settings))
    if not run_config.start.reference:
        return run_config, None
    optimizer = [key for key, _ in config.flatten(config.to_dict(run_config)) if key.startswith("optimizer.")]
    chosen = [*optimizer, "method.teacher_momentum", *(config.split_assignment(setting)[0] for setting in settings)]
    start = start_from(run_config, chosen=chosen, run=None)
    return start.config, start.tensors


def measure_start(
    base: config.RunConfig, settings: list[str], learn: Source, judge: Source, protocols: list[str]
) -> dict[str, Any]:
    """The accuracy of the weights that all arms start from, as they are."""
    run_config, tensors = begin(base, settings)
    method = setup.build_method(run_config)
    load_strictly(method, tensors or {}, run_config.start.reference)
    return {
        "start": dataclasses.asdict(run_config.start),
        "accuracy": measure_encoder(method.encoder, run_config.data, learn, judge, protocols),
        "negative_determinants": 0,
    }


def run_once(
    run_config: config.RunConfig, learn: Source, judge: Source, protocols: list[str],
    *, start: dict[str, Tensor] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Pre-trains and evaluates once, in a temporary run folder."""
    device = devices.choose_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        write_json(run / CONFIG, config.to_dict(run_config))
        try:
            training = setup.prepare(run_config, source=learn, device=device, display=Display(quiet=True), start=start)
            started = time.process_time()
            summary = training.train(run)
            seconds = time.process_time() - started
        except TrainingError as error:
            return {"error": str(error)}
        encoder = load_encoder(run)
        last = read_lines(run / METRICS)[-1]
    return {
        "accuracy": measure_encoder(encoder, run_config.data, learn, judge, protocols),
        "effective_rank": last["effective_rank"],
        "negative_determinants": summary.get("negative_determinants", 0),
        "bad_steps": summary["bad_steps"],
        "seconds": round(summary["seconds_training"], 1),
        "cpu_seconds": round(seconds, 1),
        "steps": summary["steps"],
    }


def measure_encoder(
    encoder: nn.Module, data: config.DataConfig, learn: Source, judge: Source, protocols: list[str]
) -> dict[str, float]:
    """Accuracies on the held-out images, by protocol."""
    device = devices.choose_device("auto")
    x, x_test = (extract({"encoder": encoder}, part, data, device=device) for part in (learn, judge))
    assert x.labels is not None and x_test.labels is not None
    found = measure(
        x.vectors["encoder"],
        x.labels,
        x_test.vectors["encoder"],
        x_test.labels,
        classes=learn.classes or [],
        protocols=protocols,
        neighbours=(1, 20),
        l2=1.0,
        say=print,
    )
    return {key: value["mean"] for key, value in found.items()}


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all arms have in common."""
    return {
        "recipe": arguments.recipe,
        "method": arguments.method,
        "from": arguments.reference,
        "images": arguments.images,
        "set": arguments.set,
        "held_out": HELD_OUT,
        "split_seed": SPLIT_SEED,
    }


def write(arguments: argparse.Namespace, head: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes all rows with the environment that produced them."""
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    device = devices.choose_device("auto")
    environment = run_environment.environment(
        device=device.type, device_name=devices.device_name(device), threads=arguments.threads, processes=1
    )
    write_json(arguments.out, {"command": command(), **head, "environment": environment, "rows": rows})


def show(rows: list[dict[str, Any]]) -> None:
    """Prints mean ± sd in per cent for every arm."""
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        whole = [row for row in mine if "accuracy" in row]
        cells = []
        for key in whole[0]["accuracy"] if whole else []:
            value = summarise([row["accuracy"][key] for row in whole])
            cells.append(f"{key} {100 * value['mean']:.1f} ± {100 * value['sd']:.1f}")
        negative = sum(row["negative_determinants"] for row in whole)
        Console().print(f"{arm:24s} n={len(whole)} of {len(mine)}  " + "  ".join(cells) + f"  negative det {negative}")


if __name__ == "__main__":
    main()
