"""Shell completion of recipes, methods and datasets, besides commands, options and choices. Does not load torch."""

import pkgutil
from pathlib import Path

import click
from click.shell_completion import CompletionItem

DATASETS = ("digits", "cifar10", "cifar100", "stl10", "stl10-unlabeled")
METHODS = Path(__file__).parents[1] / "methods"


def recipes(context: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Recipes with their descriptions."""
    from matrix_ssl.config.recipes import list_recipes

    return [CompletionItem(name, help=words) for name, words in list_recipes().items() if name.startswith(text)]


def method_names() -> list[str]:
    """The methods of this package, by the names of their files."""
    return sorted(file.name for file in pkgutil.iter_modules([str(METHODS)]) if not file.name.startswith("_"))


def methods(context: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Methods of this package."""
    return [CompletionItem(name) for name in method_names() if name.startswith(text)]


def methods_or_files(context: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Methods of this package, or files if no method begins with the text."""
    return methods(context, parameter, text) or [CompletionItem(text, type="file")]


def datasets(context: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Named datasets, or files and folders if no dataset begins with the text."""
    names = [CompletionItem(name) for name in DATASETS if name.startswith(text)]
    return names if names and text else [*names, CompletionItem(text, type="file")]
