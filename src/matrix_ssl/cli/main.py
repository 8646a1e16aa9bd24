"""The command line: parse, call, print. What it does lives in the modules that it calls."""

import contextlib
import io
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from matrix_ssl import __version__
from matrix_ssl.cli import options
from matrix_ssl.cli.compare import compare
from matrix_ssl.cli.detect import detect
from matrix_ssl.cli.evaluate import embed, evaluate
from matrix_ssl.cli.llm import llm
from matrix_ssl.cli.weights import export, import_
from matrix_ssl.errors import CheckpointError, ConfigError, MatrixSSLError, ProcessError, RunFolderError, did_you_mean
from matrix_ssl.runs.display import image_bar
from matrix_ssl.training.configure import configure, default_run

if TYPE_CHECKING:
    from matrix_ssl.config import RunConfig
    from matrix_ssl.data import Source

DEFAULT_RECIPE = "images"
_SECONDS_FOR_THE_FIRST = 10.0

_out, _err, _say = options.out, options.err, options.say


class Commands(click.Group):
    """A group that suggests the command that was meant."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Finds the command, or says which one is near."""
        name = args[0] if args else ""
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise ConfigError(f"there is no command {name!r}.{did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def main() -> None:
    """Runs the command line; every mistake of the user ends in one sentence and a non-zero exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        code = commands.main(standalone_mode=False)
    except MatrixSSLError as error:
        _tell(str(error), error)
        code = error.exit_code
    except click.ClickException as error:
        moved = isinstance(error, click.NoSuchOption) and error.option_name in ("--run", "--run-folder")
        hint = "The folder of a run is now --out." if moved else "See matrix-ssl --help."
        _tell(f"{error.format_message()} {hint}", error)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _err.print("stopped.")
        code = 130
    sys.exit(code or 0)


def _tell(text: str, error: MatrixSSLError | click.ClickException) -> None:
    """Prints an error; of several processes that meet the same one, the first alone."""
    first = "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"
    if first or isinstance(error, ProcessError):
        _err.print(f"error: {text}", markup=False)
    elif error.exit_code < 128:  # not after a signal, which the launcher has met, too
        time.sleep(_SECONDS_FOR_THE_FIRST)  # torchrun ends all processes when one has ended


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="matrix-ssl")
@click.pass_context
def commands(context: click.Context) -> None:
    """Matrix-information self-supervised learning: pre-train an encoder on unlabelled images, see how good it is."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command()
@click.argument("recipe", default=DEFAULT_RECIPE)
@options.data
@options.method
@options.assignments
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/RECIPE or "
              "runs/RECIPE-DATA]")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Start over; an existing run folder is kept under another name.")
@click.option("--online", is_flag=True, help="Also measure accuracy during training, on a held-out fifth of the "
              "labels; the encoder stays the same bit for bit.")  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events into the run folder.")
