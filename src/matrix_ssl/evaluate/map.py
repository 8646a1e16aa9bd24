"""Visualises a representation: a map in the plane and a gallery of nearest neighbours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl.data.base import Source
from matrix_ssl.data.files.pixels import viewable
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.features import Features
from matrix_ssl.evaluate.probes.inputs import check_features
from matrix_ssl.evaluate.probes.knn import nearest
from matrix_ssl.runs.files import write_atomically
from matrix_ssl.runs.folder import identity

_STREAM, _QUERIES = 0x3A9, 0x6A11  # random streams that sample the images on the map and the queries
_GALLERY, _NEIGHBOURS = 10, 7  # queries in the gallery, and neighbours per query
_SIDE = 64  # pixels, the longest side of a thumbnail; smaller images are not enlarged


def write_map(path: Path, source: Source, features: Features) -> None:
    """Writes the map and the gallery of a dataset's images, from finite features of ``encoder``, as an .npz file."""
    vectors = features.vectors["encoder"]
    chosen, coordinates = embedding_map(vectors)
    arrays: dict[str, Any] = {
        "map": coordinates,
        "map_labels": features.labels.numpy()[chosen],
        "classes": np.array(source.classes or [], dtype=np.str_),
        "run": np.array(identity(path.parent)),
    }
    if len(vectors) > 1:
        queries = torch.from_numpy(permutation(len(vectors), _QUERIES)[:_GALLERY])
        arrays |= gallery(
            vectors, features.labels, lambda i: viewable(source.read(int(features.indices[i]))),
            queries=queries, k=min(_NEIGHBOURS, len(vectors) - 1),
            where=lambda i: source.where(int(features.indices[i])),
        )  # fmt: skip
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def embedding_map(
    features: Tensor, *, seed: int = 0, most: int = 1000
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A t-SNE map (van der Maaten and Hinton, JMLR 2008) of the l2-normalised features of at most ``most`` images.

    It starts from the first two principal components, so only the choice of images is random. For fewer than 5 images,
    or if all features are the same, these two components are the coordinates.

    Returns:
        Increasing indices int64 (m,) of the images and their coordinates float32 (m, 2), in arbitrary units.
    """
    from sklearn.manifold import TSNE  # slow to import, and only maps need it

    if most < 1:
        raise ConfigError(f"most={most}: expected at least 1 image on the map.")
    check_features(features, "features")
    chosen = np.sort(permutation(len(features), seed, _STREAM)[:most])
    points = F.normalize(features[torch.from_numpy(chosen).to(features.device)].double(), dim=1).cpu().numpy()
    plane = principal_components(points)
    spread = plane[:, 0].std()
    if len(points) < 5 or spread < 1e-9:
        return chosen, plane.astype(np.float32)
    tsne = TSNE(
        init=(1e-4 * plane / spread).astype(np.float32),  # the scale of scikit-learn's own initialisation
        perplexity=min(30.0, (len(points) - 1) / 3),
        random_state=0,
    )
    return chosen, tsne.fit_transform(points.astype(np.float32)).astype(np.float32)


def nearest_neighbours(features: Tensor, queries: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``features`` (n, d) most similar to each of the rows at ``queries`` (q,), itself excluded.

    Returns:
        Indices int64 (q, k) and cosine similarities float32 (q, k), most similar first.
    """
    if k < 1:
        raise ConfigError(f"k={k}: expected at least 1 neighbour.")
    if k >= len(features):
        remedy = "lower k" if len(features) > 1 else "add images"
        raise DataError(f"k={k} neighbours beside the query need {k + 1} images, there are {len(features)}: {remedy}.")
    if not len(queries) or int(queries.min()) < 0 or int(queries.max()) >= len(features):
        raise DataError(f"queries must be one or more indices from 0 to {len(features) - 1}, got {queries.tolist()}.")
    queries = queries.to(features.device)
    indices, similarities = nearest(features, features[queries], k=k + 1)
    keep = indices != queries[:, None]
    keep[keep.all(dim=1), -1] = False  # more than k exact copies can push the query itself off the list
    return indices[keep].view(-1, k), similarities[keep].view(-1, k)


def gallery(
    features: Tensor,
    labels: Tensor,
    read: Callable[[int], Tensor],
    *,
    queries: Tensor,
    k: int,
    where: Callable[[int], str],
) -> dict[str, NDArray]:
    """Thumbnails of some images and of their nearest neighbours, as arrays ready for an .npz file.

    If shapes differ, each image is centred on a white canvas.

    Args:
        labels: integers (n,), -1 for unlabelled images.
        read: returns the image at an index, uint8 (c, h, w) with the same c for all.
        where: returns the path of the image at an index.

    Returns:
        ``gallery_query`` uint8 (q, h, w, c), ``gallery_neighbours`` uint8 (q, k, h, w, c), ``gallery_query_label``
        int64 (q,) and ``gallery_neighbour_label`` int64 (q, k) with -1 for none, ``gallery_similarity`` float32 (q, k),
        ``gallery_query_where`` str (q,) and ``gallery_neighbour_where`` str (q, k).
    """
    indices, similarities = nearest_neighbours(features, queries, k=k)
    chosen = torch.cat([queries.to(indices.device)[:, None], indices], dim=1).cpu()  # (q, 1 + k)
    images = same_canvas([thumbnail(read(index), _SIDE) for index in chosen.flatten().tolist()])
    grid = images.permute(0, 2, 3, 1).unflatten(0, chosen.shape).numpy()
    places = np.array([where(index) for index in chosen.flatten().tolist()]).reshape(chosen.shape)
    labels_chosen = labels.cpu().long()[chosen]
    return {
        "gallery_query": np.ascontiguousarray(grid[:, 0]),
        "gallery_neighbours": np.ascontiguousarray(grid[:, 1:]),
        "gallery_query_label": labels_chosen[:, 0].numpy().copy(),
        "gallery_neighbour_label": labels_chosen[:, 1:].numpy().copy(),
        "gallery_similarity": similarities.cpu().numpy(),
        "gallery_query_where": places[:, 0],
        "gallery_neighbour_where": places[:, 1:],
    }


def principal_components(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m, d) -> (m, 2): scores on the first two principal axes; zeros if there is no such axis."""
    left, singular, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    scores = left[:, :2] * singular[:2]
    peaks = np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], axis=0)
    scores *= np.where(peaks < 0, -1.0, 1.0)  # the sign of an axis is arbitrary: the farthest point is positive
    return np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))


def thumbnail(image: Tensor, side: int) -> Tensor:
    """An image uint8 (c, h, w) whose longest side is at most ``side`` pixels."""
    height, width = image.shape[1:]
    if max(height, width) <= side:
        return image
    size = [max(1, round(length * side / max(height, width))) for length in (height, width)]
    small = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).to(torch.uint8)


def same_canvas(images: list[Tensor]) -> Tensor:
    """Images uint8 (c, h, w) with the same c, each centred on a white canvas that fits all: (n, c, h', w')."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    canvas = torch.full((len(images), images[0].shape[0], height, width), 255, dtype=torch.uint8)
    for area, image in zip(canvas, images, strict=True):
        _, h, w = image.shape
        top, left = (height - h) // 2, (width - w) // 2
        area[:, top : top + h, left : left + w] = image
    return canvas
