"""Arguments, options and consoles that several commands share."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from matrix_ssl.cli import completion
from matrix_ssl.cli.offered import option_instead
from matrix_ssl.config import split_assignment
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs.signals import limit_time
from matrix_ssl.runs.terminal import Terminal
from matrix_ssl.training.configure import DEFAULT_RECIPE

if TYPE_CHECKING:
    from matrix_ssl.config import Locations


class _Path(click.Path):
    """A path in which ``~`` means the home folder: shells do not expand it in ``--out=~/x``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path; raises ConfigError if there is no such home folder."""
        path = Path(os.fsdecode(super().convert(value, parameter, context)))
        try:
            return path.expanduser()
        except RuntimeError:
            raise ConfigError(
                f"{path}: there is no such home folder. For a folder of that name, write ./{path}."
            ) from None


class _Place(click.ParamType):
    """A path or a name, possibly with a prefix such as ``config:``; ``~`` means the home folder, as in ``_Path``."""

    name = "text"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The text with the expanded path; raises ConfigError if there is no such home folder."""
        start, mark, rest = str(value).partition("~")
        is_home = mark and start in ("", "config:", "hf:")
        return f"{start}{PATH.convert(mark + rest, parameter, context)}" if is_home else str(value)


class Number(click.FloatRange):
    """A number in a range; NaN is rejected."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The number; a usage error if it is outside the range."""
        number = super().convert(value, parameter, context)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", parameter, context)
        return number


PATH = _Path()
PLACE = _Place()
PROTOCOLS = ("knn", "linear", "low-shot", "transfer", "linear-sgd", "semi-supervised", "fine-tune")

stdout = Terminal(soft_wrap=True)
stderr = Terminal(stderr=True, soft_wrap=True)

recipe = click.argument("recipe", default=DEFAULT_RECIPE, shell_complete=completion.recipes)
optional_recipe = click.argument("recipe", required=False, shell_complete=completion.recipes)
run = click.argument("run", type=PATH)
where = click.argument("where", metavar="WHERE")
where_or_features = click.argument("where", metavar="WHERE_OR_FEATURES")


def recipe_for(device: str) -> str:
    """The recipe of a command that is given none: for own images, on a CPU or a GPU.

    Args:
        device: as ``--device`` takes it.
    """
    from matrix_ssl.runs import devices  # slow to import
    from matrix_ssl.training.fitting import ON_CPU, ON_GPU

    return ON_CPU if devices.choose_device(device).type == "cpu" else ON_GPU


def _one_or_several(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> Any:
    return values if len(values) > 1 else values[0] if values else None


def _limit_time(_: click.Context, __: click.Parameter, hours: float | None) -> None:
    limit_time(hours)


data = click.option("--data", metavar="PATH_OR_NAME", multiple=True, callback=_one_or_several,
                    shell_complete=completion.datasets, help="A folder of images, a .csv table of paths and "
                    "labels, a packed .npz file, hf:NAME, or a dataset: digits, cifar10, cifar100, stl10; may be "
                    "repeated, to use several as one.")  # fmt: skip
data_root = click.option("--data-root", type=PATH, envvar="MATRIX_SSL_DATA", show_envvar=True,
                         help="Folder that contains the named datasets.")  # fmt: skip
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")  # equal to the keys of runs.loggers.LOGGERS, which a test compares
loggers = click.option("--logger", "loggers", type=click.Choice(LOGGERS), multiple=True, help="Also send the metrics "
                       "to this logger; wandb stays offline unless WANDB_MODE says otherwise; may be "
                       "repeated.")  # fmt: skip
download = click.option("--download", is_flag=True, help="Download what is missing: a named dataset into "
                        "--data-root, and published weights into the local cache.")  # fmt: skip
download_weights = click.option(
    "--download", is_flag=True, help="Fetch published weights that the local cache lacks from their hub."
)
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                      help="Device; auto: CUDA, then MPS, then the CPU.")  # fmt: skip
method = click.option("--method", metavar="NAME_OR_FILE", shell_complete=completion.methods_or_files,
                      help="Method: a name listed by `matrix-ssl methods`, or a Python file.  "
                      "[default: the recipe's]")  # fmt: skip
