"""The gallery of nearest neighbours: queries, the images with the most similar features, and how often they agree."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matrix_ssl.report.formats import common_folder, fixed
from matrix_ssl.report.run.data import RunData
from matrix_ssl.runs.terminal import printable

MAX_QUERIES, MAX_NEIGHBOURS = 10, 8
THUMBNAIL = 96  # pixels; larger images are reduced, which bounds the page
PLAIN_PNG = 48  # pixels; larger images are stored with a palette of 256 colours, a third of the size


class Thumbnail(NamedTuple):
    """An image of the gallery, as a data URI."""

    uri: str
    alt: str
    label: str
    similarity: str
    other_class: bool
    pixelated: bool
    name: str  # of its file; empty if it was not kept


def gallery(data: RunData) -> list[tuple[Thumbnail, list[Thumbnail]]]:
    """Rows of a query and its neighbours, the most similar first; empty without a gallery."""
    if "gallery_query" not in data.arrays or not len(data.arrays["gallery_query"]):
        return []
    names = ("query", "neighbours", "query_label", "neighbour_label", "similarity")
    query, near, query_label, near_label, similarity = (data.arrays[f"gallery_{name}"] for name in names)
    absent = np.full((len(near), 1 + near.shape[1]), "")  # earlier versions kept no names
    query_name = data.arrays.get("gallery_query_where", absent[:, 0])
    near_name = data.arrays.get("gallery_neighbour_where", absent[:, 1:])
    places = [*query_name.ravel().tolist(), *near_name.ravel().tolist()]
    folder = len(common_folder(list(map(str, places))))
    rows = []
    for i in range(min(len(query), MAX_QUERIES)):
        label = _class_name(data.classes, query_label[i])
        first = _thumbnail(query[i], f"query image {i + 1}{_of(label)}", label, "", False, str(query_name[i])[folder:])
        others = []
        for j in range(min(near.shape[1], MAX_NEIGHBOURS)):
            other, cosine = _class_name(data.classes, near_label[i, j]), fixed(similarity[i, j], 2)
            alt = f"neighbour {j + 1} of query {i + 1}{_of(other)}, similarity {cosine}"
            is_other, name = bool(label) and other != label, str(near_name[i, j])[folder:]
            others.append(_thumbnail(near[i, j], alt, other, cosine, is_other, name))
        rows.append((first, others))
    return rows


def agreement(data: RunData) -> tuple[int, int]:
    """How many neighbours in the gallery have the class of their query, and how many have a query with a class."""
    if "gallery_query" not in data.arrays:
        return 0, 0
    query = data.arrays["gallery_query_label"][:MAX_QUERIES, None]
    near = data.arrays["gallery_neighbour_label"][:MAX_QUERIES, :MAX_NEIGHBOURS]
    labelled = np.broadcast_to(query >= 0, near.shape)
    return int(((near == query) & labelled).sum()), int(labelled.sum())


def _class_name(classes: Sequence[str], label: int) -> str:
    if label < 0:
        return ""
    return classes[label] if label < len(classes) else str(label)


def _of(label: str) -> str:
    return f", class {label}" if label else ""


def _thumbnail(
    pixels: NDArray[np.uint8], alt: str, label: str, similarity: str, other_class: bool, name: str
) -> Thumbnail:
    pixelated = max(pixels.shape[:2]) < 64
    return Thumbnail(image_uri(pixels), alt, label, similarity, other_class, pixelated, printable(name))


def image_uri(pixels: NDArray[np.uint8]) -> str:
    """An image (h, w, c), c of 1 or 3, as the data URI of a PNG file."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    if max(image.size) > PLAIN_PNG and image.mode == "RGB":
        image = image.quantize(256)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
