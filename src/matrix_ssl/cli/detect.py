"""``matrix-ssl detect``: parse, call, print."""

import contextlib
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from matrix_ssl.cli import options
from matrix_ssl.detection.settings import DetectionSettings

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--train-images", type=_PATH, required=True, help="Images to learn from: a folder or a .tar file.")
@click.option("--train-annotations", type=_PATH, required=True, metavar="JSON", help="COCO annotations of them.")
@click.option("--val-images", type=_PATH, required=True, help="Images to score on.")
@click.option("--val-annotations", type=_PATH, required=True, metavar="JSON", help="COCO annotations of them.")
@click.option("--encoder", required=True, metavar="RUN|CHECKPOINT|random|torchvision",
              help="Where the detector begins: a run folder, a checkpoint file, random weights, or torchvision's, "
              "trained with labels.")  # fmt: skip
@click.option("--backbone", metavar="NAME", help="Architecture of the encoder, a ResNet of torchvision.  [default: its "
              "own, or resnet50]")  # fmt: skip
@options.weights
@click.option("--architecture", type=click.Choice(["c4", "fpn"]), help="c4: heads on the encoder's last stage; fpn: a "
              "feature pyramid.  [default: c4]")  # fmt: skip
@click.option("--schedule", type=click.Choice(["1x", "2x"]), help="90000 or 180000 iterations of 16 images.  "
              "[default: 1x]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="[default: 0]")
@options.assignments
@click.option("--out", type=_PATH, required=True, help="Folder of the run.")
@click.option("--fresh", is_flag=True, help="Start over; an existing run folder is kept under another name.")
@options.device
def detect(
    train_images: Path,
    train_annotations: Path,
    val_images: Path,
    val_annotations: Path,
    encoder: str,
    backbone: str | None,
    weights: Any,
    architecture: str | None,
    schedule: str | None,
    seed: int | None,
    assignments: tuple[str, ...],
    out: Path,
    fresh: bool,
    device: str,
) -> None:
    """Train Mask R-CNN on an encoder, all layers, and score boxes and masks. The same command again resumes.

    Images and annotations are COCO's. Settings and their published defaults: docs/detection.md.
    """
    from matrix_ssl.config import override

    named = {"architecture": architecture, "schedule": schedule, "seed": seed}
    given = [f"{key}={value}" for key, value in named.items() if value is not None]
    settings = override(DetectionSettings(), [*given, *assignments])
    from matrix_ssl import distributed
    from matrix_ssl.detection import run as runs
    from matrix_ssl.detection.table import classes_table, scores_table
    from matrix_ssl.runs import devices
    from matrix_ssl.runs.display import Display, image_bar
    from matrix_ssl.runs.files import read_json
    from matrix_ssl.runs.folder import take_folder

    inputs = runs.Inputs(
        train_images,
        train_annotations,
        val_images,
        val_annotations,
        encoder=encoder,
        backbone=backbone,
        weights=weights,
    )
    distributed.start(devices.choose_device(device).type)
    chosen = devices.choose_device(device)  # now that the number of this process is known
    display = Display(quiet=not distributed.is_main())
    console = options.err if distributed.is_main() else Console(quiet=True)
    with contextlib.ExitStack() as stack:
        stack.callback(distributed.stop)
        stack.enter_context(distributed.connected())
        with distributed.together():
            prepared = runs.prepare(inputs, settings, device=chosen)
        complete = False
        with distributed.together():
            if distributed.is_main():
                take_folder(out, stack, fresh=fresh, say=display.say)
                complete = runs.claim(prepared, out)
        if distributed.broadcast_object(complete):
            display.say(f"{out} is complete; --fresh starts over.")
        else:
            display.say(prepared.headline())
            runs.run(prepared, out, display=display, bar=lambda what: image_bar(console, what))
        if distributed.is_main():
            result = read_json(out / runs.RESULT)
            options.out.print(scores_table(result))
            options.out.print(classes_table(result))
            options.out.print(f"result     {out / runs.RESULT}\ndetections {out / runs.GALLERY}", markup=False)
