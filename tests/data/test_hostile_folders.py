"""Folders of images, packed files and models from elsewhere: nothing is waited for or read without end."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matrix_ssl.data import open_source
from matrix_ssl.data.hub import check_pretrained
from matrix_ssl.data.kinds.folder import open_folder
from matrix_ssl.data.kinds.packed import read_shard
from matrix_ssl.errors import CheckpointError, DataError, UnreadableImage


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An image, and links in the place of images: to a pipe, a device, themselves, nothing and a folder."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "0.png")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(folder / "pipe.png")
    for name, target in (("1", tmp_path / "pipe"), ("2", "/dev/zero"), ("3", "3.png"), ("4", "nowhere")):
        (folder / f"{name}.png").symlink_to(target)
    (folder / "sub" / "loop").symlink_to("loop")
    return folder


def test_links_to_anything_but_files_are_unreadable_images(images: Path) -> None:
    source = open_folder(images, name="images")
    assert [Path(source.where(i)).name for i in range(len(source))] == [f"{k}.png" for k in range(5)]
    assert source.read(0).shape == (3, 4, 4)
    for index in range(1, 5):
        with pytest.raises(UnreadableImage):
            source.read(index)
    assert len(source.digest) == 16


@pytest.mark.parametrize("name", ["pipe", "pipe.npz", "pipe.tar"])
def test_a_pipe_in_the_place_of_a_dataset_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"is a pipe, a device or a socket; name a folder of images"):
        open_source(f"{tmp_path / name}", split="train", data_root=None)


GOOD = {
    "jpeg": np.zeros(6, np.uint8),
    "offs": np.array([0, 3, 6]),
    "y": np.array([0, 1]),
    "classes": np.array(["a", "b"]),
}


def packed(**changes: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{**GOOD, **changes})  # type: ignore[arg-type]
    return file.getvalue()


def again(kind: int, change: Callable[[bytes], bytes]) -> bytes:
    """A good file packed again, with every array changed."""
    old, file = zipfile.ZipFile(io.BytesIO(packed())), io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)))
    return file.getvalue()


def changed(content: bytes, start: int, part: bytes) -> bytes:
    start = start % len(content)
    return content[:start] + part + content[start + len(part) :]


@pytest.mark.parametrize(
    "content",
    [
        packed(classes=np.asarray("a")),
        packed(classes=np.array([[1.5]])),
        changed(packed(), packed().rindex(b"PK\1\2") + 6, b"\xad"),  # version 17.3 of zip
        changed(packed(), packed().rindex(b"PK\1\2") + 8, b"\x01"),  # encrypted
        again(zipfile.ZIP_STORED, lambda part: b"x" + part[1:]),
        again(zipfile.ZIP_STORED, lambda part: part.replace(b"'fortran_order'", b"(((fortran_orde")),
        again(zipfile.ZIP_STORED, lambda part: part.replace(b"(6,)", b"(" + b"9" * 16 + b",)")),
        changed(again(zipfile.ZIP_LZMA, bytes), 60, bytes(15)),
        changed(again(zipfile.ZIP_BZIP2, bytes), 60, bytes(15)),
        changed(again(zipfile.ZIP_DEFLATED, bytes), 60, bytes(15)),
        b"", b"PK\5\6" + bytes(18), packed()[:-9],
    ],
    ids=range(13),
)  # fmt: skip
def test_damaged_packed_files_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz"):
        read_shard(tmp_path / "x.npz")


def test_the_good_packed_file_is_read(tmp_path: Path) -> None:
    for content in (packed(), again(zipfile.ZIP_LZMA, bytes)):
        (tmp_path / "x.npz").write_bytes(content)
        assert read_shard(tmp_path / "x.npz").classes == ["a", "b"]


@pytest.mark.parametrize(
    "name, text", [("config.json", "[" * 100_000), ("tokenizer_config.json", '{"a": 1, "a": 2}'), ("other.json", None)]
)
def test_a_model_folder_is_looked_at_before_a_library_opens_it(tmp_path: Path, name: str, text: str | None) -> None:
    if text is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=name):
        check_pretrained(tmp_path)


def test_names_of_a_hub_are_not_looked_at() -> None:
    check_pretrained("someone/something")
    check_pretrained(object())
