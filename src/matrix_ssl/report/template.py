"""Fills the HTML templates of pages."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from matrix_ssl.report.svg import COLOURS


def render(name: str, values: Mapping[str, Any]) -> str:
    """The page of the template ``name``. Text is escaped; a value that is not given is an error."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader(__package__, ""),
    )
    return environment.get_template(name).render({"colours": COLOURS, **values})
