"""Neighbours, duplicates, outliers and coverage against loops, scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.explore import duplicates
from matrix_ssl.evaluate.explore.coverage import class_balance, coverage
from matrix_ssl.evaluate.explore.duplicates import near_duplicates
from matrix_ssl.evaluate.explore.index import ExactIndex
from matrix_ssl.evaluate.explore.neighbours import ApproximateIndex, Neighbours, nearest, recall
from matrix_ssl.evaluate.explore.outliers import outlier_scores

DRAW = np.random.default_rng(0)
X, QUERIES = DRAW.normal(size=(300, 16)).astype(np.float32), DRAW.normal(size=(20, 16)).astype(np.float32)


def test_neighbours_are_those_of_scikit_learn() -> None:
    distances, indices = NearestNeighbors(n_neighbors=7, metric="cosine").fit(X).kneighbors(QUERIES)
    for features, queries in ((X, QUERIES), (torch.from_numpy(X), torch.from_numpy(3 * QUERIES).double())):
        result = nearest(features, queries, k=7)
        assert np.array_equal(result.indices, indices)
        np.testing.assert_allclose(result.similarities, 1 - distances, atol=1e-6)
    indices = NearestNeighbors(n_neighbors=8, metric="cosine").fit(X).kneighbors(X, return_distance=False)
    assert np.array_equal(nearest(X, k=7).indices, indices[:, 1:])


@pytest.mark.parametrize("width", [3, 16, 200])
def test_the_index_answers_as_the_exhaustive_search(width: int) -> None:
    draw = np.random.default_rng(width)
    features, queries = draw.normal(size=(5000, width)), draw.normal(size=(9, width))
    features[7], features[90:120] = 0, features[90]  # a row of zeros, and copies
    queries[0] = features[90]
    index = ExactIndex(features.astype(np.float32))
    found, exact = index.nearest(queries.astype(np.float32), k=25), nearest(features, queries, k=25)
    np.testing.assert_allclose(found.similarities, exact.similarities, atol=1e-6)
    assert recall(found, exact) == 1.0 and found.indices[0].tolist() == exact.indices[0].tolist()
    whole = index.nearest(queries.astype(np.float32), k=5000)
    assert np.array_equal(np.sort(whole.indices, axis=1), np.tile(np.arange(5000), (9, 1)))
    assert index.nbytes == 5000 * width * 6
    with pytest.raises(ConfigError, match="k=5001"):
        index.nearest(queries, k=5001)


def test_the_approximate_index_finds_nearly_all() -> None:
    pytest.importorskip("faiss")
    index = ApproximateIndex(X)
    found = index.nearest(QUERIES, k=10)
    assert found.indices.shape == (20, 10) and recall(found, nearest(X, QUERIES, k=10)) > 0.95
    with pytest.raises(ConfigError, match="k=301"):
        index.nearest(QUERIES, k=301)


def test_recall_is_the_mean_share() -> None:
    exact = Neighbours(np.array([[0, 1], [2, 3]]), np.zeros((2, 2), np.float32))
    assert recall(Neighbours(np.array([[1, 9], [3, 2]]), exact.similarities), exact) == 0.75
    with pytest.raises(DataError, match="shapes"):
        recall(Neighbours(np.array([[1]]), np.zeros((1, 1), np.float32)), exact)


@pytest.mark.parametrize(
    ("features", "queries", "k", "message"),
    [
        (X, QUERIES[:, :3], 1, "queries have 3 features, the images 16"),
        (X, QUERIES, 0, "k=0"),
        (X[:5], None, 5, "k=5 neighbours beside the query need 6 images"),
        (np.full((3, 2), np.nan), None, 1, "row 0 has a value that is not finite"),
        (np.zeros((3, 2), dtype=int), None, 1, "expected a floating-point matrix"),
    ],
)
def test_mistakes(features: np.ndarray, queries: np.ndarray | None, k: int, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        nearest(features, queries, k=k)


def connected(similarities: np.ndarray, threshold: float) -> set[frozenset[int]]:
    """The components with two or more members, by walking from each node."""
    left, groups = set(range(len(similarities))), set()
    while left:
        group, pending = set(), [left.pop()]
        while pending:
            node = pending.pop()
            group.add(node)
            near = {int(i) for i in np.flatnonzero(similarities[node] >= threshold)} - group
            pending += near
        left -= group
        groups.add(frozenset(group))
    return {group for group in groups if len(group) > 1}


@pytest.mark.parametrize("block", [16, 2048])
def test_duplicates_are_connected_components(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    features = X[:, :4]
    similarities = 1 - cdist(features, features, "cosine")
    for threshold in (0.9, 0.97, 0.999):
        groups = near_duplicates(features, threshold=threshold)
        assert {frozenset(group.tolist()) for group in groups} == connected(similarities, threshold)
        sizes = [len(group) for group in groups]
        assert sizes == sorted(sizes, reverse=True) and all((np.diff(group) > 0).all() for group in groups)
    copies = np.concatenate([X, 2 * X[[5, 5, 9]]])
    assert [group.tolist() for group in near_duplicates(copies, threshold=1.0)] == [[5, 300, 301], [9, 302]]
    assert near_duplicates(X, threshold=1.0) == []
    with pytest.raises(ConfigError, match="expected a cosine similarity"):
        near_duplicates(X, threshold=1.5)


def test_outlier_scores_are_mean_distances() -> None:
    distances = np.sort(cdist(X, X, "cosine"), axis=1)[:, 1:]
    np.testing.assert_allclose(outlier_scores(X, k=5), distances[:, :5].mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(outlier_scores(X[:3], k=5), np.sort(cdist(X[:3], X[:3], "cosine"))[:, 1:].mean(axis=1),
                               atol=1e-6)  # fmt: skip
    odd = np.concatenate([np.ones((50, 16)) + DRAW.normal(size=(50, 16)) / 9, -np.ones((1, 16))])
    assert outlier_scores(odd).argmax() == 50


def test_coverage_is_the_share_of_balls_with_an_image() -> None:
    target, collection = X[:80, :5], X[80:120, :5]
    within, across = cdist(target, target, "cosine"), cdist(target, collection, "cosine")
    radius = np.sort(within, axis=1)[:, 3]  # of the third neighbour: the first column is the image itself
    result = coverage(collection, target, k=3)
    assert np.array_equal(result.covered, across.min(axis=1) <= radius)
    assert result.share == pytest.approx(result.covered.mean())
    np.testing.assert_allclose(result.similarities, 1 - across.min(axis=1), atol=1e-6)
    assert coverage(target, target, k=3).share == 1.0 and coverage(-np.abs(target), np.abs(target), k=3).share < 0.1


def test_a_part_covers_what_it_has_and_what_has_it_among_five_neighbours() -> None:
    """What the page of explore counts for a selection."""
    draw = np.random.default_rng(4)
    x, chosen = draw.normal(size=(80, 4)), np.arange(0, 80, 9)
    near = nearest(x, k=5).indices
    counted = np.isin(np.arange(80), chosen) | np.isin(near, chosen).any(axis=1)
    assert coverage(x[chosen], x).covered.tolist() == counted.tolist()
    random = [coverage(x[draw.permutation(80)[:9]], x).share for _ in range(200)]
    assert np.mean(random) == pytest.approx(1 - np.prod([(71 - i) / (80 - i) for i in range(6)]), abs=0.03)


def test_the_expected_coverage_is_that_of_one_distribution() -> None:
    """The mean over draws; the closed form of the paper holds for any dimension and distribution."""
    draw = np.random.default_rng(1)
    shares = [coverage(draw.normal(size=(30, 3)), draw.normal(size=(40, 3)), k=2).share for _ in range(60)]
    expected = coverage(X[:30, :3], X[30:70, :3], k=2).expected
    assert expected == pytest.approx(1 - (39 * 38) / (69 * 68))
    assert np.mean(shares) == pytest.approx(expected, abs=4 * np.std(shares) / 60**0.5)


def test_balance_of_classes() -> None:
    assert class_balance([0, 1, 2] * 5).effective_classes == pytest.approx(3)
    balance = class_balance([0] * 9 + [2] * 3, classes=4)
    assert balance.counts.tolist() == [9, 0, 3, 0] and balance.ratio == 3
    assert balance.effective_classes == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
