"""The map of any number of images, and what the page says from one search for neighbours."""

import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from matrix_ssl.errors import ConfigError, DataError, MissingExtra
from matrix_ssl.evaluate.explore.analysis import analyse
from matrix_ssl.evaluate.explore.duplicates import near_duplicates
from matrix_ssl.evaluate.explore.mislabels import label_issues
from matrix_ssl.evaluate.explore.outliers import outlier_scores
from matrix_ssl.evaluate.explore.plane import plane
from matrix_ssl.evaluate.map import embedding_map

LABELS = np.arange(90) % 3


def clusters(*, spread: float = 0.2) -> np.ndarray:
    """90 features (n, 5) around three directions that stand at right angles."""
    return (np.eye(5)[LABELS] + spread * np.random.default_rng(0).normal(size=(90, 5))).astype(np.float32)


def purity(points: np.ndarray) -> float:
    """The share of images whose nearest point on the map has their label."""
    return float((LABELS[(cdist(points, points) + 1e9 * np.eye(90)).argmin(axis=1)] == LABELS).mean())


def test_images_beyond_the_sample_are_put_among_those_like_them():
    features = clusters()
    points = plane(features, most=40)
    chosen, coordinates = embedding_map(torch.from_numpy(features), most=40)
    assert np.abs(points[chosen] - coordinates).max() == 0
    assert purity(points) > 0.95
    assert len(np.unique(points, axis=0)) == 90  # none covers another
    assert np.array_equal(plane(features, most=40), points)


def test_principal_components_are_those_of_numpy():
    features = clusters()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    covariance = np.cov(unit.T.astype(np.float64))
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :2]
    expected = (unit - unit.mean(axis=0)) @ axes
    points = plane(features, rule="pca")
    assert np.abs(np.abs(points) - np.abs(expected)).max() < 1e-5


@pytest.mark.parametrize("features", [np.ones((2, 3)), np.ones((4, 1)), np.zeros((7, 3))], ids=["two", "one", "equal"])
def test_few_or_equal_images_have_a_map(features):
    points = plane(features.astype(np.float32))
    assert points.shape == (len(features), 2) and np.isfinite(points).all()


@pytest.mark.slow  # numba compiles for half a minute
def test_umap_places_clusters_and_the_same_seed_gives_the_same_map():
    pytest.importorskip("umap", reason="umap-learn is not installed: the extra umap")
    points = plane(clusters(), rule="umap")
    assert (points.dtype, points.shape) == (np.float32, (90, 2)) and np.isfinite(points).all()
    assert purity(points) > 0.9
    assert np.array_equal(plane(clusters(), rule="umap"), points)


def test_umap_names_its_extra_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtra, match=r"umap"):
        plane(clusters(), rule="umap")


def test_an_unknown_map_is_refused():
    with pytest.raises(ConfigError, match="map='tsn' does not exist"):
        plane(clusters(), rule="tsn")  # type: ignore[arg-type]


def test_the_analysis_says_what_its_parts_say():
    features, labels = clusters(), LABELS.copy()
    labels[4] = 2
    result = analyse(features, labels, clusters=3, threshold=0.9)
    assert np.allclose(result.outlier_scores, outlier_scores(features), atol=1e-6)
    assert [group.tolist() for group in result.duplicates] == [
        group.tolist() for group in near_duplicates(features, threshold=0.9)
    ]
    expected = label_issues(features, labels)
    assert result.issues is not None and result.issues.indices.tolist() == expected.indices.tolist()
    assert result.issues.indices[0] == 4 and result.confidence is not None and result.confidence[4] < 0.1
    assert len(result.clusters.representatives) == 3


@pytest.mark.parametrize("labels", [None, np.zeros(90, np.int64), np.where(LABELS == 1, -1, 0)])
def test_labels_that_say_nothing_are_no_labels(labels):
    result = analyse(clusters(), labels, clusters=2)
    assert result.issues is None and result.confidence is None


def test_one_image_is_refused():
    with pytest.raises(DataError):
        analyse(np.ones((1, 3), np.float32))