@click.option("--deterministic", is_flag=True, help="On CUDA, only kernels that give the same bits again; slower.")
@options.device
@options.data_root
@options.download
def pretrain(
    recipe: str,
    data: str | None,
    method: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    fresh: bool,
    online: bool,
    tensorboard: bool,
    deterministic: bool,
    device: str,
    data_root: Path | None,
    download: bool,
) -> None:
    """Pre-train an encoder. The same command again resumes, or says that the run is complete.

    RECIPE is a name that `matrix-ssl recipes` lists; without one, `images` serves for any folder of images.
    """
    from matrix_ssl import distributed
    from matrix_ssl.data import open_source
    from matrix_ssl.runs import devices
    from matrix_ssl.runs.display import Display
    from matrix_ssl.runs.folder import ENCODER, EVALUATION
    from matrix_ssl.runs.metrics import check_tensorboard
    from matrix_ssl.training import setup

    config = configure(recipe, data, (*assignments, *(["deterministic=true"] if deterministic else [])), method=method)
    if tensorboard:
        check_tensorboard()
    run = out or _default_run(recipe, data, method)
    distributed.start(devices.choose_device(device).type)
    chosen = devices.choose_device(device)  # now that the number of this process is known
    display = Display(quiet=not distributed.is_main())
    with contextlib.ExitStack() as stack:
        stack.callback(distributed.stop)
        stack.enter_context(distributed.connected())
        for turn in (True, False):  # the main process first: it may download
            with distributed.together():
                if distributed.is_main() == turn:
                    source = open_source(config.data.source, split="train", data_root=data_root, download=download)
        config = setup.identify_data(config, source)
        with distributed.together():
            loop = setup.prepare(config, source=source, device=chosen, display=display)
            if online:
                from matrix_ssl.evaluate.online import OnlineEvaluation

                loop.observer = OnlineEvaluation(loop.source, config.data, device=chosen)
        complete = False
        with distributed.together():
            if distributed.is_main():
                complete = _claim_run(stack, run, config, fresh=fresh)
                if not complete:
                    setup.write_environment(run, chosen)
        if distributed.broadcast_object(complete):
            display.say(f"{run} is complete; --fresh starts over.")
        else:
            display.say(setup.headline(config, loop.source, chosen))
            loop.train(run, run / "tensorboard" if tensorboard else None)
        if distributed.is_main():
            if source.labels is not None:
                display.say(f"the images have labels: matrix-ssl evaluate {shlex.quote(str(run))} measures accuracy.")
            elif not (run / EVALUATION).exists():
                _describe_images(run, source, "student", chosen)
            _out.print(f"encoder {run / ENCODER}\nreport  {_write_report(run)}", markup=False)


for command in (compare, detect, embed, evaluate, export, import_, llm):
    commands.add_command(command)


@commands.command()
@click.argument("recipe", default=DEFAULT_RECIPE)
@options.data
@options.method
@options.assignments
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: as for "
              "pretrain]")  # fmt: skip
@click.option("--encoder", type=click.Path(path_type=Path), metavar="RUN", help="A finished run, such as an imported "
              "one, in the place of pre-training.")  # fmt: skip
@click.option("--protocol", default="knn,linear,low-shot,linear-sgd,semi-supervised,fine-tune", show_default=True,
              help="Of matrix-ssl evaluate.")  # fmt: skip
