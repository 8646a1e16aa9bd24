"""Thirty random inputs of every parser; ``make test-faults`` tries 100,000 of each."""

import os
from pathlib import Path

import pytest

from tests.faults.fuzzing import search, targets

pytest.importorskip("transformers")

NAMES = (
    "settings", "packed index", "COCO", "checkpoint", "weights", "questions", "templates",
    "run folder, config.json", "run folder, summary.json", "run folder, environment.json", "run folder, metrics.jsonl",
    "run folder, evaluation/a/knn.json",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_a_result_or_a_named_error(tmp_path: Path, name: str) -> None:
    (target,) = [target for target in targets(tmp_path) if target.name == name]
    count, seed = (int(os.environ.get(f"MATRIX_SSL_FUZZ{end}", usual)) for end, usual in (("", "30"), ("_SEED", "0")))
    assert search(target, count=count, seed=seed) == []


def test_the_names_are_those_of_all_parsers(tmp_path: Path) -> None:
    assert tuple(target.name for target in targets(tmp_path)) == NAMES
