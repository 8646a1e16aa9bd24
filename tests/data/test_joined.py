"""Several datasets as one: images, labels, identity, splits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from matrix_ssl.data import base, has_test_split, open_source
from matrix_ssl.data.kinds import joined
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
    both = opened(tmp_path / "a", tmp_path / "b")
    whole = open_source(str(tmp_path / "whole"), split="train", data_root=None)
    assert both.digest == whole.digest and both.subset([0, 2]).digest == whole.subset([0, 2]).digest
    assert both.digest != opened(tmp_path / "b", tmp_path / "a").digest
    (tmp_path / "b" / "3.png").write_bytes((tmp_path / "a" / "1.png").read_bytes())
    assert opened(tmp_path / "a", tmp_path / "b").digest != both.digest


def test_test_splits(tmp_path: Path) -> None:
    write(tmp_path / "a", "train/x/1.png", "train/y/1.png", "test/y/9.png")
    write(tmp_path / "b", "u/1.png", "x/2.png")
    both = str(tmp_path / "a"), str(tmp_path / "b")
    assert has_test_split(both, data_root=None) and not has_test_split(both[1:], data_root=None)
    test = open_source(both, split="test", data_root=None)
    assert (test.classes, test.labels.tolist()) == (["u", "x", "y"], [2])  # type: ignore[union-attr]


def test_datasets_that_do_not_go_together(tmp_path: Path) -> None:
    write(tmp_path / "a", "1.png")
    with pytest.raises(DataError, match="'digits' has 1 channel of 8 bits and 'a' has 3 channels of 8 bits"):
        open_source(("digits", str(tmp_path / "a")), split="train", data_root=None)
    with pytest.raises(DataError, match="a is named twice"):
        opened(tmp_path / "a", tmp_path / "a")


def packed(path: Path, count: int) -> str:
    """A packed file of noise."""
    write(path.parent / "images", *(f"{path.stem}-{number}.png" for number in range(count)))
    files = [file.read_bytes() for file in sorted((path.parent / "images").glob(f"{path.stem}-*"))]
    np.savez(path, jpeg=np.frombuffer(b"".join(files), np.uint8), offs=np.cumsum([0, *map(len, files)]))
    return str(path)


@pytest.mark.parametrize(("images", "in_memory"), [(0, ""), (3, "a"), (4, "ab"), (7, "abc"), (5, "ab"), (6, "ac")])
def test_memory_is_limited_for_all_together(
    images: int, in_memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other is decoded while there is room for it; what is not is read from its file."""
    counts = {"a": 3, "b": 1 if in_memory != "ac" else 4, "c": 3}
    files = tuple(packed(tmp_path / f"{name}.npz", count) for name, count in counts.items())
    whole = open_source(files, split="train", data_root=None)
    assert whole.images is not None
    monkeypatch.setattr(base, "MEMORY_LIMIT", images * 9 * 8 * 3)
    source = open_source(files, split="train", data_root=None)
    parts = [part.images is not None for part in source._parts]  # type: ignore[attr-defined]
    assert parts == [name in in_memory for name in counts]
    assert (source.images is not None) == (in_memory == "abc")
    assert all(torch.equal(source.read(i), whole.read(i)) for i in range(len(whole)))


def test_numbers_of_several_bytes_count_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MEMORY_LIMIT", 100)
    for dtype, fits in ((torch.uint8, True), (torch.float32, False)):
        assert (joined._together([torch.zeros(5, 1, 3, 3, dtype=dtype)] * 2) is not None) == fits


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
