"""From a recipe, data, a method and assignments to the configuration of a run."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matrix_ssl.errors import ConfigError

if TYPE_CHECKING:
    from matrix_ssl.config import Assignment, Locations, RunConfig

DEFAULT_RECIPE = "images"


def configure(
    recipe: str | None, data: "Locations | None", assignments: "Sequence[Assignment]", *, method: str | None = None,
    device: str = "auto", run: Path | None = None,
) -> "RunConfig":  # fmt: skip
    """The run of a recipe with data, method and settings replaced and every option filled in; checked.

    Without a recipe it is that of the run, if the folder holds one, else the one for own images on the device.
    """
    if recipe is None:
        from matrix_ssl.training.fitting import base_recipe

        recipe = base_recipe(device, run)
    return _configure(recipe, data, assignments, method)[1]


def outline(
    recipe: str, data: "Locations | None", assignments: "Sequence[Assignment]", *, method: str | None = None
) -> "RunConfig":
    """As ``configure``, but only with those options of the method that the recipe or the user has set.

    A different method that has these options takes them over and keeps its own defaults for all others.
    """
    config, complete = _configure(recipe, data, assignments, method)
    options = {name: complete.method.options[name] for name in config.method.options}
    return dataclasses.replace(config, method=dataclasses.replace(config.method, options=options))


def _configure(
    recipe: str, data: "Locations | None", assignments: "Sequence[Assignment]", method: str | None
) -> tuple["RunConfig", "RunConfig"]:
    """The run as it is set, and the same one with every option filled in and checked."""
    from matrix_ssl import config
    from matrix_ssl.config.recipes import find_recipe, list_recipes

    if recipe not in list_recipes() and (os.sep in recipe or Path(recipe).exists()):
        raise ConfigError(f"{recipe!r} is a path, not a recipe: write --data {shlex.quote(recipe)}.")
    base = find_recipe(recipe)
    settings = [*assignments, *([("data.source", data)] if data else [])]
    name = config.override(base, [*settings, *([("method.name", method)] if method else [])]).method.name
    from matrix_ssl.training import setup  # takes seconds to import: the mistakes above are reported without it

    run = config.override(setup.use_method(base, name), settings)
    complete = setup.complete(run)
    if not run.data.source:
        raise ConfigError(f"recipe {recipe!r} has no dataset of its own: give --data FOLDER.")
    return run, complete


def run_folder(recipe: str, data: "Locations | None", method: str | None, start: str | None = None) -> Path:
    """The folder of a pre-training that was given none; ``start`` is WHERE its weights come from."""
    from matrix_ssl.encoder.where import read_where

    parts = [*([Path(method).stem] if method else []), *(["from", read_where(start).folder] if start else [])]
    return default_run(recipe, data, unnamed=DEFAULT_RECIPE, suffix="-".join(parts) or None)


def default_run(recipe: str, data: "Locations | None", *, unnamed: str, suffix: str | None = None) -> Path:
    """The folder ``runs/RECIPE-DATA-SUFFIX``, without the recipe if it is ``unnamed`` and there is data.

    Of several datasets it has the first three names, and the number of the others.
    """
    names = [_name(one) for one in ((data,) if isinstance(data, str) else data or ()) if one]
    name = "-".join([*names[:3], *([f"{len(names) - 3}-more"] if len(names) > 3 else [])])
    name = name.encode(errors="replace").decode()  # a run folder's name is Unicode
    parts = [recipe] if recipe != unnamed or not name else []
    return Path("runs") / "-".join([*parts, *([name] if name else []), *([suffix] if suffix else [])])


def _name(location: str) -> str:
    return Path(location.removeprefix("hf:").removeprefix("memory:")).resolve().name.removesuffix(".npz")
