"""The commands ``matrix-ssl recipes``, ``methods`` and ``report``."""

import ast
from pathlib import Path

import click

from matrix_ssl import config
from matrix_ssl.cli import completion, options


@click.command()
@click.argument("name", required=False, shell_complete=completion.recipes)
def recipes(name: str | None) -> None:
    """List the recipes, or show every setting of one."""
    from matrix_ssl.config.recipes import find_recipe, list_recipes

    if name is None:
        for recipe, description in list_recipes().items():
            options.stdout.print(f"{recipe:12s} {description}")
        return
    from matrix_ssl.training import setup

    for key, value in config.flatten(config.to_dict(setup.complete(find_recipe(name)))):
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        options.stdout.print(f"{key.replace('method.options.', 'method.')}={text}")


@click.command()
@click.argument("name", required=False, shell_complete=completion.methods)
def methods(name: str | None) -> None:
    """List the methods, or show the idea, formula, paper and options of one."""
    if name is None:
        lines = _first_lines()
        width = max(map(len, lines))
        for method, line in lines.items():
            options.stdout.print(f"{method:{width}s} {line}")
        return
    from matrix_ssl.methods import complete_options, describe_method, find_method

    options.stdout.print(describe_method(name).strip() + "\n")
    for option, value in complete_options(find_method(name), {}).items():
        options.stdout.print(f"method.{option}={value}")


def _first_lines() -> dict[str, str]:
    """The first line about every method, read from its file, since importing one would import PyTorch, for seconds."""
    files = (completion.METHODS / f"{name}.py" for name in completion.method_names())
    return {path.stem: (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0] for path in files}


@click.command()
@options.run
def report(run: Path) -> None:
    """Write the page RUN/report.html from the files of the run, or compare.html from those of a comparison."""
    from matrix_ssl.report import write_report
    from matrix_ssl.report.comparison.data import RESULTS
    from matrix_ssl.report.comparison.page import write_comparison

    options.show(report=write_comparison(run) if (run / RESULTS).is_file() else write_report(run))
