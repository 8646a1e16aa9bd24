"""Options that several commands share, and the run that they describe."""

import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from matrix_ssl.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from matrix_ssl.config import RunConfig

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

data = click.option("--data", metavar="PATH_OR_NAME", help="A folder of images, a packed .npz file, hf:NAME, or a "
                    "set: digits, cifar10, cifar100, stl10.")  # fmt: skip
data_root = click.option("--data-root", type=click.Path(path_type=Path), envvar="MATRIX_SSL_DATA", show_envvar=True,
                         help="Where named sets lie.")  # fmt: skip
download = click.option("--download", is_flag=True, help="Let torchvision download a named set into --data-root.")
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                      help="auto: CUDA, then MPS, then the CPU.")  # fmt: skip
assignments = click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True,
                           help="Change a setting; may be repeated.")  # fmt: skip
method = click.option("--method", metavar="NAME_OR_FILE", help="Another method than the recipe's: a name that "
                      "`matrix-ssl methods` lists, or a Python file.")  # fmt: skip
run = click.argument("run", type=click.Path(path_type=Path))
weights = click.option("--weights", type=click.Choice(["student", "teacher"]), default="student", show_default=True,
                       help="Which network of the run.")  # fmt: skip


def say(text: str) -> None:
    """Tells the person something, on standard error."""
    err.print(text, markup=False)


def configure(recipe: str, data: str | None, assignments: tuple[str, ...], *, method: str | None = None) -> "RunConfig":
    """The run of a recipe with another set of images, another method and other settings.

    Raises:
        ConfigError: the recipe, a setting or the method does not exist, or there is no data set.
    """
    given = outline(recipe, data, assignments, method=method)
    from matrix_ssl import train

    return train.complete(given)


def outline(recipe: str, data: str | None, assignments: tuple[str, ...], *, method: str | None = None) -> "RunConfig":
    """As ``configure``, with those options of the method only that the recipe or the person has given.

    Another method that has these options, too, takes them over, and keeps its own defaults for all others.

    Raises:
        ConfigError: the recipe, a setting or the method does not exist, or there is no data set.
    """
    from matrix_ssl import config
    from matrix_ssl.config.recipes import find_recipe, list_recipes

    settings = [*assignments, *([f"data.source={data}"] if data else [])]
    if recipe not in list_recipes() and (os.sep in recipe or Path(recipe).exists()):
        raise ConfigError(f"{recipe!r} is a path, not a recipe: write --data {shlex.quote(recipe)}.")
    base = find_recipe(recipe)
    wanted = config.override(base, [*settings, *([f"method.name={method}"] if method else [])]).method.name
    from matrix_ssl import train  # takes seconds to import: mistakes above are told without it

    given = config.override(train.use_method(base, wanted), settings)
    values = train.complete(given).method.options
    if not given.data.source:
        raise ConfigError(f"recipe {recipe!r} has no dataset of its own: give --data FOLDER.")
    options = {name: values[name] for name in given.method.options}
    return dataclasses.replace(given, method=dataclasses.replace(given.method, options=options))


def default_run(recipe: str, data: str | None, *, unnamed: str, suffix: str | None = None) -> Path:
    """``runs/`` and the names of the recipe, unless it is ``unnamed`` and there is data, of the data, and a suffix."""
    name = Path(data.removeprefix("hf:")).resolve().name.removesuffix(".npz") if data else ""
    name = name.encode(errors="replace").decode()  # a run folder's name is Unicode
    parts = [recipe] if recipe != unnamed or not name else []
    return Path("runs") / "-".join([*parts, *([name] if name else []), *([suffix] if suffix else [])])


def existing_run(run: Path) -> Path:
    """The folder itself; raises RunFolderError where it is not a run folder."""
    if not (run / "config.json").exists():
        raise RunFolderError(f"{run} is not a run folder: it has no config.json.")
    return run
