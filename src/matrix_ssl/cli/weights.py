"""The commands ``matrix-ssl import`` and ``matrix-ssl export``."""

import shlex
from pathlib import Path
from typing import Any, get_args

import click

from matrix_ssl.cli import options
from matrix_ssl.config.reading import CropMode
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.files import temporary_folder

# equal to exporting.FORMATS, which a test compares: importing that file takes seconds
_FORMATS = ("safetensors", "torchvision", "timm", "huggingface", "detectron2", "onnx")


@click.command("import")
@options.where
@options.out("runs/NAME, from WHERE")
@options.fresh
@click.option("--architecture", metavar="NAME", help="Architecture of the encoder: a name of torchvision, timm/NAME or "
              "tiny_resnet.  [default: detected from the tensors]")  # fmt: skip
@click.option("--branch", type=click.Choice(["student", "teacher"]), default="student", show_default=True,
              help="Encoder of a checkpoint with two; teacher: the moving average.")  # fmt: skip
@click.option("--image-size", type=click.IntRange(1), metavar="PIXELS", help="Side of the images.  [default: that of "
              "the encoder, or 224]")  # fmt: skip
@click.option("--mean", metavar="NUMBERS", help="Pixel mean per channel, in [0, 1], separated by commas.  "
              "[default: ImageNet's]")  # fmt: skip
@click.option("--std", metavar="NUMBERS", help="Pixel standard deviation per channel, separated by commas.  "
              "[default: ImageNet's]")  # fmt: skip
@click.option("--crop-fraction", type=float, metavar="FRACTION", help="Side of the central crop, as a fraction of the "
              "image.  [default: 0.875]")  # fmt: skip
@click.option("--crop-mode", type=click.Choice(get_args(CropMode)), help="Crop: a square of the shorter side, or "
              "one of both sides, squeezed into a square.  [default: centre]")  # fmt: skip
@options.download_weights
def import_(
    where: str, out: Path | None, fresh: bool, architecture: str | None, branch: Any, image_size: int | None,
    mean: str | None, std: str | None, crop_fraction: float | None, crop_mode: Any, download: bool,
) -> None:  # fmt: skip
    """Import the encoder WHERE as a run folder.

    WHERE is a PyTorch file or a safetensors file of Matrix-SSL, MEC, SimSiam, MoCo, BYOL, Barlow Twins, VICReg, DINO,
    solo-learn, lightly, torchvision, timm or `matrix-ssl export`, in which nothing is executed; or published weights,
    torchvision/NAME[:WEIGHTS], timm/NAME[.TAG] or hf:NAME, from the local cache; or random/NAME, a baseline at its
    initialisation.
    """
    from matrix_ssl.encoder.importing import default_run, import_run
    from matrix_ssl.encoder.opening import open_checkpoint, open_encoder
    from matrix_ssl.encoder.where import PATH, read_where

    place = read_where(where, architecture=architecture)
    if place.kind == PATH:
        opened = open_checkpoint(
            place.path,
            architecture=architecture, branch=branch, image_size=image_size,
            mean=_numbers("--mean", mean), std=_numbers("--std", std),
            crop_fraction=crop_fraction, crop_mode=crop_mode,
        )  # fmt: skip
    else:
        if any(option is not None for option in (mean, std, crop_fraction, crop_mode)):
            raise ConfigError(
                f"--mean, --std, --crop-fraction and --crop-mode are for checkpoint files: remove them for {where}."
            )
        opened = open_encoder(where, architecture=architecture, image_size=image_size, download=download)
    run = out or default_run(place, branch=branch)
    import_run(opened, run, branch=branch, fresh=fresh, say=options.say)
    data, name = opened.config.data, shlex.quote(str(run))
    shape = "" if data.crop_mode == "centre" else " of both sides, squeezed into a square"
    options.stdout.print(f"{run}: {opened.text}")
    options.say(
        f"Images: {data.image_size} pixels, mean {data.mean}, std {data.std}, central crop {data.crop_fraction:g}"
        f"{shape}.\n"
        f"To measure accuracy: matrix-ssl evaluate {name} --data FOLDER"
    )


@click.command()
@options.where
@click.option("--format", "form", type=click.Choice(_FORMATS), default="safetensors", show_default=True,
              help="Format of the file.")  # fmt: skip
@click.option("--out", type=options.PATH, help="File to write; a folder for huggingface.  [default: in the run, "
              "export.safetensors, export.pth, ...]")  # fmt: skip
@options.weights
@options.download_weights
def export(where: str, form: Any, out: Path | None, weights: Any, download: bool) -> None:
    """Export the encoder WHERE for other programs, with a model card.

    WHERE is a run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME.
    Without --out, an encoder that is not a run is imported as one first, into runs/NAME.
    """
    from matrix_ssl.encoder.exporting import export as write
    from matrix_ssl.encoder.importing import as_run
    from matrix_ssl.encoder.where import is_folder

    with temporary_folder() as scratch:
        is_run = is_folder(where)
        run, weights = as_run(
            where, out=None if is_run or out is None else scratch / "run", weights=weights, download=download,
            say=_silent if is_run or out else options.say,
        )  # fmt: skip
        options.stdout.print(write(run, out, form=form, weights=weights))


def _silent(_: str) -> None:
    return None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected numbers with commas between, such as 0.5,0.5,0.5.") from None
