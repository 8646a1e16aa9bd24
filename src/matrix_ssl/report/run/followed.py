"""How the neighbours of the same few images changed during training."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.arrays import read_arrays
from matrix_ssl.config.untrusted import MIB
from matrix_ssl.report.formats import common_folder, whole
from matrix_ssl.report.run.gallery import image_uri
from matrix_ssl.runs.folder import FOLLOWED, identity
from matrix_ssl.runs.terminal import printable

_MOST = 16 * MIB  # of all thumbnails


class Small(NamedTuple):
    """A thumbnail as a data URI, its text alternative, and the name of its file."""

    uri: str
    alt: str
    name: str


class Query(NamedTuple):
    """An image, and its neighbours after several numbers of steps."""

    image: Small
    moments: list[tuple[str, list[Small]]]


def read_followed(run: Path) -> list[Query]:
    """The contents of a run's ``followed.npz``; empty if it is missing, damaged or from a different run."""
    path = run / FOLLOWED
    try:
        arrays = read_arrays(path) if path.is_file() else {}
        if not arrays or str(arrays["run"]) != identity(run):
            return []
        _check(arrays)
        return [_query(arrays, row) for row in range(len(arrays["query"]))]
    except (OSError, ValueError, KeyError, IndexError):
        return []


def _check(arrays: dict[str, NDArray[Any]]) -> None:
    query, near = arrays["query"], arrays["neighbours"]
    fits = (
        query.dtype == near.dtype == np.uint8
        and query.ndim == 4
        and arrays["step"].ndim == 1
        and arrays["step"].dtype.kind == "i"
        and near.nbytes <= _MOST
        and query.shape[3] in (1, 3)
        and near.shape == (len(arrays["step"]), len(query), *near.shape[2:3], *query.shape[1:])
        and arrays["query_where"].shape == query.shape[:1]
        and arrays["neighbours_where"].shape == near.shape[:3]
    )
    if not fits:
        raise ValueError("The arrays do not fit together.")


def _query(arrays: dict[str, NDArray[Any]], row: int) -> Query:
    places = [*arrays["query_where"].tolist(), *arrays["neighbours_where"].ravel().tolist()]
    folder = len(common_folder(list(map(str, places))))
    name = printable(str(arrays["query_where"][row])[folder:])
    moments = []
    for i, step in enumerate(arrays["step"].tolist()):
        when, near = f"step {whole(step)}", []
        pairs = zip(arrays["neighbours"][i, row], arrays["neighbours_where"][i, row], strict=True)
        for j, (pixels, where) in enumerate(pairs, 1):
            alt = f"neighbour {j} of {name} after {when}"
            near.append(Small(image_uri(pixels), alt, printable(str(where)[folder:])))
        moments.append((when, near))
    return Query(Small(image_uri(arrays["query"][row]), f"query {name}", name), moments)
