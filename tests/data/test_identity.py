"""Which dataset it is: what the digest is made of, what changes it and what does not."""

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from matrix_ssl.config.reading import Reading
from matrix_ssl.data import Source, identity, open_source
from matrix_ssl.data.base import MemorySource, Places
from matrix_ssl.data.identity import ABSENT, content_digest
from matrix_ssl.data.kinds.huggingface import HuggingFaceSource
from matrix_ssl.data.objects import as_data
from matrix_ssl.training.remarks import on_copies
from tests.support.runs import BARE, from_files, make_images, succeed


def opened(path: Path | str) -> Source:
    return open_source(str(path), split="train", data_root=None)


def parts_digest(*parts: bytes) -> str:
    """SHA-256 of parts, each with its length before it in eight bytes, the lowest first; 16 digits of it."""
    content = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hashlib.sha256(content).hexdigest()[:16]


def integers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two files each, in a folder ``set``."""
    for name, content in (("ant/0.jpg", b"ant"), ("ant/1.jpg", b"a"), ("bee/0.jpg", b"bees"), ("bee/deep/0.jpg", b"")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    return tmp_path / "set"


def test_a_folder_by_hand(folder: Path) -> None:
    names, contents = ["ant/0.jpg", "ant/1.jpg", "bee/0.jpg", "bee/deep/0.jpg"], [b"ant", b"a", b"bees", b""]
    header = "\0".join(names).encode(), b"ant\0bee", integers(3, 1, 4, 0), integers(0, 0, 1, 1)
    assert opened(folder).digest == parts_digest(*header, *contents)


def test_a_dataset_in_memory_by_hand() -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    labels = np.array([1, 0])
    source = MemorySource("set", images, Places.whole(["set"], [2]), labels=labels, classes=["a", "b"])
    pixels = [b"(3, 2, 2)" + bytes(range(12)), b"(3, 2, 2)" + bytes(range(12, 24))]
    assert source.digest == parts_digest(b"", b"a\0b", integers(12, 12), integers(1, 0), *pixels)
    turned = MemorySource("x", images.mT, Places.whole(["x"], [2]), labels=labels, classes=["a", "b"])
    assert turned.digest != source.digest != source.subset([1, 0]).digest


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
def test_an_array_by_hand(kind: str) -> None:
    """All bytes of wide numbers, too: only the last one of the second image differs."""
    array = np.zeros((2, 20, 20, 2), dtype=kind)
    other = array.copy()
    other[1, -1, -1, -1] = 1
    header, size = f"{array.dtype.str} (20, 20, 2)".encode(), array[0].nbytes
    for each in (array, other):
        expected = parts_digest(b"", b"", integers(size, size), b"", *(header + one.tobytes() for one in each))
        source = as_data(each).train()  # type: ignore[union-attr]
        assert source.digest == expected == source.loaded().digest


def test_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte: files of equal size with other content are none, nor are the pages of one file."""
    for name, level in (("0.bmp", 1), ("1.bmp", 2), ("2.bmp", 1), ("3.bmp", 1), ("4.png", 1), ("5.bmp", 2)):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (5, 4), (level, level, level)).save(tmp_path / "set" / name)
    pairs = [(2, 0), (3, 0), (5, 1)]
    assert opened(tmp_path / "set").copies() == pairs
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        file.add(tmp_path / "set", "set")
    assert opened(tmp_path / "set.tar").copies() == pairs
    both = open_source((str(tmp_path / "set"), str(tmp_path / "set.tar")), split="train", data_root=None)
    assert both.copies() == [*pairs, *((k + 6, first) for k, first in enumerate([0, 1, 0, 0, 4, 1]))]
    array = np.array([7, 8, 7], dtype=np.uint8).repeat(5 * 4 * 3).reshape(3, 5, 4, 3)
    assert as_data(array).train().copies() == [(2, 0)]  # type: ignore[union-attr]
    frames = [Image.new("L", (5, 4), level) for level in range(3)]
    (tmp_path / "pages").mkdir()
    frames[0].save(tmp_path / "pages" / "0.tif", save_all=True, append_images=frames[1:])
    each = open_source(str(tmp_path / "pages"), split="train", data_root=None, reading=Reading(pages="all"))
    assert len(each) == 3 and each.copies() == []
    monkeypatch.setattr(identity, "WHOLE", 100)
    assert opened(tmp_path / "set").copies() == []


def test_many_copies_are_a_warning_of_a_training(tmp_path: Path) -> None:
    *_, last = make_images(tmp_path / "images", 18)
    for name in ("x.jpg", "y.jpg"):
        shutil.copy(last, tmp_path / "images" / name)
    assert len(opened(tmp_path / "images").copies()) == 2 and on_copies(opened(tmp_path / "images")) == []
    shutil.copy(last, tmp_path / "images" / "z.jpg")
    assert (
        "Warning: 3 of 21 images are copies of others, byte for byte, such as images/x.jpg of images/017.jpg: unless "
        "these are to count more, train on the other 18."
    ) in succeed(tmp_path, from_files("images", "data.workers=0"), before=BARE).err


