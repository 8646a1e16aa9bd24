"""Recipes: one function per file that returns a complete run, with its source, command and measured result.

A file here needs no registration; its function is called ``recipe`` and takes no arguments.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from matrix_ssl.config import RunConfig
from matrix_ssl.config.settings import RENAMED_RECIPES
from matrix_ssl.errors import ConfigError, did_you_mean


def list_recipes() -> dict[str, str]:
    """Every recipe's name and the first line of its description."""
    return {name: (_module(name).__doc__ or "").partition("\n")[0] for name in _names()}


def find_recipe(name: str) -> RunConfig:
    """The run that a recipe describes; raises ConfigError if there is no such recipe."""
    names = _names()
    if name not in names:
        near = f" Did you mean {RENAMED_RECIPES[name]!r}?" if name in RENAMED_RECIPES else did_you_mean(name, names)
        raise ConfigError(f"There is no recipe {name!r}.{near}")
    config: RunConfig = _module(name).recipe()
    return config


def other_methods(name: str) -> dict[str, Any]:
    """The options in a recipe's ``OTHER_METHODS``, for methods other than its own that have such options."""
    return dict(getattr(_module(name), "OTHER_METHODS", {})) if name in _names() else {}


def follows_papers(name: str) -> bool:
    """Whether a recipe, by ``FOLLOWS_PAPERS = True``, trains a different method with the values of its own paper."""
    return name in _names() and getattr(_module(name), "FOLLOWS_PAPERS", False)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
