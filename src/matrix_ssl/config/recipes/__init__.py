"""Recipes: one function a file that returns a complete run, with its source, command and measured result.

A file here needs no registration; its function is called ``recipe`` and takes no arguments.
"""

import importlib
import pkgutil

from matrix_ssl.config import RunConfig
from matrix_ssl.config.settings import RENAMED_RECIPES
from matrix_ssl.errors import ConfigError, did_you_mean


def list_recipes() -> dict[str, str]:
    """Every recipe's name and the first line of its description."""
    names = _names()
    return {name: (importlib.import_module(f"{__name__}.{name}").__doc__ or "").partition("\n")[0] for name in names}


def find_recipe(name: str) -> RunConfig:
    """The run that a recipe describes.

    Raises:
        ConfigError: there is no such recipe.
    """
    names = _names()
    if name not in names:
        near = f" Did you mean {RENAMED_RECIPES[name]!r}?" if name in RENAMED_RECIPES else did_you_mean(name, names)
        raise ConfigError(f"There is no recipe {name!r}.{near}")
    config: RunConfig = importlib.import_module(f"{__name__}.{name}").recipe()
    return config


def follows_papers(name: str) -> bool:
    """Whether a recipe that is run with a different method takes the values of that method's paper.

    Its file then says ``FOLLOWS_PAPERS = True``.
    """
    return name in _names() and getattr(importlib.import_module(f"{__name__}.{name}"), "FOLLOWS_PAPERS", False)


def _names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
