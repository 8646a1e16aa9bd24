"""Several datasets as one: images, labels, identity, splits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matrix_ssl.data import has_test_split, open_source
from matrix_ssl.errors import DataError
from tests.support.runs import BARE, make_images, succeed
from tests.support.runs import from_files as pretrain_from_files


def write(folder: Path, *files: str) -> None:
    """An image for each file, different by its name."""
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(file.encode())).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def opened(*folders: Path, split: str = "train"):
    return open_source(tuple(map(str, folders)), split=split, data_root=None)  # type: ignore[arg-type]


def test_images_and_labels_of_all(tmp_path: Path) -> None:
    write(tmp_path / "a", "cat/1.png", "dog/1.png")
    write(tmp_path / "b", "bee/1.png", "dog/2.png")
    source = opened(tmp_path / "a", tmp_path / "b")
    assert [source.where(i) for i in range(4)] == [
        str(tmp_path / file) for file in ("a/cat/1.png", "a/dog/1.png", "b/bee/1.png", "b/dog/2.png")
    ]
    assert (source.classes, source.labels.tolist()) == (["bee", "cat", "dog"], [1, 2, 0, 2])
    part = source.subset([3, 0])
    assert (part.labels.tolist(), part.where(0), len(part)) == ([2, 1], str(tmp_path / "b" / "dog" / "2.png"), 2)
    write(tmp_path / "flat", "1.png")
    assert opened(tmp_path / "a", tmp_path / "flat").labels is None


def test_the_identity_is_that_of_the_same_images_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", "1.png", "2.png")
    write(tmp_path / "b", "3.png")
    write(tmp_path / "whole", "1.png", "2.png", "3.png")
    joined = opened(tmp_path / "a", tmp_path / "b")
    whole = open_source(str(tmp_path / "whole"), split="train", data_root=None)
    assert joined.digest == whole.digest and joined.subset([0, 2]).digest == whole.subset([0, 2]).digest
    assert joined.digest != opened(tmp_path / "b", tmp_path / "a").digest
    (tmp_path / "b" / "3.png").write_bytes((tmp_path / "a" / "1.png").read_bytes())
    assert opened(tmp_path / "a", tmp_path / "b").digest != joined.digest


def test_test_splits(tmp_path: Path) -> None:
    write(tmp_path / "a", "train/x/1.png", "train/y/1.png", "test/y/9.png")
    write(tmp_path / "b", "u/1.png", "x/2.png")
    both = str(tmp_path / "a"), str(tmp_path / "b")
    assert has_test_split(both, data_root=None) and not has_test_split(both[1:], data_root=None)
    test = open_source(both, split="test", data_root=None)
    assert (test.classes, test.labels.tolist()) == (["u", "x", "y"], [2])  # type: ignore[union-attr]


def test_datasets_that_do_not_go_together(tmp_path: Path) -> None:
    write(tmp_path / "a", "1.png")
    with pytest.raises(DataError, match="'digits' has 1 channels of 8 bits and 'a' has 3 of 8 bits"):
        open_source(("digits", str(tmp_path / "a")), split="train", data_root=None)
    with pytest.raises(DataError, match="a is named twice"):
        opened(tmp_path / "a", tmp_path / "a")


def test_on_the_command_line(tmp_path: Path) -> None:
    """The data are known by their content, and the run names all of them."""
    for folder, files in (("a", 20), ("b", 12)):
        make_images(tmp_path / folder, files)
    words = pretrain_from_files("a", "data.workers=0")
    where = words.index("a")
    words = [*words[: where + 1], "--data", "b", *words[where + 1 :]]
    assert "32 images of 'a-b'" in succeed(tmp_path, words, before=BARE).err
    data = json.loads((tmp_path / "r" / "config.json").read_text())["data"]
    assert (data["source"], data["images"], data["digest"]) == (
        [str(tmp_path / "a"), str(tmp_path / "b")], 32, opened(tmp_path / "a", tmp_path / "b").digest,
    )  # fmt: skip
    (tmp_path / "b").rename(tmp_path / "c")
    words[words.index("b")] = "c"
    assert "r is complete" in succeed(tmp_path, words, before=BARE).err
    embedded = succeed(tmp_path, ["embed", "r", "--data", "a", "--data", "c", "--out", "f.npz", "--device", "cpu"])
    assert "32 images" in embedded.out
