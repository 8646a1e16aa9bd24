"""Writes the page: one file with its scripts and data, next to the sheets of thumbnails. It opens without a server."""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from matrix_ssl.report import template
from matrix_ssl.report.explore.contents import Categories, Column, Contents
from matrix_ssl.report.explore.sheets import ACROSS, EACH
from matrix_ssl.report.formats import common_folder
from matrix_ssl.runs.terminal import printable

PAGE = "index.html"
_SCRIPTS = ("data.js", "colours.js", "map.js", "thumbnails.js", "panels.js", "page.js")
_LIBRARY = "vendor/regl-scatterplot.js"
_HERE = Path(__file__).parent
_MARGIN = 0.96  # the part of the square from -1 to 1 that the map fills
_COSINE = 10_000  # a similarity of 1 is stored as this many steps


def write_page(out: Path, contents: Contents) -> Path:
    """Writes ``index.html``; the same contents give the same bytes. Only the scripts of this package run on it."""
    own = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    scripts = [(_HERE / _LIBRARY).read_text(encoding="utf-8"), f'"use strict";\n(() => {{\n{own}\n}})();\n']
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    values = {
        "title": f"{printable(contents.title)} – matrix-ssl explore",
        "heading": printable(contents.title),
        "facts": contents.facts,
        "notes": contents.notes,
        "doubts": contents.doubts,
        "judged": contents.issues is not None,
        "data": Markup(_script_safe(as_json(contents, out))),
        "scripts": [Markup(script) for script in scripts],
        "policy": f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
        f"script-src {hashes} 'unsafe-eval'",  # the library compiles its drawing commands
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    }
    return template.write_page(out / PAGE, "explore.html", values)


def as_json(contents: Contents, out: Path) -> dict[str, Any]:
    """What the scripts of a page in ``out`` read; arrays are little-endian bytes in base64, for ``data.js``.

    Surrogates, which stand for bytes of file names that are not text, are kept: in the file they are JSON escapes.
    """
    columns: list[Column] = [contents.labels] if contents.labels is not None else []
    columns += [contents.clusters, *contents.columns]
    start = common_folder(contents.places)
    return {
        "places": {"start": start, "ends": [place[len(start) :] for place in contents.places], "separator": os.sep},
        "folder": _address(Path(start), out) if contents.files else "",
        "points": _array(square(contents.points), "<f4"),
        "neighbours": {
            "images": _array(contents.neighbours, "<i4"),
            "similarities": _array(np.rint(contents.similarities * _COSINE), "<i2"),
            "steps": _COSINE,
            "count": int(contents.neighbours.shape[1]),
        },
        "columns": [_column(column) for column in columns],
        "labelled": contents.labels is not None,
        "representatives": [rows.tolist() for rows in contents.representatives],
        "duplicates": [rows.tolist() for rows in contents.duplicates],
        "outliers": {
            "images": _array(contents.outliers, "<i4"), "scores": _array(contents.outlier_scores, "<f4"),
        },
        "issues": None if contents.issues is None else [
            {"image": one.image, "label": one.label, "suggested": one.suggested,
             "confidence": round(one.confidence, 4)} for one in contents.issues
        ],
        "thumbnails": {"side": contents.thumbnail, "across": ACROSS, "each": EACH, "sheets": list(contents.sheets)},
    }  # fmt: skip


def square(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """A map (n, 2) moved and scaled into the square from -1 to 1, with its proportions kept."""
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    centred = points.astype(np.float64) - middle
    return centred * (_MARGIN / max(float(np.abs(centred).max()), 1e-12))


def _column(column: Column) -> dict[str, Any]:
    if isinstance(column, Categories):
        return {"name": column.name, "values": list(column.values), "codes": _array(column.codes, "<i4")}
    return {"name": column.name, "numbers": _array(column.values, "<f4" if column.values.itemsize <= 4 else "<f8")}


def _array(values: NDArray[Any], kind: str) -> dict[str, str]:
    content = np.ascontiguousarray(values.astype(kind)).tobytes()
    return {"kind": kind, "bytes": base64.b64encode(content).decode("ascii")}


def _address(folder: Path, out: Path) -> str:
    """The address of a folder with a trailing slash: relative to the page, unless it is on a different drive."""
    place = folder.resolve()
    try:
        relative = os.path.relpath(place, out.resolve())
    except ValueError:  # drives of Windows
        return f"{place.as_uri()}/"
    return quote(Path(relative).as_posix(), errors="surrogateescape") + "/"


def _script_safe(values: dict[str, Any]) -> str:
    """JSON that cannot end the script element that contains it."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
