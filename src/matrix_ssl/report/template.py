"""Fills the HTML templates of pages; those of this package lend head, style and figures to others."""

from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from matrix_ssl.report.svg import COLOURS


def render(package: str, name: str, values: Mapping[str, Any]) -> str:
    """The page of the template ``name`` in ``package``. Text is escaped; a value that is not given is an error."""
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader(__package__, "")])
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader
    )
    return environment.get_template(name).render({"colours": COLOURS, **values})
