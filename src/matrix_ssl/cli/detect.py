"""The command ``matrix-ssl detect``."""

from pathlib import Path
from typing import Any

import click

from matrix_ssl.cli import options
from matrix_ssl.config import check_agreement, override
from matrix_ssl.evaluate.detection.settings import MAY_CHANGE, DetectionSettings
from matrix_ssl.runs.files import read_object
from matrix_ssl.runs.folder import CONFIG


@click.command()
@click.option("--train-images", type=options.PATH, required=True, help="Training images: a folder or a .tar file.")
@click.option("--train-annotations", type=options.PATH, required=True, metavar="JSON", help="COCO annotations of the "
              "training images.")  # fmt: skip
@click.option("--val-images", type=options.PATH, required=True, help="Validation images: a folder or a .tar file.")
@click.option("--val-annotations", type=options.PATH, required=True, metavar="JSON", help="COCO annotations of the "
              "validation images.")  # fmt: skip
@click.option("--encoder", required=True, metavar="WHERE", help="Initial weights of the backbone: a run folder, a "
              "checkpoint file, torchvision/NAME[:WEIGHTS] or random/NAME.")  # fmt: skip
@click.option("--backbone", metavar="NAME", help="Architecture of the encoder, a ResNet of torchvision.  [default: its "
              "own, or resnet50]")  # fmt: skip
@options.weights
@click.option("--architecture", type=click.Choice(["c4", "fpn"]), help="Architecture of the detector; c4: heads on the "
              "encoder's last stage; fpn: a feature pyramid.  [default: c4]")  # fmt: skip
@click.option("--schedule", type=click.Choice(["1x", "2x"]), help="Training schedule: 90k (1x) or 180k (2x) iterations "
              "at batch size 16.  [default: 1x]")  # fmt: skip
@click.option("--no-masks", is_flag=True, help="Train and score boxes alone (Faster R-CNN), for annotations without "
              "masks.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Random seed.  [default: 0]")
@options.assignments()
@options.out(None)
@options.fresh
@options.max_hours
@options.device
@options.download_weights
def detect(
    train_images: Path, train_annotations: Path, val_images: Path, val_annotations: Path, encoder: str,
    backbone: str | None, weights: Any, architecture: str | None, schedule: str | None, no_masks: bool,
    seed: int | None, assignments: tuple[str, ...], out: Path, fresh: bool, device: str,
    download: bool,
) -> None:  # fmt: skip
    """Train Mask R-CNN from an encoder, all layers, and score boxes and masks. Run the same command to resume.

    Images and annotations are in the format of COCO. Settings and their published defaults: docs/detection.md.
    """
    named = options.given(architecture=architecture, schedule=schedule, seed=seed)
    check_agreement(assignments, {key: (f"--{key}", value) for key, value in named.items()})
    check_agreement(assignments, {"masks": ("--no-masks", False if no_masks else None)})
    words = [*(f"{key}={value}" for key, value in named.items()), *(["masks=false"] if no_masks else [])]
    settings = override(DetectionSettings(), [*words, *assignments])
    from matrix_ssl import distributed
    from matrix_ssl.data.sources import check_outside
    from matrix_ssl.evaluate.detection import run as runs
    from matrix_ssl.evaluate.detection.scoring import classes_table, scores_table
    from matrix_ssl.runs.session import session

    inputs = runs.Inputs(
        train_images, train_annotations, val_images, val_annotations,
        encoder=encoder, backbone=backbone, weights=weights, download=download,
    )  # fmt: skip
    if not (out / CONFIG).exists():
        check_outside(out, (str(train_images), str(val_images)))
    with session(device) as s:
        with distributed.together():
            prepared = runs.prepare(inputs, settings, device=s.device)
        for remark in prepared.remarks():
            s.display.say(remark)
        may_change = [f"settings.{name}" for name in MAY_CHANGE]
        result = out / runs.RESULT
        if not s.claim(out, prepared.description, is_complete=result.exists, fresh=fresh, may_change=may_change):
            s.display.say(prepared.headline())
            runs.run(prepared, out, display=s.display)
        if s.main:
            options.stdout.print(scores_table(read_object(result)))
            options.stdout.print(classes_table(read_object(result)))
            options.show(result=result, detections=out / runs.GALLERY)
