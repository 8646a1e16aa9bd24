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
from matrix_ssl.runs.terminal import printable


@functools.cache
def templates() -> Environment:
    """All templates, each compiled when it is first used."""
    files = PackageLoader(__package__, "")
    result = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=files,
        finalize=_shown,
    )  # fmt: skip
    result.filters["breakable"] = breakable
    return result


def breakable(text: str) -> Markup:
    """The name of a file or a class, escaped, in which lines may break after punctuation marks."""
    return Markup("<wbr>").join(map(printable, re.split(r"(?<=[_./\\-])", text)))


def _shown(value: Any) -> Any:
    """Text without what a reader would not see, control characters and changes of direction; our own HTML as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Writes the page of a template; text is escaped and ``printable``, and a missing value is an error."""
    write_text(path, templates().get_template(template).render({"colours": COLOURS, **values}))
    return path