weights = click.option("--weights", type=click.Choice(["student", "teacher"]), default="student", show_default=True,
                       help="Network of the run.")  # fmt: skip
split = click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True,
                     help="Split of the dataset.")  # fmt: skip
features = click.option("--features", type=PATH, metavar="FILE", help="File for the features of the encoder: "
                        "read if it exists, otherwise written.  [default: a cache]")  # fmt: skip
baseline_size = click.option("--baseline-size", type=click.Choice(["own", "run", "both"]), default="own",
                             show_default=True, help="Image size for public encoders: that of their own training, "
                             "that of the run, or both in turn.")  # fmt: skip
fresh = click.option("--fresh", is_flag=True, help="Start over; an existing run is kept as NAME.1, NAME.2 and so on.")
max_hours = click.option("--max-hours", type=Number(0, min_open=True), metavar="HOURS", expose_value=False,
                         callback=_limit_time, help="Stop at a checkpoint after this many hours, with exit code 75; "
                         "the same command resumes.  [default: no limit]")  # fmt: skip
no_report = click.option("--no-report", is_flag=True, help="Do not write the report.html of the run.")


def assignments(text: str = "Change a setting") -> Callable[[Any], Any]:
    """The option ``--set KEY=VALUE``."""
    return click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, callback=_no_options,
                        help=f"{text}; may be repeated.")  # fmt: skip


def _no_options(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The assignments; raises ConfigError for one of an option."""
    for assignment in values:
        key = split_assignment(assignment)[0]
        if option := option_instead(context.command, key):
            raise ConfigError(f"--set {assignment}: {key!r} is not a setting of this command: use its option {option}.")
    return values


def out(default: str | None, *, what: str = "Folder of the run") -> Callable[[Any], Any]:
    """The option ``--out FOLDER``, required if there is no default."""
    text = f"{what}." if default is None else f"{what}.  [default: {default}]"
    return click.option("--out", type=PATH, metavar="FOLDER", required=default is None, help=text)


def baseline(what: str) -> Callable[[Any], Any]:
    """The option ``--baseline WHERE``."""
    text = f"Frozen public encoder that {what}: a run folder, a checkpoint, or a name; may be repeated."
    return click.option("--baseline", metavar="WHERE", multiple=True, help=text)


def names(text: str) -> list[str]:
    """The distinct names in a comma-separated list, in order."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def check_seeds(assignments: Sequence[str]) -> None:
    """Raises ConfigError for a setting ``seed`` in a command that trains with its own seeds."""
    for assignment in assignments:
        if split_assignment(assignment)[0] == "seed" and split_assignment(assignment)[1] != "0":
            raise ConfigError(f"--set {assignment}: this command trains with the seeds 0, 1, 2 and so on, as many as "
                              "--seeds says; remove it.")  # fmt: skip


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None; the others keep their defaults."""
    return {key: value for key, value in values.items() if value is not None}


def say(text: str) -> None:
    """Prints a message to standard error."""
    stderr.print(text)


@contextmanager
def progress(what: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on a terminal; the function that it yields takes a text and the fraction done, in [0, 1]."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)


def show(**paths: Path | None) -> None:
    """Prints to standard output what a command has written: a line with name and path for each that is not None."""
    width = max(7, *map(len, paths))  # at least that of "encoder", for all commands
    for name, path in paths.items():
        if path is not None:
            stdout.print(f"{name:{width}s} {path}")


def repeated(option: str, values: Sequence[str]) -> list[str]:
    """An option of a command line, once for each of its values."""
    return [word for value in values for word in (option, value)]


def data_words(data: "Locations | None") -> list[str]:
    """The options ``--data`` of a command line."""
    return repeated("--data", (data,) if isinstance(data, str) else data or ())
