"""Checks of a question about images that need only the list of them, before their features are computed."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from matrix_ssl.config.reading import Reading
from matrix_ssl.config.system import with_slashes
from matrix_ssl.config.untrusted import expanded, is_there
from matrix_ssl.data.base import Source
from matrix_ssl.data.kinds.folder import FolderSource, open_folder
from matrix_ssl.data.loading import unreadable_images
from matrix_ssl.errors import ConfigError, DataError, check_whole
from matrix_ssl.evaluate.explore.clusters import check_count
from matrix_ssl.evaluate.explore.mislabels import check_classes
from matrix_ssl.evaluate.explore.neighbours import import_faiss
from matrix_ssl.evaluate.explore.selection import check_choice
from matrix_ssl.evaluate.trained.label_subsets import match_names, read_names

_SHOWN = 2  # images that a message names


IN_MEMORY = (Image.Image, np.ndarray, Tensor)  # types of images
Query = str | Path | int | Image.Image | NDArray[Any] | Tensor


def as_queries(queries: object) -> list[Query]:
    """One or more queries as a list; an array of two or three dimensions is one image, one of four is several.

    Raises:
        ConfigError: something is neither the path or number of an image nor an image.
    """
    if isinstance(queries, (np.ndarray, Tensor)):
        several = queries.ndim not in (0, 2, 3)
    else:
        several = isinstance(queries, Iterable) and not isinstance(queries, (str, Path, Image.Image))
    asked: list[Any] = list(queries) if several else [queries]  # type: ignore[call-overload]
    if not asked:
        raise ConfigError("There is no query: name an image, a folder or the number of an image.")
    for query in asked:
        is_image = isinstance(query, IN_MEMORY) and getattr(query, "ndim", 2) in (2, 3)
        if isinstance(query, bool) or not (isinstance(query, (str, Path, Integral)) or is_image):
            raise ConfigError(
                f"A query of type {type(query).__name__}: name an image, a folder or the number of an image, or pass "
                "an image itself."
            )
    return asked


class Places:
    """The paths of images, and a look-up of the image that a query names."""

    def __init__(self, places: Sequence[str]):
        self._count = len(places)
        self._paths = [with_slashes(str(Path(path).absolute())) for path in places]
        self._rows = {path: row for row, path in enumerate(self._paths)}
        self._rows |= {with_slashes(path): row for row, path in enumerate(places)}

    def row(self, query: str | Path | int) -> int | None:
        """The row of the image that a query names by path or number; None for files outside the dataset.

        A path may be the end of the path of exactly one image; on Windows, / and \\ are the same in it. A string of
        digits is taken as the name of a file or folder first, and as a number only if there is none.

        Raises:
            MatrixSSLError: it names neither, or the ends of several paths.
        """
        text = str(query)
        if isinstance(query, Integral):
            return self._numbered(int(query))
        end = with_slashes(text)
        for name in (end, with_slashes(str(expanded(text).absolute()))):
            if name in self._rows:
                return self._rows[name]
        if is_there(expanded(text)):
            return None
        if text.isdecimal():
            return self._numbered(int(text))
        ends = [row for row, path in enumerate(self._paths) if path.endswith(f"/{end}")]
        if len(ends) > 1:
            shown = ", ".join(repr(self._paths[row]) for row in ends[:_SHOWN])
            raise DataError(f"--query {text!r} names {len(ends)} images, such as {shown}: write more of the path.")
        if ends:
            return ends[0]
        raise DataError(f"--query {text!r} is neither a file or folder nor the path or number of one of the images.")

    def _numbered(self, number: int) -> int:
        if not 0 <= number < self._count:
            raise ConfigError(f"--query {number}: the images have the numbers 0 to {self._count - 1}.")
        return number


def query_images(path: Path, reading: Reading) -> FolderSource:
    """The images of a query that is a file or folder outside the dataset, read as the encoder reads its own.

    Raises:
        DataError: one of them is unreadable.
    """
    source = FolderSource("queries", path.parent, [path.name], labels=None, classes=None)
    if path.is_dir():
        source = open_folder(path, name=path.name)
    source = source.with_reading(reading)
    for place, why in unreadable_images(source, workers=0):
        raise DataError(f"--query {place}: {why}.")
    return source


def check_neighbours(k: int, count: int, *, own: bool, where: str) -> None:
    """Raises unless ``count`` images contain k neighbours of each query.

    Args:
        own: whether a query is one of the images; an image is not its own neighbour.
        where: where the images come from, for messages.

    Raises:
        DataError: there is nothing to compare a query with.
        ConfigError: k is not between 1 and the number of images.
    """
    check_whole("k", k)
    if own and count < 2:
        raise DataError(f"{where} has a single image and nothing to compare it with.")
    most = count - own
    if not 1 <= k <= most:
        raise ConfigError(f"k={k}: expected 1 to {most} images, as many as there are beside the query.")


def check_search(source: Source, queries: Sequence[str], *, k: int, approximate: bool) -> None:
    """Raises MatrixSSLError for a search that is impossible in these images; arguments as for ``Collection.search``."""
    if approximate:
        import_faiss()
    places = Places(_places(source))
    rows = [places.row(query) for query in queries]
    own = any(row is not None for row in rows)
    check_neighbours(k, len(source), own=own, where=source.name)
    for query, row in zip(queries, rows, strict=True):
        if row is None:
            query_images(expanded(query), source.reading)


def check_clusters(source: Source, count: int | None) -> None:
    """Raises ConfigError for more clusters than images."""
    if count is not None:
        check_count(count, len(source))


def check_selection(source: Source, count: int, *, labelled: Path | None) -> None:
    """Raises MatrixSSLError for a subset that these images cannot give; arguments as for ``Collection.select``."""
    names = [] if labelled is None else read_names(labelled)
    start = match_names(_places(source), names, where=str(labelled), dataset=source.name) if names else ()
    check_choice(count, len(source), chosen=len(start))


def check_labels(source: Source) -> None:
    """Raises DataError for images without labels, or all with the same label."""
    labels, _ = source.labelled()
    check_classes(np.asarray(labels))


def _places(source: Source) -> list[str]:
    return [source.where(index) for index in range(len(source))]
