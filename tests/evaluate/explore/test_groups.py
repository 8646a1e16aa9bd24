"""Clusters and wrong labels against scikit-learn, plain loops and planted answers."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.explore.clusters import REPRESENTATIVES, choose_count, cluster, dense_clusters, in_order
from matrix_ssl.evaluate.explore.inputs import as_features
from matrix_ssl.evaluate.explore.mislabels import (
    confident_learning,
    label_issues,
    neighbour_probabilities,
    probe_probabilities,
)
from matrix_ssl.evaluate.explore.neighbours import nearest

DRAW = np.random.default_rng(0)
CENTRES = np.eye(8)[:5]
LABELS = np.repeat(np.arange(5), [50, 40, 30, 20, 10])
X = (CENTRES[LABELS] + DRAW.normal(size=(150, 8)) / 12).astype(np.float32)


def test_planted_clusters_are_separated_and_counted() -> None:
    for result in (cluster(X), cluster(X, count=5, seed=3)):
        assert adjusted_rand_score(LABELS, result.assignments) == 1.0
        assert np.array_equal(np.bincount(result.assignments), [50, 40, 30, 20, 10])  # by size
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    for number, members in enumerate(result.representatives):
        assert len(members) == REPRESENTATIVES and (result.assignments[members] == number).all()
        inside = np.flatnonzero(result.assignments == number)
        centre = unit[inside].mean(axis=0)
        distances = np.linalg.norm(unit[inside] - centre, axis=1)
        assert set(members) == set(inside[np.argsort(distances)[:REPRESENTATIVES]])


def test_small_and_equal_images() -> None:
    assert cluster(X[:1]).assignments.tolist() == [0] and cluster(X[:2]).assignments.tolist() == [0, 0]
    assert cluster(np.ones((6, 3))).assignments.tolist() == [0] * 6 and choose_count(np.ones((6, 3))) == 1
    with pytest.raises(ConfigError, match="count=7: expected 1 to 6 clusters"):
        cluster(X[:6], count=7)


def test_clusters_by_density_leave_noise_out() -> None:
    noisy = np.concatenate([X, DRAW.normal(size=(5, 8)) * [[0, 0, 0, 0, 0, 1, 1, 1]]])
    result = dense_clusters(noisy, smallest=8)
    assert adjusted_rand_score(LABELS, result.assignments[:150]) > 0.95
    assert (result.assignments[150:] == -1).all() and len(result.representatives) == 5


def test_clusters_in_order_of_size() -> None:
    result = in_order(np.array([4, 4, -1, 2, 2, 2]), np.array([2.0, 1.0, 0.0, 3.0, 1.0, 2.0]))
    assert result.assignments.tolist() == [1, 1, -1, 0, 0, 0]
    assert [members.tolist() for members in result.representatives] == [[4, 5, 3], [1, 0]]


def by_the_paper(probabilities: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """The off-diagonal images of the confident joint, by the words of the paper."""
    classes = sorted(set(labels.tolist()))
    thresholds = {j: np.mean([p[j] for p, y in zip(probabilities, labels, strict=True) if y == j]) for j in classes}
    issues = {}
    for i, (p, y) in enumerate(zip(probabilities, labels, strict=True)):
        above = [j for j in classes if p[j] >= thresholds[j]]
        if above and (best := max(above, key=lambda j: p[j])) != y:
            issues[i] = best
    return issues


def test_confident_learning_is_that_of_the_paper() -> None:
    probabilities = DRAW.dirichlet(np.ones(4), size=200)
    labels = DRAW.choice([0, 1, 3], size=200)  # class 2 has no image, so no image is counted for it
    issues = confident_learning(probabilities, labels)
    assert dict(zip(issues.indices.tolist(), issues.suggested.tolist(), strict=True)) == by_the_paper(
        probabilities, labels
    )
    margins = probabilities[issues.indices, labels[issues.indices]] - issues.confidence
    assert (np.diff(margins) >= 0).all()
    assert np.array_equal(issues.confidence, probabilities[issues.indices, issues.suggested])


def test_votes_are_out_of_fold() -> None:
    """An image alone with its label gets no vote of its own; each vote counts exp(similarity / 0.07)."""
    labels = LABELS.copy()
    labels[0] = 5
    probabilities = neighbour_probabilities(X, labels)
    assert probabilities[0, 5] == 0
    unit = X.astype(np.float64) / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    similarities = unit @ unit[7]
    similarities[7] = -2
    near = np.argsort(-similarities)[:20]
    votes = np.bincount(labels[near], np.exp(similarities[near] / 0.07), minlength=6)
    np.testing.assert_allclose(probabilities[7], votes / votes.sum(), atol=1e-5)


def test_probes_are_out_of_fold() -> None:
    """As scikit-learn's cross-validation: no label decides its own probability, and one class is absent from a fold."""
    labels = LABELS.copy()
    labels[0] = 5
    probabilities = probe_probabilities(X, labels)
    assert probabilities.shape == (150, 6) and probabilities[0, 5] == 0
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    changed = labels.copy()
    changed[10] = 4  # of the fold of image 10 all others are judged alike but for the folds of class 4
    assert probe_probabilities(X, labels)[10].argmax() == probe_probabilities(X, changed)[10].argmax() == 0
    scaled = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000, tol=1e-8))
    theirs = cross_val_predict(scaled, X, LABELS, cv=StratifiedKFold(5), method="predict_proba")
    ours = probe_probabilities(X, LABELS)
    assert np.abs(ours - theirs).max() < 0.2 and np.abs(ours - theirs).mean() < 0.02  # the folds differ
    assert not np.array_equal(probe_probabilities(X, LABELS, seed=1), ours)


