r"""Detection at a small size: pedestrians of Penn-Fudan from encoders without labels and from random weights.

    python -m benchmarks.experiments.pennfudan --data pennfudan.tar --out pennfudan
    python -m benchmarks.experiments.detection_small --images pennfudan --state STATE --data-root DATA \
        --set data.image_size=64 --set data.subset=9000 --set epochs=10 \
        --set optimizer.warmup_epochs=1 --set precision=bfloat16

Every method of ``--methods`` pre-trains a ResNet-18 on every recipe of ``--recipes``, with the settings of the recipe
but for the network; then Mask R-CNN with a feature pyramid is trained from each encoder, and from random weights, with
one schedule and every seed, which is that of pre-training and of detection. ``STATE/rows.json`` has box and mask AP50
as they arrive; the same command goes on where it was stopped. Seeds are the outer loop.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import command
from matrix_ssl.api.pretraining import train
from matrix_ssl.config import override
from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.detection import run as detection
from matrix_ssl.evaluate.detection.settings import DetectionSettings
from matrix_ssl.evaluate.probes.accuracy import summarise
from matrix_ssl.report.comparison.statistics import PairedDifference, paired_difference
from matrix_ssl.runs.files import read_json, write_json
from matrix_ssl.runs.session import session
from matrix_ssl.training.configure import configure

RECIPES = ("imagenette", "cifar10")
METHODS = ("matrix_entropy", "simclr", "matrix_ssl")
RANDOM = "random/resnet18"
NETWORK = ("network.encoder=resnet18", "network.stem=standard")  # the strides of all encoders are the same
# a shorter side of 128 pixels and heads of a quarter of their width: some four CPU minutes a detector in bfloat16;
# anchors for pedestrians of some 15 to 130 pixels
DETECTION = ("architecture=fpn", "head_width=64", "batch_size=4", "epochs=12", "learning_rate=0.04", "warmup=50",
             "train_sizes=112,128,144", "test_size=128", "train_longest=288", "test_longest=256",
             "anchor_sizes=12,24,48,96,192", "anchors=64", "regions=32", "detections=20", "precise_bn=10",
             "precision=bfloat16", "workers=0", "checkpoint_every=60")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="What benchmarks.experiments.pennfudan wrote.")
    parser.add_argument("--state", type=Path, required=True, help="Folder of runs and rows.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds.")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of every pre-training.")
    parser.add_argument("--detect-set", action="append", default=[], help="KEY=VALUE of every detection.")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    place = arguments.state / "rows.json"
    content = describe(arguments)
    if place.exists():
        earlier = read_json(place)
        if any(earlier[key] != content[key] for key in ("detection", "pretraining")):
            raise ConfigError(f"{place} was begun with different settings; choose a different --state.")
        content["rows"] = earlier["rows"]
    arms = [("random", "")] + [(recipe, method) for recipe in arguments.recipes for method in arguments.methods]
    for seed in range(arguments.seeds):
        for recipe, method in arms:
            if not any((r["recipe"], r["method"], r["seed"]) == (recipe, method, seed) for r in content["rows"]):
                encoder = pretrain(arguments, recipe, method, seed) if method else RANDOM
                out = arguments.state / f"detect-{recipe}-{method}-{seed}".replace("--", "-")
                content["rows"].append(
                    {"recipe": recipe, "method": method, "seed": seed, **detect(arguments, encoder, out, seed)}
                )
                write_json(place, content)
    show(content["rows"])


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that all rows share, and no rows yet."""
    settings = dataclasses.asdict(override(DetectionSettings(), [*DETECTION, *arguments.detect_set]))
    value: dict[str, Any] = json.loads(
        json.dumps({"command": command(), "detection": settings, "pretraining": arguments.set, "rows": []})
    )
    return value


def pretrain(arguments: argparse.Namespace, recipe: str, method: str, seed: int) -> str:
    """The run folder of a finished pre-training, resumed where it was stopped."""
    run = arguments.state / f"pretrain-{recipe}-{method}-{seed}"
    config = configure(recipe, None, [*NETWORK, *arguments.set, f"seed={seed}"], method=method)
    train(config, run, report=False, quiet=True, device=arguments.device, data_root=arguments.data_root)
    return str(run)


def detect(arguments: argparse.Namespace, encoder: str, out: Path, seed: int) -> dict[str, Any]:
    """Trains and scores a detector, resumed where it was stopped: AP50 of boxes and masks, and what it was made of."""
    settings = override(DetectionSettings(), [*DETECTION, *arguments.detect_set, f"seed={seed}"])
    images = arguments.images / "images"
    inputs = detection.Inputs(images, arguments.images / "train.json", images, arguments.images / "val.json", encoder)
    with session(arguments.device, quiet=True) as s:
        prepared = detection.prepare(inputs, settings, device=s.device)
        if not s.claim(out, prepared.description, is_complete=(out / detection.RESULT).exists, fresh=False):
            detection.run(prepared, out, display=s.display)
    result = read_json(out / detection.RESULT)
    names = ("iterations", "bad_steps", "seconds_training", "data", "environment")
    return {
        "box_AP50": result["box"]["AP50"], "mask_AP50": result["mask"]["AP50"],
        "interval_95": result["interval_95"], "encoder": result["encoder"],
        **{name: result[name] for name in names if name in result},
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """Prints mean and standard deviation over seeds, and the paired difference from random weights, in points."""
    table = Table("pre-trained on", "method", "seeds", "box AP50", "over random", "mask AP50", "over random")
    for recipe, method in dict.fromkeys((row["recipe"], row["method"]) for row in rows):
        cells = []
        for name in ("box_AP50", "mask_AP50"):
            scores, random = of_seeds(rows, recipe, method, name), of_seeds(rows, "random", "", name)
            value = summarise(list(scores.values()))
            common = sorted(scores.keys() & random.keys()) if method else []
            difference = paired_difference([scores[s] for s in common], [random[s] for s in common]) if common else None
            spread = f" ± {value['sd']:.1f}" if len(scores) > 1 else ""
            cells += [f"{value['mean']:.1f}{spread}", in_words(difference)]
        table.add_row(recipe, method, str(len(scores)), *cells)
    Console(width=120).print(table)


def of_seeds(rows: list[dict[str, Any]], recipe: str, method: str, name: str) -> dict[int, float]:
    """The scores of an arm in points, by seed; a detector that finds nothing has none and counts as 0."""
    return {r["seed"]: 100 * (r[name] or 0.0) for r in rows if (r["recipe"], r["method"]) == (recipe, method)}


def in_words(difference: PairedDifference | None) -> str:
    """Mean and 95 % interval."""
    if difference is None:
        return ""
    interval = "" if difference.low is None else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    return f"{difference.mean:+.1f}{interval}"


if __name__ == "__main__":
    main()
