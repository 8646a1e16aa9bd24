"""The command ``matrix-ssl pretrain``."""

import shlex
from pathlib import Path

import click

from matrix_ssl.cli import options
from matrix_ssl.errors import CheckpointError
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
    from matrix_ssl import distributed
    from matrix_ssl.data import open_source
    from matrix_ssl.runs.display import image_bar
    from matrix_ssl.runs.folder import ENCODER, EVALUATION
    from matrix_ssl.runs.metrics import check_tensorboard
    from matrix_ssl.runs.session import session
    from matrix_ssl.training import setup

    config = configure(recipe, data, (*assignments, *(["deterministic=true"] if deterministic else [])), method=method)
    if tensorboard:
        check_tensorboard()
    run = out or options.run_folder(recipe, data, method)
    with session(device) as s:
        for turn in (True, False):  # the main process first: it may download
            with distributed.together():
                if s.main == turn:
                    source = open_source(config.data.source, split="train", data_root=data_root, download=download)
        config = setup.identify_data(config, source)
        with distributed.together():
            training = setup.prepare(config, source=source, device=s.device, display=s.display)
            if online:
                from matrix_ssl.evaluate.online import OnlineEvaluation

                training.observer = OnlineEvaluation(training.source, config.data, device=s.device)
        if not s.claim(run, lambda: config, is_complete=lambda: _is_complete(run), fresh=fresh):
            s.display.say(setup.headline(config, training.source, s.device))
            training.train(run, run / "tensorboard" if tensorboard else None)
        if not s.main:
            return
        from matrix_ssl.report import write_report

        if source.labels is not None:
            s.display.say(f"This dataset has labels. To measure accuracy: matrix-ssl evaluate {shlex.quote(str(run))}")
        elif not (run / EVALUATION).exists() and not no_report:
            from matrix_ssl.evaluate.protocols import describe_images

            with image_bar(options.stderr, "features") as show:
                describe_images(run, source, weights="student", device=s.device, on_progress=show)
        options.show(encoder=run / ENCODER, report=None if no_report else write_report(run))


def _is_complete(run: Path) -> bool:
    """Whether a run has its last file and a whole encoder."""
    from matrix_ssl.runs.checkpoint import read_safetensors
    from matrix_ssl.runs.folder import ENCODER, SUMMARY

    if not (run / SUMMARY).exists():
        return False
    try:
        read_safetensors(run / ENCODER)
    except CheckpointError as error:
        options.say(f"Warning: {error} It is written again from the last checkpoint.")
        return False
    return True
