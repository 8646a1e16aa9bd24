"""Diverse subsets against plain greedy loops on whole matrices, and against the optimum by exhaustive search."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.explore import selection
from matrix_ssl.evaluate.explore.selection import RULES, select


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows of length one, with one that is repeated."""
    x = np.random.default_rng(seed).normal(size=(n, d)) + 0.5
    x[n // 2] = x[0]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def coding_length(x: np.ndarray, total: int) -> Callable[[list[int]], float]:
    """log det(I + λ G) / 2, λ = d / (total · 0.5), of any subset."""
    scale = x.shape[1] / (total * 0.5)
    return lambda s: np.linalg.slogdet(np.eye(len(s)) + scale * x[s] @ x[s].T)[1] / 2


def representation(x: np.ndarray) -> Callable[[list[int]], float]:
    """The mean similarity of every row to the most similar chosen one, shifted to [0, 1]."""
    similarity = (1 + x @ x.T) / 2
    return lambda s: similarity[:, s].max(axis=1).mean() if s else 0.0


def greedy(value: Callable[[list[int]], float], n: int, count: int, start: list[int]) -> tuple[list[int], list[float]]:
    """By the definition: the image whose addition gives the highest value, over and over."""
    chosen, gains = list(start), []
    for _ in range(count):
        values = [value([*chosen, i]) if i not in chosen else -np.inf for i in range(n)]
        gains.append(max(values) - value(chosen))
        chosen.append(int(np.argmax(np.array(values) > max(values) - 1e-9)))
    return chosen[len(start) :], gains


@pytest.mark.parametrize("start", [[], [3, 17]])
@pytest.mark.parametrize("width", [3, 40])
@pytest.mark.parametrize("rule", ["log-determinant", "facility-location"])
def test_the_rules_are_greedy(rule: str, width: int, start: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_BATCH", 4)
    x = rows(60, width)
    value = representation(x) if rule == "facility-location" else coding_length(x, 12 + len(start))
    chosen = select(x.astype(np.float32), count=12, rule=rule, start=start)
    # all first images are equal for the log-determinant; it takes the most central one
    first = [] if start or rule == "facility-location" else [int((x @ x.mean(axis=0)).argmax())]
    expected, gains = greedy(value, 60, 12 - len(first), [*start, *first])
    expected, gains = [*first, *expected], [*map(value, [first] * len(first)), *gains]
    np.testing.assert_allclose(chosen.gains, gains, atol=2e-5)
    assert chosen.indices.tolist() == expected
    assert (np.diff(chosen.gains) < 1e-6).all()
    assert chosen.gains.sum() == pytest.approx(value([*start, *expected]) - value(start), abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rule", ["log-determinant", "facility-location"])
def test_greedy_reaches_its_bound(rule: str, seed: int) -> None:
    """Of all 220 subsets none is better by more than the factor 1 - 1/e; also for the increase beside a start."""
    x = rows(12, 3, seed)
    for start in ([], [1, 5]):
        value = representation(x) if rule == "facility-location" else coding_length(x, 3 + len(start))
        chosen = select(x, count=3, rule=rule, start=start).indices.tolist()
        others = [i for i in range(12) if i not in start]
        best = max(value([*start, *s]) for s in itertools.combinations(others, 3)) - value(start)
        assert best + 1e-6 >= value([*start, *chosen]) - value(start) >= (1 - np.exp(-1)) * best


@pytest.mark.parametrize("seed", range(6))
def test_k_centre_is_within_twice_the_optimum(seed: int) -> None:
    x = rows(12, 3, seed)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    for start in ([], [1, 5]):
        chosen = select(x, count=3, rule="k-centre", start=start)
        radius = distances[:, [*start, *chosen.indices]].min(axis=1).max()
        best = min(distances[:, [*start, *s]].min(axis=1).max() for s in itertools.combinations(range(12), 3))
        assert best - 1e-6 <= radius <= 2 * best + 1e-6
        done = list(start) or [int(chosen.indices[0])]
        for index, gain in list(zip(chosen.indices, chosen.gains, strict=True))[len(done) - len(start) :]:
            nearest = distances[:, done].min(axis=1)
            assert gain == pytest.approx(nearest.max(), abs=1e-3) and nearest[index] == pytest.approx(gain, abs=1e-3)
            done.append(int(index))
    assert select(x, count=1, rule="k-centre").indices[0] == (x @ x.mean(axis=0)).argmax()


@pytest.mark.parametrize("rule", RULES)
def test_every_image_can_be_chosen_and_none_twice(rule: str) -> None:
    x = rows(20, 4)
    chosen = select(x, count=18, rule=rule, start=[2, 11]).indices.tolist()
    assert sorted([*chosen, 2, 11]) == list(range(20))


def test_log_determinant_prefers_directions_and_facility_location_what_is_typical() -> None:
    x = np.concatenate([np.tile([1.0, 0.01, 0.0], (30, 1)), [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    assert {30, 31} < set(select(x, count=3, rule="log-determinant").indices.tolist())
    assert select(x, count=1, rule="facility-location").indices[0] < 30


def test_mistakes() -> None:
    x = rows(10, 3)
    for words, message in (
        ({"count": 0}, "count=0: there are 10 images; choose 1 to 10"),
        ({"count": 9, "start": [0, 1]}, "2 of them chosen already; choose 1 to 8"),
        ({"count": 2, "rule": "k-center"}, "Did you mean 'k-centre'"),
        ({"count": 2, "start": [10]}, "start: expected a list of integers from 0 to 9"),
        ({"count": 2, "start": [1, 1]}, "image 1 is named twice"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            select(x, **words)
