"""The check of bfloat16: what its rule decides."""

import pytest

from benchmarks.experiments.precision import verdict


def rows(float32: list[float], bfloat16: list[float]) -> list[dict]:
    arms = {"float32": float32, "bfloat16": bfloat16}
    return [
        {"arm": arm, "seed": seed, "accuracy": {"linear": value}}
        for arm, values in arms.items() for seed, value in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("float32", "bfloat16", "words"),
    [
        ([0.90, 0.92, 0.94], [0.89, 0.91, 0.93], "costs nothing: 1.00 points are lost, the spread over seeds is 2.00"),
        ([0.90, 0.92, 0.94], [0.93, 0.95, 0.96], "costs nothing: -2.67 points"),
        ([0.90, 0.90, 0.90], [0.89, 0.89, 0.89], "costs accuracy: 1.00 points are lost"),
        ([0.90, 0.92, 0.94], [0.90, 0.92], "not decided"),
    ],
)
def test_the_rule(float32: list[float], bfloat16: list[float], words: str) -> None:
    assert words in verdict(rows(float32, bfloat16))
