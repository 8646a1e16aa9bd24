"""Fills the HTML templates of pages."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from matrix_ssl.report.svg import COLOURS
from matrix_ssl.runs.files import write_text


@functools.cache
def templates() -> Environment:
    """All templates, each compiled when it is first used."""
    files = PackageLoader(__package__, "")
    result = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=files
    )  # fmt: skip
    result.filters["breakable"] = breakable
    return result


def breakable(text: str) -> Markup:
    """The name of a file or a class, escaped, which may break into lines after the marks in it."""
    return Markup("<wbr>").join(re.split(r"(?<=[_./\\-])", text))


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Writes the page of a template; text is escaped, and a missing value is an error."""
    write_text(path, templates().get_template(template).render({"colours": COLOURS, **values}))
    return path
