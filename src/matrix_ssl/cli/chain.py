"""The command ``matrix-ssl chain``."""

from pathlib import Path
from typing import Any

import click

from matrix_ssl.cli import options, stages
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.folder import CONFIG, held, read_config
from matrix_ssl.training.configure import configure, run_folder


@click.command()
@options.recipe
@options.data
@options.method
@options.assignments()
@options.out("as for pretrain")
@options.fresh
@options.max_hours
@click.option("--encoder", metavar="WHERE", help="Use this trained encoder instead of pre-training one: a "
              "run folder, a checkpoint file, torchvision/NAME[:WEIGHTS], timm/NAME[.TAG] or hf:NAME.")  # fmt: skip
@click.option("--protocol", default=",".join(name for name in options.PROTOCOLS if name != "transfer"),
              show_default=True, metavar="NAMES", help="Protocols of matrix-ssl evaluate, separated by "
              "commas.")  # fmt: skip
@click.option("--evaluate-set", metavar="KEY=VALUE", multiple=True, help="Change a setting of a protocol; may be "
              "repeated.")  # fmt: skip
@click.option("--transfer", metavar="PATH_OR_NAME", multiple=True, help="Labelled dataset to transfer to; may be "
              "repeated.")  # fmt: skip
@click.option("--coco", type=options.PATH, help="Folder with images and annotations for detection.")
@click.option("--architecture", default="fpn", show_default=True, help="Detectors of matrix-ssl detect: fpn, c4 or "
              "fpn,c4.")  # fmt: skip
@click.option("--detect-set", metavar="KEY=VALUE", multiple=True, help="Change a setting of detection; may be "
              "repeated.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Number of training "
              "processes, usually the number of GPUs.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only print the commands.")
@options.device
@options.data_root
@options.download
def chain(
    recipe: str, data: Any, method: str | None, assignments: tuple[str, ...], out: Path | None, fresh: bool,
    encoder: str | None, protocol: str, evaluate_set: tuple[str, ...], transfer: tuple[str, ...], coco: Path | None,
    architecture: str, detect_set: tuple[str, ...], processes: int, dry_run: bool, device: str, data_root: Path | None,
    download: bool,
) -> None:  # fmt: skip
    """Pre-train, evaluate, transfer and detect in one command. Run the same command to resume.

    RECIPE, --data, --method, --set and --out are those of `matrix-ssl pretrain`. One page shows all results.
    """
    if encoder is None:
        config = configure(recipe, data, assignments, method=method)
        run = out or run_folder(recipe, data, method)
        network = None if config.start.reference else config.network.encoder
        pretrain = [recipe, *options.data_words(data), *(["--method", method] if method else [])]
        pretrain += [*options.repeated("--set", assignments), *(["--download"] if download else [])]
    else:
        if out is not None or method is not None or assignments or fresh:
            raise ConfigError(f"--encoder {encoder} is already trained; remove --out, --method, --set and --fresh.")
        source = click.get_current_context().get_parameter_source("recipe")
        if source is not click.core.ParameterSource.DEFAULT:
            raise ConfigError(f"--encoder {encoder} is already trained; remove the recipe {recipe!r}.")
        run, pretrain = _encoder_run(encoder, download=download, dry_run=dry_run), []
        network = read_config(run).network.encoder if (run / CONFIG).exists() else None
    annotated = stages.find_coco(coco) if coco else []
    plan = stages.plan(
        run,
        pretrain=pretrain,
        data=[] if encoder is None else options.data_words(data),
        device=device,
        data_root=data_root,
        protocols=stages.group_protocols(protocol, evaluate_set),
        transfer=transfer,
        coco=annotated,
        architectures=stages.check_detection(architecture, detect_set, processes=processes),
        evaluate_settings=evaluate_set,
        detect_settings=detect_set,
    )
    if dry_run:
        options.stdout.print(stages.summary(plan))
        return
    if transfer or coco:
        stages.check_stages(run, transfer=transfer, coco=annotated, encoder=network, data_root=data_root)
    if fresh:
        with held(run, fresh=True, say=options.say):
            pass
    stages.run_stages(run, plan, processes=processes, data_root=data_root, say=options.say)


def _encoder_run(where: str, *, download: bool, dry_run: bool) -> Path:
    """The run folder of an encoder that is already trained; a dry run does not import it."""
    from matrix_ssl.encoder.importing import as_run, default_run
    from matrix_ssl.encoder.where import is_folder, read_where

    if dry_run and not is_folder(where):
        return default_run(read_where(where))
    return as_run(where, download=download, say=options.say)[0]
