"""Fills the HTML templates of pages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from matrix_ssl.report.svg import COLOURS
from matrix_ssl.runs.files import write_text


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Writes the page of a template; text is escaped, and a missing value is an error."""
    files = PackageLoader(__package__, "")
    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=files)
    write_text(path, pages.get_template(template).render({"colours": COLOURS, **values}))
    return path
