"""The command ``matrix-ssl pretrain``."""

import shlex
from pathlib import Path

import click

from matrix_ssl.cli import options
from matrix_ssl.training.configure import configure


@click.command()
@options.recipe
@options.data
@options.method
@options.assignments()
@options.out("runs/RECIPE or runs/RECIPE-DATA")
@options.fresh
@click.option("--online", is_flag=True, help="Also measure accuracy during training, on a held-out fifth of the "
              "labels; the encoder stays the same bit for bit.")  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events into the run folder.")
@click.option("--deterministic", is_flag=True, help="Use only deterministic CUDA kernels (slower).")
@options.no_report
@options.device
@options.data_root
@options.download
def pretrain(
    recipe: str, data: str | None, method: str | None, assignments: tuple[str, ...], out: Path | None, fresh: bool,
    online: bool, tensorboard: bool, deterministic: bool, no_report: bool, device: str, data_root: Path | None,
    download: bool,
) -> None:  # fmt: skip
    """Pre-train an encoder. Run the same command to resume.

    RECIPE is a name that `matrix-ssl recipes` lists; the default, `images`, is for any folder of images.
    """
    from matrix_ssl.api.pretraining import train
    from matrix_ssl.runs.folder import ENCODER

    config = configure(recipe, data, (*assignments, *(["deterministic=true"] if deterministic else [])), method=method)
    run = out or options.run_folder(recipe, data, method)
    trained = train(
        config, run, fresh=fresh, online=online, tensorboard=tensorboard, report=not no_report, device=device,
        data_root=data_root, download=download,
    )  # fmt: skip
    if trained.is_main:
        if trained.source.labels is not None:
            options.say(f"This dataset has labels. To measure accuracy: matrix-ssl evaluate {shlex.quote(str(run))}")
        options.show(encoder=run / ENCODER, report=trained.report)
