"""Builds the configuration of a run from a recipe, data, a method and assignments."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matrix_ssl.config.csv_table import split_suffix
from matrix_ssl.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from matrix_ssl.config import Assignment, Locations, RunConfig

DEFAULT_RECIPE = "images"
_ENDINGS = (".npz", ".tar", ".csv", ".tsv", ".txt")  # of files of images or datasets, which names of runs are without
_FORMER = (".npz",)  # those in earlier versions


def configure(
    recipe: str | None, data: "Locations | None", assignments: "Sequence[Assignment]", *, method: str | None = None,
    device: str = "auto", run: Path | None = None,
) -> "RunConfig":  # fmt: skip
    """The run of a recipe with data, method and settings replaced, and every option filled in and checked.

    Raises ConfigError if the settings name other data or another method than the arguments.

    Without a recipe, the one of the run in the folder is used, if there is one, else the one for own images on the
    device.
    """
    if recipe is None:
        from matrix_ssl.training.fitting import base_recipe

        recipe = base_recipe(device, run)
    return _configure(recipe, data, assignments, method)[1]


def outline(
    recipe: str, data: "Locations | None", assignments: "Sequence[Assignment]", *, method: str | None = None
) -> "RunConfig":
    """Like ``configure``, but only with those options of the method that the recipe or the user has set.

    A different method adopts those of these options that it has, and keeps its own defaults for all others.
    """
    config, complete = _configure(recipe, data, assignments, method)
    options = {name: complete.method.options[name] for name in config.method.options}
    return dataclasses.replace(config, method=dataclasses.replace(config.method, options=options))


def _configure(
    recipe: str, data: "Locations | None", assignments: "Sequence[Assignment]", method: str | None
) -> tuple["RunConfig", "RunConfig"]:
    """The run as it was set, and the same run with every option filled in and checked."""
    from matrix_ssl import config
    from matrix_ssl.config.recipes import find_recipe, list_recipes

    if recipe not in list_recipes() and (os.sep in recipe or Path(recipe).exists()):
        raise ConfigError(f"{recipe!r} is a path, not a recipe: write --data {shlex.quote(recipe)}.")
    config.check_agreement(assignments, {"data.source": ("--data", data), "method.name": ("--method", method)})
    settings = [*assignments, *([("data.source", data)] if data else [])]
    base = _measuring(find_recipe(recipe), settings)
    name = config.override(base, [*settings, *([("method.name", method)] if method else [])]).method.name
    from matrix_ssl.training import setup  # takes seconds to import: the mistakes above are reported without it

    run = config.override(setup.use_method(base, name), settings)
    complete = setup.complete(run)
    if not run.data.source:
        raise ConfigError(f"recipe {recipe!r} has no dataset of its own: give --data FOLDER.")
    return run, complete


def _measuring(base: "RunConfig", settings: "Sequence[Assignment]") -> "RunConfig":
    """The recipe, with mean and deviation to be measured if its channels are overridden."""
    from matrix_ssl.config import split_assignment

    keys = [split_assignment(one)[0] if isinstance(one, str) else one[0] for one in settings]
    if "data.channels" not in keys or "data.mean" in keys:
        return base
    return dataclasses.replace(base, data=dataclasses.replace(base.data, mean=(), std=()))


def run_folder(recipe: str, data: "Locations | None", method: str | None, start: str | None = None) -> Path:
    """The folder of a pre-training for which none was given; ``start`` is WHERE its weights come from."""
    from matrix_ssl.encoder.where import read_where

    parts = [*([Path(method).stem] if method else []), *(["from", read_where(start).folder] if start else [])]
    return default_run(recipe, data, unnamed=DEFAULT_RECIPE, suffix="-".join(parts) or None)


def default_run(recipe: str, data: "Locations | None", *, unnamed: str, suffix: str | None = None) -> Path:
    """The folder ``runs/RECIPE-DATA-SUFFIX``, without the recipe if it is ``unnamed`` and there is data.

    With several datasets it contains the first three names and the number of the others. A name is that of the images'
    folder, or of their file without its ending, preceded by as many parent folders as are needed to differ from runs on
    other images: ``fold2-train``. A run on these images whose folder has an earlier version's name is found again.
    """
    locations = [one for one in ((data,) if isinstance(data, str) else data or ()) if one]
    choices, former = (_choices(recipe, locations, unnamed, suffix, endings) for endings in (_ENDINGS, _FORMER))
    recorded = {folder: _recorded_data(folder) for folder in choices + former}
    own = [locations, ["hf:" * one.startswith("hf:") + _absolute(one) for one in locations]]
    same = (folder for folder, theirs in recorded.items() if theirs in own)
    free = (folder for folder in choices if not all(map(_exists, recorded[folder])))
    return next(same, None) or next(free, choices[0])


def _choices(
    recipe: str, locations: Sequence[str], unnamed: str, suffix: str | None, endings: Sequence[str]
) -> list[Path]:
    """The folders of ``default_run``, from the shortest to the longest name, without these endings of files."""
    choices = []
    for depth in range(1, 1 + max([len(_path(one).parts) for one in locations], default=1)):
        names = [_name(_path(one), depth, endings) for one in locations]
        name = "-".join([*names[:3], *([f"{len(names) - 3}-more"] if len(names) > 3 else [])])
        name = name.encode(errors="replace").decode()  # a run folder's name is Unicode
        parts = [recipe] if recipe != unnamed or not name else []
        choices.append(Path("runs") / "-".join([*parts, *([name] if name else []), *([suffix] if suffix else [])]))
    return choices


def _name(path: Path, depth: int, endings: Sequence[str]) -> str:
    """The last parts of a path, connected by hyphens, without its ending if that is one of these."""
    name = "-".join(path.parts[-depth:]).replace(os.sep, "")
    return name[: -len(path.suffix)] if path.suffix.lower() in endings else name


def _recorded_data(folder: Path) -> list[str]:
    """The locations of the images of the run, comparison or chain in a folder; ``[""]`` if there is none."""
    from matrix_ssl.runs.files import read_json

    for name, *keys in (("config.json", "data", "source"), ("plan.json", "base", "data", "source")):
        try:
            value = read_json(folder / name)
            for key in keys:
                value = value[key]
            return [value] if isinstance(value, str) else [str(one) for one in value]
        except (RunFolderError, LookupError, TypeError):  # the command that uses the folder says what is wrong
            continue
    return [""]


def _exists(location: str) -> bool:
    place = _absolute(split_suffix(location)[0])
    return bool(location) and os.path.exists(place)  # noqa: PTH110, False without permission


def _absolute(location: str) -> str:
    place, suffix = split_suffix(location.removeprefix("hf:"))
    return os.path.abspath(os.path.expanduser(place)) + suffix  # noqa: PTH100, PTH111, ~nobody is no error


def _path(location: str) -> Path:
    return Path(split_suffix(location.removeprefix("hf:").removeprefix("memory:"))[0]).resolve()
