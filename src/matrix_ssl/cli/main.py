"""The command line: its commands, errors and exit codes."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from matrix_ssl import __version__
from matrix_ssl.cli import offered, options
from matrix_ssl.cli.chain import chain
from matrix_ssl.cli.compare import compare
from matrix_ssl.cli.detect import detect
from matrix_ssl.cli.doctor import doctor
from matrix_ssl.cli.evaluate import embed, evaluate
from matrix_ssl.cli.explore import explore
from matrix_ssl.cli.find import cluster, duplicates, mislabels, outliers, search, select
from matrix_ssl.cli.lists import methods, recipes, report
from matrix_ssl.cli.llm import llm
from matrix_ssl.cli.measure import diagnose, measure
from matrix_ssl.cli.pack import pack
from matrix_ssl.cli.pretrain import pretrain
from matrix_ssl.cli.refusals import refusal
from matrix_ssl.cli.serve import serve
from matrix_ssl.cli.weights import export, import_
from matrix_ssl.cli.worth import worth
from matrix_ssl.config import system
from matrix_ssl.errors import OFFERED, ConfigError, MatrixSSLError, ProcessError, did_you_mean, is_out_of_memory
from matrix_ssl.runs.signals import Interrupted

_SECONDS_FOR_THE_FIRST = 10.0
_CLOSED_PIPE = 141  # the exit code, in a shell, of a program ended by SIGPIPE
_MOVED = {  # options of earlier versions
    "--run": "The folder of a run is now --out.",
    "--run-folder": "The folder of a run is now --out.",
    "--tensorboard": "It is now --logger tensorboard.",
}


class NobodyReads(Exception):
    """The program that reads the output, such as head, has ended."""


@contextmanager
def _noticing_closed_pipes() -> Iterator[None]:
    """Raises NobodyReads if the output of a block is no longer read; click and rich would exit with 1."""
    try:
        yield
    except BrokenPipeError:
        raise NobodyReads from None
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            raise NobodyReads from None
        raise


class Commands(click.Group):
    """A group that suggests the intended command for a misspelt one."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """The context; raises NobodyReads if it prints the help into a closed pipe."""
        with _noticing_closed_pipes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; raises NobodyReads if it prints into a closed pipe."""
        with _noticing_closed_pipes():
            return super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command; raises ConfigError with the closest name if it does not exist."""
        name = args[0] if args else ""
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise ConfigError(f"There is no command {name!r}.{did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="matrix-ssl", help="Show the version and exit.")
@click.pass_context
def commands(context: click.Context) -> None:
    """Matrix-information self-supervised learning: pre-train an image encoder without labels and evaluate it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    chain,
    cluster,
    compare,
    detect,
    diagnose,
    doctor,
    duplicates,
    embed,
    evaluate,
    explore,
    export,
    import_,
    llm,
    measure,
    methods,
    mislabels,
    outliers,
    pack,
    pretrain,
    recipes,
    report,
    search,
    select,
    serve,
    worth,
):
    commands.add_command(command)


def _place(context: click.Context | None) -> str:
    """The command of a context, such as ``matrix-ssl llm score``, however the program was started."""
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return " ".join(["matrix-ssl", *names])


def main() -> None:
    """Runs the command line; every user error ends in one sentence and a non-zero exit code."""
    _open_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may contain what the terminal cannot show
    OFFERED.ask(partial(offered.running_has, commands))
    system.limit_threads()  # before PyTorch is imported
    try:
        code = commands.main(standalone_mode=False)
        if sys.stdout is not None:  # the shell may have closed it, >&-
            sys.stdout.flush()
    except MatrixSSLError as error:
        _report(str(error), error)
        code = error.exit_code
    except click.ClickException as error:
        unknown = error.option_name if isinstance(error, click.NoSuchOption) else ""
        hint = _MOVED.get(unknown, f"See {_place(getattr(error, 'ctx', None))} --help.")
        _report(f"{error.format_message()} {hint}", error)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):  # the latter is also a RuntimeError
        options.say("Stopped.")
        code = 130
    except (NobodyReads, BrokenPipeError):
        code = _end_silently()
    except Exception as error:
        sentence = _out_of_memory() if is_out_of_memory(error) else refusal(error)
        if sentence is None:
            raise
        _report(sentence, error)
        code = 1
    sys.exit(code or 0)


def _end_silently() -> int:
    """Discards all remaining output; returns the exit code of a program whose output is no longer read."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    return _CLOSED_PIPE


def _open_descriptors() -> None:
    """Opens the standard streams that the shell has closed (``>&-``) on the null device.

    Otherwise the first file to be opened, perhaps a checkpoint, would get their number and whatever libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _out_of_memory() -> str:
    """The sentence for insufficient memory, with the remedies that the running command has."""
    batches = OFFERED.first("--set batch_size=...", "--set batch=...", "--batch-size N")
    workers = OFFERED.first("--set data.workers=0", "--set workers=0", "--workers 0")
    ways = [f"smaller batches ({batches}), "] if batches else []
    ways += ["smaller inputs", *([f", fewer workers ({workers})"] if workers else [])]
    return (
        f"The memory is not enough. Use {''.join(ways)} or a machine with more; what has been "
        "saved stays, and the same command resumes."
    )


def _report(text: str, error: Exception) -> None:
    """Prints an error; if several processes meet the same one, only the first prints it.

    As soon as one process ends, ``torchrun`` kills the others. Under it, processes that print nothing therefore wait
    some seconds, so that the first has time to print the error. This is why it seems to hang after an error.
    """
    rank = os.environ.get("RANK", "0")
    first = "WORLD_SIZE" not in os.environ or not rank.isdecimal() or int(rank) == 0
    if first or isinstance(error, ProcessError):
        options.stderr.print(f"error: {text}")
    elif "TORCHELASTIC_RUN_ID" in os.environ and not isinstance(error, Interrupted):  # a signal reaches torchrun, too
        time.sleep(_SECONDS_FOR_THE_FIRST)