def test_classes_of_one_image_suggest_nothing() -> None:
    """Nothing but the image itself is known of them, so no other image is taken for one."""
    labels = np.append(LABELS, [5, 6])
    rows = np.concatenate([X, DRAW.normal(size=(2, X.shape[1])).astype(X.dtype)])
    for by in ("neighbours", "linear"):
        assert not set(label_issues(rows, labels, by=by).suggested.tolist()) & {5, 6}
        assert len(label_issues(rows[-2:], [0, 1], by=by).indices) == 0  # every class has one image
        two = label_issues(np.concatenate([X[LABELS == 0], X[LABELS == 1][:1]]), [0] * sum(LABELS == 0) + [1], by=by)
        assert two.suggested.tolist() in ([], [0])  # one of two classes has one image


def test_planted_wrong_labels_are_listed_first() -> None:
    draw, labels = np.random.default_rng(2), LABELS.copy()
    wrong = draw.choice(150, size=12, replace=False)
    labels[wrong] = (labels[wrong] + 1 + draw.integers(0, 4, size=12)) % 5
    issues = label_issues(X, labels)
    assert set(issues.indices[:12]) == set(wrong) and np.array_equal(issues.suggested[:12], LABELS[issues.indices[:12]])
    assert (issues.confidence[:12] > 0.8).all()
    probed = label_issues(X, labels, by="linear")  # fitted to wrong labels as well
    first = probed.indices[:8]
    assert set(first) <= set(wrong) and np.array_equal(probed.suggested[:8], LABELS[first])


def test_arrays_of_any_layout_are_features(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    packed = np.zeros(len(X), dtype=[("before", "u1"), ("row", np.float32, 8)])
    packed["row"] = X
    for array in (X[::-1][::-1], X[:, ::-1][:, ::-1], X.astype(">f4"), X.astype(np.longdouble), packed["row"],
                  np.load(tmp_path / "x.npy", mmap_mode="r"), np.asfortranarray(X)):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(as_features(array), X)
    flipped = X.copy()[::-1]
    assert np.array_equal(as_features(flipped), np.ascontiguousarray(flipped))
    for array in (X.astype(int), X.astype(complex), X.astype(str), X.astype(object)):
        with pytest.raises(DataError, match="expected a floating-point matrix"):
            as_features(array)


def test_mistakes() -> None:
    with pytest.raises(DataError, match="there are 1: add images"):
        nearest(X[:1], k=10)
    with pytest.raises(ConfigError, match="by='knn' does not exist"):
        label_issues(X, LABELS, by="knn")
    for labels, message in (
        (np.zeros(150, int), "at least two classes"), (LABELS[:9], "150 images but labels of shape"),
        (LABELS - 1, "integers from 0"), (LABELS / 2, "integers from 0"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            label_issues(X, labels)
