"""Thirty random inputs of every parser; ``make test-faults`` tries 100,000 of each."""

import contextlib
import os
from pathlib import Path

import pytest

from matrix_ssl.errors import MatrixSSLError
from tests.faults.fuzzing import search, targets

pytest.importorskip("transformers")

NAMES = (
    "settings", "packed index", "COCO", "checkpoint", "weights", "features, npz", "features, npy",
    "features, safetensors", "questions", "templates",
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


@pytest.mark.parametrize("name", ["packed index", "weights", "features, npz"])
@pytest.mark.parametrize(("place", "value"), [(6, 64), (8, 1), (10, 99), (10, 14)])
def test_archives_that_no_reader_knows(tmp_path: Path, name: str, place: int, value: int) -> None:
    """A version, an encryption, an unknown method and LZMA in the directory of a good archive (APPNOTE 4.3.12)."""
    (target,) = [target for target in targets(tmp_path) if target.name == name]
    content = bytearray(target.inputs[0])
    entry = content.index(b"PK\1\2")
    content[entry + place] = value
    # PyTorch's reader looks at other places than Python's, and may read the weights
    with contextlib.suppress(MatrixSSLError) if name == "weights" else pytest.raises(MatrixSSLError):
        target.parse(bytes(content))
