"""What the page of ``matrix-ssl explore`` shows, as plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Categories:
    """A column of text: which of a few values each image has.

    Attributes:
        name: the heading of the column.
        codes: integers (n,), positions in ``values``; -1 for none.
        values: the distinct values.
    """

    name: str
    codes: NDArray[np.integer]
    values: Sequence[str]


@dataclass(frozen=True)
class Numbers:
    """A column of numbers (n,), which the page keeps in single or double precision; NaN for none."""

    name: str
    values: NDArray[np.floating]


Column = Categories | Numbers


@dataclass(frozen=True)
class Issue:
    """An image whose label is probably wrong.

    Attributes:
        image: its row.
        label: the label that it has.
        suggested: the label that its neighbours suggest.
        confidence: the probability of the suggested label, between 0 and 1.
    """

    image: int
    label: str
    suggested: str
    confidence: float


@dataclass(frozen=True)
class Contents:
    """Everything on the page about n images.

    Attributes:
        title: what was explored.
        facts: short answers below the title.
        notes: what the reader must know, in sentences: how the map was made, what was left out.
        doubts: sentences about lists that should not be trusted, shown at the top.
        places: the path, or other place, of every image.
        files: whether the places are files of one image each, to which the page links.
        points: the map, float (n, 2).
        neighbours: rows of the most similar images, int (n, k), the most similar first.
        similarities: their cosine similarities, float (n, k).
        labels: the classes; None for images without labels.
        clusters: the cluster of every image.
        representatives: rows of the most typical images of every cluster, in the order of ``clusters.values``.
        duplicates: rows of every group of near-duplicates.
        outliers: rows, the least typical image first.
        outlier_scores: float (n,), larger for less typical images.
        issues: the most suspicious label first; None if labels cannot be judged, as there are none or only one.
        columns: further columns that can colour the map.
        thumbnail: side of a thumbnail in pixels.
        sheets: names of the files of thumbnails, relative to the page.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    places: Sequence[str]
    points: NDArray[np.floating]
    neighbours: NDArray[np.integer]
    similarities: NDArray[np.floating]
    clusters: Categories
    representatives: Sequence[NDArray[np.integer]]
    outliers: NDArray[np.integer]
    outlier_scores: NDArray[np.floating]
    thumbnail: int
    sheets: Sequence[str]
    duplicates: Sequence[NDArray[np.integer]] = ()
    labels: Categories | None = None
    issues: Sequence[Issue] | None = None
    columns: Sequence[Column] = ()
    files: bool = False
    notes: Sequence[str] = field(default_factory=list)
    doubts: Sequence[str] = ()
