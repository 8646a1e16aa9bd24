"""The commands ``matrix-ssl import`` and ``matrix-ssl export``."""

import shlex
from pathlib import Path
from typing import Any

import click

from matrix_ssl.cli import options
from matrix_ssl.errors import ConfigError

# as exporting.FORMATS, which a test compares: importing that file takes seconds
_FORMATS = ("safetensors", "torchvision", "timm", "huggingface", "detectron2", "onnx")
_ENDINGS = (".tar", ".pth", ".pt", ".ckpt", ".bin", ".safetensors")


@click.command("import")
@click.argument("checkpoint", metavar="CHECKPOINT|random|torchvision")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: in runs, named "
              "after the checkpoint or the architecture]")  # fmt: skip
@click.option("--architecture", metavar="NAME", help="As network.encoder: a name of torchvision, timm/NAME or "
              "tiny_resnet.  [default: found from the tensors]")  # fmt: skip
@click.option("--branch", type=click.Choice(["student", "teacher"]), default="student", show_default=True,
              help="Of two encoders: the trained one, or its moving average.")  # fmt: skip
@click.option("--image-size", type=click.IntRange(1), metavar="PIXELS", help="Side of the images.  [default: what "
              "the encoder was made for, or 224]")  # fmt: skip
@click.option("--mean", metavar="NUMBERS", help="Of pixels in [0, 1], with commas between.  [default: ImageNet's]")
@click.option("--std", metavar="NUMBERS", help="Likewise.  [default: ImageNet's]")
@click.option("--crop-fraction", type=float, metavar="PART", help="Central part of an image that is used.  "
              "[default: 0.875]")  # fmt: skip
def import_(
    checkpoint: str,
    out: Path | None,
    architecture: str | None,
    branch: Any,
    image_size: int | None,
    mean: str | None,
    std: str | None,
    crop_fraction: float | None,
) -> None:
    """Make a run folder of an encoder that another program trained.

    CHECKPOINT is a PyTorch file or a safetensors file: of Matrix-SSL, MEC, SimSiam, MoCo, BYOL, Barlow Twins, VICReg,
    DINO, solo-learn, lightly, torchvision, timm, or what `matrix-ssl export` wrote. Nothing in it is executed.
    `random` is an encoder at its initialisation, a baseline; `torchvision` has its weights, trained with labels, in a
    local cache.
    """
    from matrix_ssl.encoder.importing import import_run
    from matrix_ssl.encoder.opening import RANDOM, TORCHVISION, open_checkpoint, open_encoder

    if checkpoint in (RANDOM, TORCHVISION):
        if (mean, std, crop_fraction) != (None, None, None):
            raise ConfigError(
                f"--mean, --std and --crop-fraction are for checkpoint files: leave them out for {checkpoint}."
            )
        opened = open_encoder(checkpoint, architecture=architecture, image_size=image_size)
        name = f"{checkpoint}-{opened.config.network.encoder.replace('/', '-')}"
    else:
        opened = open_checkpoint(
            Path(checkpoint),
            architecture=architecture, branch=branch, image_size=image_size,
            mean=_numbers("--mean", mean), std=_numbers("--std", std), crop_fraction=crop_fraction,
        )  # fmt: skip
        name = _stem(Path(checkpoint))
    run = out or Path("runs") / name
    import_run(opened, run, source=Path(checkpoint), branch=branch)
    data, name = opened.config.data, shlex.quote(str(run))
    options.out.print(f"{run}: {opened.text}", markup=False)
    options.say(
        f"images: {data.image_size} pixels, mean {data.mean}, std {data.std}, central {data.crop_fraction:g}.\n"
        f"matrix-ssl evaluate {name} --data FOLDER measures accuracy."
    )


@click.command()
@options.run
@click.option("--format", "form", type=click.Choice(_FORMATS), default="safetensors", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="A file, or a folder for huggingface.  [default: in RUN, "
              "export.safetensors, export.pth, ...]")  # fmt: skip
@options.weights
def export(run: Path, form: Any, out: Path | None, weights: Any) -> None:
    """Write the encoder of RUN for other programs, with a model card beside it."""
    options.existing_run(run)
    from matrix_ssl.encoder.exporting import export as write

    options.out.print(write(run, out, form=form, weights=weights), markup=False)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected numbers with commas between, such as 0.5,0.5,0.5.") from None


def _stem(checkpoint: Path) -> str:
    name = checkpoint.name
    while name.endswith(_ENDINGS):
        name = name.rpartition(".")[0]
    return name.encode(errors="replace").decode()  # a run folder's name is Unicode