def test_moved_copied_and_renamed_folders_are_the_same_dataset(folder: Path, tmp_path: Path) -> None:
    before = opened(folder).digest
    shutil.copytree(folder, tmp_path / "elsewhere" / "other name")
    (folder / "ant" / "0.jpg").touch()
    (folder / ".hidden").write_text("of the user")
    (folder / "notes.txt").write_text("of the user")
    assert opened(folder).digest == before == opened(tmp_path / "elsewhere" / "other name").digest
    assert opened(folder).subset([0, 1]).digest != before == opened(folder).subset(range(4)).digest


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda folder: (folder / "ant" / "0.jpg").write_bytes(b"anT"),
    "a name": lambda folder: (folder / "ant" / "0.jpg").rename(folder / "ant" / "00.jpg"),
    "a class": lambda folder: (folder / "ant").rename(folder / "asp"),
    "a label": lambda folder: (folder / "ant" / "0.jpg").rename(folder / "bee" / "1.jpg"),
    "contents that change places": lambda folder: [
        (folder / name).write_bytes(content) for name, content in (("ant/0.jpg", b"a"), ("ant/1.jpg", b"ant"))
    ],
    "one more": lambda folder: (folder / "bee" / "2.jpg").touch(),
    "one less": lambda folder: (folder / "bee" / "0.jpg").unlink(),
    "a file that is lost": lambda folder: [
        (folder / "bee" / "0.jpg").unlink(), (folder / "bee" / "0.jpg").symlink_to("absent"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_the_digest(folder: Path, what: str) -> None:
    before = opened(folder).digest
    CHANGES[what](folder)
    assert opened(folder).digest != before


def test_of_a_large_dataset_the_starts_of_a_spread_sample_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "WHOLE", 99)
    monkeypatch.setattr(identity, "SAMPLE", 4)
    monkeypatch.setattr(identity, "START", 3)
    read: list[tuple[int, int]] = []

    def start(index: int, count: int) -> bytes:
        read.append((index, count))
        return bytes([index]) * count

    names = [str(index) for index in range(10)]
    found = content_digest(names, np.full(10, 10), start)
    assert read == [(0, 3), (3, 3), (6, 3), (9, 3)]
    starts = [bytes([index]) * 3 for index in (0, 3, 6, 9)]
    assert found == parts_digest("\0".join(names).encode(), b"", integers(*[10] * 10), b"", *starts)
    read.clear()
    assert content_digest(names, np.array([9] + [10] * 9), start) != found
    assert read == [(0, 9), *((index, 10) for index in range(1, 10))]  # 99 bytes are few
    read.clear()
    content_digest(names, np.array([ABSENT, 100, ABSENT, *[10] * 7]), start)
    assert read == [(1, 3), (4, 3), (6, 3), (9, 3)]


def test_packed_files_are_known_by_their_content_however_they_are_cut(tmp_path: Path) -> None:
    files = []
    for side in (4, 5, 6, 7):
        path = tmp_path / f"{side}.png"
        Image.new("RGB", (side, 4), (side, 0, 0)).save(path)
        files.append(path.read_bytes())

    def pack(path: Path, chosen: list[bytes]) -> None:
        path.parent.mkdir(exist_ok=True)
        offs = np.cumsum([0, *map(len, chosen)])
        np.savez(path, jpeg=np.frombuffer(b"".join(chosen), dtype=np.uint8), offs=offs, y=np.zeros(len(chosen), int))

    pack(tmp_path / "one.npz", files)
    pack(tmp_path / "two" / "a.npz", files[:1])
    pack(tmp_path / "two" / "b.npz", files[1:])
    pack(tmp_path / "other.npz", files[::-1])
    one = opened(tmp_path / "one.npz")
    sizes = integers(*map(len, files))
    assert one.digest == parts_digest(b"", b"0", sizes, integers(0, 0, 0, 0), *files)
    assert one.digest == opened(tmp_path / "two").digest == one.subset(range(4)).digest
    assert opened(tmp_path / "other.npz").digest == one.subset([3, 2, 1, 0]).digest != one.digest


def test_datasets_of_the_hugging_face_hub(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [tmp_path / f"{side}.png" for side in (4, 5, 6)]
    for path in paths:
        Image.new("RGB", (int(path.stem), 4)).save(path)
    files = [path.read_bytes() for path in paths]
    inside = [{"bytes": file, "path": None} for file in files]
    beside = [{"bytes": None, "path": str(path)} for path in paths]

    def source(*rows: dict | None) -> Source:
        features = datasets.Features({"image": datasets.Image(decode=False)})
        column = datasets.Dataset.from_dict({"image": list(rows)}, features=features)
        places = Places.whole(["hf:set"], [len(rows)])
        return HuggingFaceSource("set", column, places, labels=None, classes=None)

    expected = parts_digest(b"", b"", integers(*map(len, files)), b"", *files)
    assert source(*inside).digest == expected == source(*inside).subset(range(3)).digest
    assert source(*beside).digest == expected == source(beside[0], *inside[1:]).digest
    assert source(*inside).subset([1]).digest == parts_digest(b"", b"", integers(len(files[1])), b"", files[1])
    assert [source(inside[0], beside[1], None).held_by(k) for k in range(3)] == ["hf:set", str(paths[1]), "hf:set"]
    absent = source(inside[0], None, {"bytes": None, "path": str(tmp_path / "absent.png")})
    assert absent.digest == parts_digest(b"", b"", integers(len(files[0]), ABSENT, ABSENT), b"", files[0])
