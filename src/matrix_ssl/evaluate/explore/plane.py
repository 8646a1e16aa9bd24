"""A map of any number of images in the plane."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from matrix_ssl.data.randomness import short_seed
from matrix_ssl.errors import check_known, import_extra
from matrix_ssl.evaluate.explore.inputs import Matrix, as_features, check_seed, unit_rows
from matrix_ssl.evaluate.explore.neighbours import nearest
from matrix_ssl.evaluate.map import embedding_map, principal_components

MapRule = Literal["tsne", "umap", "pca"]
MOST = 5000  # images that t-SNE places
_ANCHORS = 5  # placed images between which a further one is put
_TEMPERATURE = 0.02  # of their weights, low enough that the nearest dominates
_SPREAD = 0.5  # random offset of the further images, in median distances between placed images
_STREAM = 0x9A7  # random stream of these offsets
MAPS: dict[MapRule, str] = {
    "tsne": "t-SNE of the features",
    "umap": "UMAP of the features",
    "pca": "the first two principal components of the features",
}


def plane(features: Matrix, *, rule: MapRule = "tsne", seed: int = 0, most: int = MOST) -> NDArray[np.float32]:
    """Coordinates float32 (n, 2), in arbitrary units, of features (n, d) normalised to length one.

    - ``tsne``: ``evaluate.map.embedding_map`` of at most ``most`` images. Each further image is placed at the mean of
      its five most similar images among these, weighted by exp(cosine / 0.02), and moved at random by up to half the
      median distance from a placed image to the next, so that no two points coincide.
    - ``umap``: UMAP of all images, with cosine distance and 15 neighbours; needs the extra ``umap``. Fewer than five
      images are placed as by ``pca``.
    - ``pca``: the first two principal components of all images.

    Raises:
        ConfigError: there is no such rule, or the seed is not between 0 and 2⁶³ - 1.
        MissingExtra: ``umap`` is not installed.
        DataError: a value is not finite.

    Reference: van der Maaten and Hinton, JMLR 2008 (t-SNE); McInnes, Healy and Melville, 2018, arXiv:1802.03426 (UMAP).
    """
    check_rule(rule)
    check_seed(seed)
    rows = unit_rows(features)
    if rule == "pca" or (rule == "umap" and len(rows) < _ANCHORS):
        return principal_components(rows.double().numpy()).astype(np.float32)
    if rule == "umap":
        umap = import_extra("umap", extra="umap")
        reducer = umap.UMAP(metric="cosine", random_state=short_seed(seed), n_jobs=1)
        return np.asarray(reducer.fit_transform(rows.numpy()))
    chosen, coordinates = embedding_map(as_features(features), seed=seed, most=most)
    result = np.empty((len(rows), 2), dtype=np.float32)
    result[chosen] = coordinates
    others = np.setdiff1d(np.arange(len(rows)), chosen)
    if len(others):
        result[others] = _between(rows, chosen, coordinates, others, seed)
    return result


def check_rule(rule: str) -> None:
    """Raises ConfigError for a rule that does not exist, and MissingExtra if its library is not installed."""
    check_known("map", rule, MAPS)
    if rule == "umap":
        import_extra("umap", extra="umap")


def _between(
    rows: torch.Tensor,
    chosen: NDArray[np.int64],
    coordinates: NDArray[np.float32],
    others: NDArray[np.int64],
    seed: int,
) -> NDArray[np.float64]:
    from sklearn.neighbors import NearestNeighbors  # slow to import

    anchors = nearest(rows[torch.from_numpy(chosen)], rows[torch.from_numpy(others)], k=min(_ANCHORS, len(chosen)))
    best = anchors.similarities[:, :1].astype(np.float64)
    weights = np.exp((anchors.similarities - best) / _TEMPERATURE)
    middles = (weights[..., None] * coordinates[anchors.indices]).sum(axis=1) / weights.sum(axis=1, keepdims=True)
    gaps = NearestNeighbors(n_neighbors=min(2, len(chosen))).fit(coordinates).kneighbors(coordinates)[0][:, -1]
    generator = np.random.default_rng((seed, _STREAM))
    angle, radius = generator.uniform(0, 2 * np.pi, len(others)), np.sqrt(generator.uniform(0, 1, len(others)))
    moves = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return middles + _SPREAD * float(np.median(gaps)) * moves
