"""The commands ``matrix-ssl recipes``, ``methods`` and ``report``."""

from pathlib import Path

import click

from matrix_ssl.cli import completion, options


@click.command()
@click.argument("name", required=False, shell_complete=completion.recipes)
def recipes(name: str | None) -> None:
    """List the recipes, or show every setting of one."""
    from matrix_ssl.config.recipes import find_recipe, list_recipes

    if name is None:
        for recipe, description in list_recipes().items():
            options.stdout.print(f"{recipe:12s} {description}", markup=False)
        return
    from matrix_ssl import config
    from matrix_ssl.training import setup

    for key, value in config.flatten(config.to_dict(setup.complete(find_recipe(name)))):
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        options.stdout.print(f"{key.replace('method.options.', 'method.')}={text}", markup=False)


@click.command()
@click.argument("name", required=False, shell_complete=completion.methods)
def methods(name: str | None) -> None:
    """List the methods, or show the idea, formula, paper and options of one."""
    from matrix_ssl.methods import complete_options, describe_method, find_method, list_methods

    if name is None:
        width = max(map(len, list_methods()))
        for method in list_methods():
            options.stdout.print(f"{method:{width}s} {describe_method(method).partition(chr(10))[0]}", markup=False)
        return
    options.stdout.print(describe_method(name).strip() + "\n", markup=False)
    for option, value in complete_options(find_method(name), {}).items():
        options.stdout.print(f"method.{option}={value}", markup=False)


@click.command()
@options.run
def report(run: Path) -> None:
    """Write the page RUN/report.html from the files of the run."""
    from matrix_ssl.report import write_report

    options.show(report=write_report(run))
