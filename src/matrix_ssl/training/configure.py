"""From a recipe, data, a method and assignments to the configuration of a run."""

import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from matrix_ssl.errors import ConfigError

if TYPE_CHECKING:
    from matrix_ssl.config import RunConfig


def configure(recipe: str, data: str | None, assignments: tuple[str, ...], *, method: str | None = None) -> "RunConfig":
    """The run of a recipe with another set of images, another method and other settings.

    Raises:
        ConfigError: the recipe, a setting or the method does not exist, or there is no data set.
    """
    given = outline(recipe, data, assignments, method=method)
    from matrix_ssl.training import setup

    return setup.complete(given)


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
    from matrix_ssl.training import setup  # takes seconds to import: mistakes above are told without it

    given = config.override(setup.use_method(base, wanted), settings)
    values = setup.complete(given).method.options
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
