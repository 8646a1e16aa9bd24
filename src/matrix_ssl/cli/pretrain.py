"""The command ``matrix-ssl pretrain``."""

import shlex
from pathlib import Path
from typing import Any

import click

from matrix_ssl.cli import options
from matrix_ssl.config import check_agreement, split_assignment
from matrix_ssl.runs.folder import ENCODER
from matrix_ssl.training.configure import DEFAULT_RECIPE, configure, run_folder


@click.command()
@options.optional_recipe
@options.data
@options.method
@options.assignments()
@options.out("runs/RECIPE or runs/RECIPE-DATA, with -from-WHERE")
@click.option("--from", "where", metavar="WHERE", help="Weights that the encoder starts from, as for matrix-ssl "
              "import; architecture, image size and normalisation follow from them.")  # fmt: skip
@options.fresh
@options.max_hours
@click.option("--online", is_flag=True, help="Also measure accuracy during training, on a held-out 20 % of the "
              "labelled images; the encoder stays the same bit for bit.")  # fmt: skip
@click.option("--information", is_flag=True, help="Also measure MIR and HDR of the outputs of the two branches (Song "
              "et al., ICML 2024).")  # fmt: skip
@options.loggers
@click.option("--deterministic", is_flag=True, help="Use only deterministic CUDA kernels (slower).")
@options.no_report
@options.device
@options.data_root
@options.download
def pretrain(
    recipe: str | None, data: Any, method: str | None, assignments: tuple[str, ...], out: Path | None,
    where: str | None, fresh: bool, online: bool, information: bool, loggers: tuple[str, ...], deterministic: bool,
    no_report: bool, device: str, data_root: Path | None, download: bool,
) -> None:  # fmt: skip
    """Pre-train an encoder. Run the same command to resume.

    RECIPE is a name that `matrix-ssl recipes` lists. Without one, start, network, image size, batch and epochs are
    chosen for the images and the machine.
    """
    named = {"start.reference": ("--from", where), "deterministic": ("--deterministic", deterministic or None)}
    check_agreement(assignments, named)
    assignments += ("deterministic=true",) if deterministic else ()
    assignments += (f"start.reference={where}",) if where else ()
    run = out or (None if recipe else run_folder(DEFAULT_RECIPE, data, method, where))
    config = configure(recipe, data, assignments, method=method, device=device, run=None if fresh else run)
    from matrix_ssl.api.pretraining import train  # after everything that does not need PyTorch, which imports slowly

    run = run or run_folder(recipe or DEFAULT_RECIPE, data, method, where)
    chosen = [split_assignment(setting)[0] for setting in assignments]
    trained = train(
        config, run, chosen=chosen, fit=recipe is None, fresh=fresh, online=online, information=information,
        loggers=loggers, report=not no_report, device=device, data_root=data_root, download=download,
    )  # fmt: skip
    if trained.is_main:
        name = shlex.quote(str(run))
        if trained.source.labels is not None:
            options.say(f"This dataset has labels. To measure accuracy: matrix-ssl evaluate {name}")
        options.say(f"To see the images on a map: matrix-ssl explore {name} --out {shlex.quote(str(run / 'explored'))}")
        options.show(encoder=run / ENCODER, report=trained.report)