@click.option("--evaluate-set", metavar="KEY=VALUE", multiple=True, help="Setting of a protocol; may be repeated.")
@click.option("--transfer", metavar="PATH_OR_NAME", multiple=True, help="Another labelled set; may be repeated.")
@click.option("--coco", type=click.Path(path_type=Path), help="Folder with images and annotations for detection.")
@click.option("--architecture", default="fpn", show_default=True, help="Of matrix-ssl detect: fpn, c4 or fpn,c4.")
@click.option("--detect-set", metavar="KEY=VALUE", multiple=True, help="Setting of detection; may be repeated.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="One for each GPU.")
@click.option("--dry-run", is_flag=True, help="Only print the commands.")
@options.device
@options.data_root
def chain(
    recipe: str,
    data: str | None,
    method: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    encoder: Path | None,
    protocol: str,
    evaluate_set: tuple[str, ...],
    transfer: tuple[str, ...],
    coco: Path | None,
    architecture: str,
    detect_set: tuple[str, ...],
    processes: int,
    dry_run: bool,
    device: str,
    data_root: Path | None,
) -> None:
    """Pre-train, evaluate by every protocol, transfer and detect: one command, one page. The same command resumes.

    RECIPE, --data, --method and --set are those of `matrix-ssl pretrain`.
    """
    from matrix_ssl.cli import chain as chains

    if encoder is not None and (out is not None or method is not None or assignments):
        raise ConfigError(f"--encoder {encoder} is finished: remove --out, --method and --set.")
    if encoder is None:
        configure(recipe, data, assignments, method=method)
        words = [recipe, *(["--data", data] if data else []), *(["--method", method] if method else [])]
        words += [word for setting in assignments for word in ("--set", setting)]
    places = ["--device", device, *(["--data-root", str(data_root)] if data_root else [])]
    target = options.existing_run(encoder) if encoder else out or _default_run(recipe, data, method)
    stages = chains.plan(
        target,
        pretrain=[] if encoder else words,
        data=["--data", data] if encoder and data else [],
        places=places,
        protocols=chains.group_protocols(protocol, evaluate_set),
        transfer=transfer,
        coco=None if coco is None else chains.find_coco(coco),
        architectures=chains.check_detection(architecture, detect_set),
        evaluate_settings=evaluate_set,
        detect_settings=detect_set,
    )
    if dry_run:
        _out.print(chains.summary(stages), markup=False)
        return
    chains.run_stages(target, stages, processes=processes, data_root=data_root, say=_say)


@commands.command()
@options.run
def report(run: Path) -> None:
    """Write RUN/report.html again."""
    _out.print(f"report  {_write_report(run)}", markup=False)


@commands.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes, or show every setting of one."""
    from matrix_ssl.config.recipes import find_recipe, list_recipes

    if name is None:
        for recipe, description in list_recipes().items():
            _out.print(f"{recipe:12s} {description}", markup=False)
        return
    from matrix_ssl import config
    from matrix_ssl.training import setup

    for key, value in config.flatten(config.to_dict(setup.complete(find_recipe(name)))):
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        _out.print(f"{key.replace('method.options.', 'method.')}={text}", markup=False)


@commands.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or show one: its idea, formula and paper, and its options with their defaults."""
    from matrix_ssl.methods import complete_options, describe_method, find_method, list_methods

    if name is None:
        for method in list_methods():
            _out.print(f"{method:12s} {describe_method(method).partition(chr(10))[0]}", markup=False)
        return
    _out.print(describe_method(name).strip() + "\n", markup=False)
    for option, value in complete_options(find_method(name), {}).items():
        _out.print(f"method.{option}={value}", markup=False)


def _default_run(recipe: str, data: str | None, method: str | None = None) -> Path:
    return default_run(recipe, data, unnamed=DEFAULT_RECIPE, suffix=Path(method).stem if method else None)


def _claim_run(stack: contextlib.ExitStack, run: Path, config: "RunConfig", *, fresh: bool) -> bool:
    """Locks the run folder until ``stack`` ends and makes sure that it is for this run.

    Returns:
        Whether the run is complete.
    """
    from matrix_ssl.config import differences, to_dict
    from matrix_ssl.runs import checkpoint
    from matrix_ssl.runs.files import write_json
    from matrix_ssl.runs.folder import CONFIG, ENCODER, SUMMARY, read_config, take_folder

    take_folder(run, stack, fresh=fresh, say=_say)
    if not (run / CONFIG).exists():
        write_json(run / CONFIG, to_dict(config))
        return False
    different = differences(read_config(run), config)
    if different:
        raise RunFolderError(
            f"{run} holds a run with other settings ({'; '.join(different[:5])}): use --out for another folder, or "
            f"--fresh to start over (the old folder is kept)."
        )
    if not (run / SUMMARY).exists():
        return False
    try:
        checkpoint.read_safetensors(run / ENCODER)
    except CheckpointError as error:
        _say(f"warning: {error} It is written again from the last checkpoint.")
        return False
    return True


def _describe_images(run: Path, source: "Source", weights: Any, device: Any) -> None:
    from matrix_ssl.evaluate.protocols import describe_images

    with image_bar(_err, "features") as show:
        describe_images(run, source, weights=weights, device=device, on_progress=show)


def _write_report(run: Path) -> Path:
    from matrix_ssl.report import write_report

    return write_report(run)


def _existing(run: Path) -> Path:
    if not (run / "config.json").exists():
        raise RunFolderError(f"{run} is not a run folder: it has no config.json.")
    return run
