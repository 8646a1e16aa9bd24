"""Fills the HTML templates of pages."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from matrix_ssl.report.svg import COLOURS
from matrix_ssl.runs.files import write_text


@functools.cache
def templates() -> Environment:
    """All templates, each compiled when it is first used."""
    files = PackageLoader(__package__, "")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=files)


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Writes the page of a template; text is escaped, and a missing value is an error."""
    write_text(path, templates().get_template(template).render({"colours": COLOURS, **values}))
    return path
