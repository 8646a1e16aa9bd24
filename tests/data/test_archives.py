"""Archives and lists: the images of a .tar file are those of the folder that was packed, labels and digest too."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matrix_ssl.config.reading import Reading
from matrix_ssl.data import has_test_split, open_source
from matrix_ssl.errors import DataError, UnreadableImage


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, files: dict[str, bytes], **special: bytes) -> Path:
    """An archive of files, and of ``special`` members by their type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind in special.items():
            member = tarfile.TarInfo(f"{name}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return path


def opened(path: Path, split: str = "train", reading: Reading | None = None):  # type: ignore[no-untyped-def]
    return open_source(str(path), split=split, data_root=None, reading=reading or Reading())  # type: ignore[arg-type]


def test_an_archive_is_the_folder_that_was_packed(tmp_path: Path) -> None:
    files = {f"{kind}/{number}.png": picture(number) for kind in ("cat", "dog") for number in range(3)}
    for name, content in files.items():
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(content)
    folder, archive = opened(tmp_path / "x"), opened(write(tmp_path / "x.tar", files))
    assert archive.classes == folder.classes == ["cat", "dog"]
    np.testing.assert_array_equal(archive.labels, folder.labels)
    assert archive.digest == folder.digest
    for index in range(6):
        np.testing.assert_array_equal(archive.read(index), folder.read(index))
        assert archive.encoded(index) == folder.encoded(index)
    assert archive.where(4) == f"{tmp_path}/x.tar/dog/1.png"
    subset = archive.subset([5, 0])
    np.testing.assert_array_equal(subset.read(0), folder.read(5))


def test_shards_of_webdataset_with_numbers_and_names(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "train", "val")):
        files = {}
        for k in range(4):
            files |= {
                f"{k:04d}.png": picture(10 * number + k),
                f"{k:04d}.json": b"{}",
                f"{k:04d}.cls": f"{k % 3}\n".encode(),
            }
        write(tmp_path / "shards" / f"{split}-{number:06d}.tar", files)
    train, test = (opened(tmp_path / "shards", split) for split in ("train", "test"))
    assert (len(train), len(test), train.classes, test.classes) == (8, 4, ["0", "1", "2"], ["0", "1", "2"])
    assert train.labels.tolist() == [0, 1, 2, 0] * 2
    np.testing.assert_array_equal(train.read(5), opened(tmp_path / "shards").subset([5]).read(0))
    named = {"a.b.png": picture(0), "a.cls": b"owl", "c.png": picture(1), "c.cls": b"bee"}
    assert opened(write(tmp_path / "named.tar", named)).classes == ["bee", "owl"]
    partly = {"a.png": picture(0), "a.cls": b"owl", "c.png": picture(1)}
    assert opened(write(tmp_path / "partly.tar", partly)).labels is None
    assert not has_test_split(str(tmp_path / "named.tar"), data_root=None)


def test_folders_whose_names_are_numbers_are_classes_by_name(tmp_path: Path) -> None:
    files = {f"{kind}/1.png": picture(number) for number, kind in enumerate(("007", "2019", "20230101", "7"))}
    for name, content in files.items():
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(content)
    folder, archive = opened(tmp_path / "x"), opened(write(tmp_path / "x.tar", files))
    assert archive.classes == folder.classes == ["007", "2019", "20230101", "7"]
    np.testing.assert_array_equal(archive.labels, folder.labels)
    assert archive.digest == folder.digest


@pytest.mark.parametrize("above", ["photos/", "./photos/", "home/user/photos/", "./"])
def test_a_folder_that_was_packed_by_its_name_keeps_its_classes(tmp_path: Path, above: str) -> None:
    files = {f"{kind}/{number}.png": picture(number) for kind in ("cat", "dog") for number in range(3)}
    for name, content in files.items():
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(content)
    packed = {f"{above}{name}": content for name, content in files.items()}
    folder, archive = opened(tmp_path / "x"), opened(write(tmp_path / "x.tar", packed))
    assert archive.classes == folder.classes == ["cat", "dog"]
    np.testing.assert_array_equal(archive.labels, folder.labels)
    assert archive.where(0) == f"{tmp_path}/x.tar/{above}cat/0.png"
    if above != "./":
        assert archive.digest == folder.digest == archive.subset(range(6)).digest


def test_packed_splits_have_the_classes_below_the_folder_of_each(tmp_path: Path) -> None:
    cats, dogs = {"cat/0.png": picture(0)}, {"dog/0.png": picture(1)}
    write(tmp_path / "sets" / "train-0.tar", {f"train/{name}": one for name, one in cats.items()})
    write(tmp_path / "sets" / "train-1.tar", {f"train/{name}": one for name, one in dogs.items()})
    write(tmp_path / "sets" / "test.tar", {f"test/{name}": one for name, one in dogs.items()})
    train, test = (opened(tmp_path / "sets", split) for split in ("train", "test"))
    assert (train.classes, train.labels.tolist()) == (["cat", "dog"], [0, 1])
    assert (test.classes, test.labels.tolist()) == (["cat", "dog"], [1])
    write(tmp_path / "bare" / "train.tar", cats | dogs)
    write(tmp_path / "bare" / "test.tar", {"cat/old/0.png": picture(0), "cat/new/1.png": picture(1)})
    assert opened(tmp_path / "bare", "test").labels.tolist() == [0, 0]  # a class with folders of its own


@pytest.mark.parametrize("above", ["", "photos/"])
def test_an_archive_that_holds_both_splits_is_refused(tmp_path: Path, above: str) -> None:
    files = {f"{above}{split}/{kind}/0.png": picture(0) for split in ("train", "Val") for kind in ("cat", "dog")}
    with pytest.raises(DataError, match=r"its folders 'train' and 'Val' are splits, .* train\.tar and test\.tar"):
        opened(write(tmp_path / "x.tar", files))
    shards = {f"train/{name}": content for name, content in {"0.png": picture(0), "0.cls": b"1"}.items()}
    shards |= {f"val/{name}": content for name, content in {"0.png": picture(1), "0.cls": b"0"}.items()}
    assert opened(write(tmp_path / "y.tar", shards)).classes == ["0", "1"]


def test_links_devices_and_hidden_files_of_an_archive_are_nothing(tmp_path: Path) -> None:
    files = {"1.png": picture(0), "._2.png": b"x", "../../3.png": picture(1)}
    special = {"a": tarfile.SYMTYPE, "b": tarfile.LNKTYPE, "c": tarfile.CHRTYPE, "d": tarfile.FIFOTYPE}
    source = opened(write(tmp_path / "x.tar", files, **special))
    assert [Path(source.where(k)).name for k in range(len(source))] == ["1.png", "3.png"]
    assert source.read(1).shape == (3, 6, 7)


def test_what_was_taken_for_what_in_archives_is_said(tmp_path: Path) -> None:
    files = {f"{kind}/{number}.png": picture(number) for kind in ("cat", "dog") for number in range(2)}
    left_out = {"cat/@eaDir/0.png": b"x", "__MACOSX/a.png": b"x", ".hidden/b.png": b"x", "dog/c.jxl": b"x"}
    for name in ("train", "val", "test", "extra"):
        write(tmp_path / "x" / f"{name}.tar", files | left_out, a=tarfile.SYMTYPE)
    path = tmp_path / "x" / "train.tar"
    with tarfile.open(path, "a") as archive:
        archive.add(__file__, "dog/1.png")  # the last file of a name counts
    source = opened(tmp_path / "x")
    assert source.remarks == (
        f"{tmp_path}/x: training images from train.tar, test images from test.tar; not used: extra.tar, val.tar.",
        f"Left out of {path}: 1 of 5 files, by their extensions: .jxl (1); 2 thumbnails or copies of the system "
        "(@eaDir, __MACOSX); 1 earlier files of the same name; 1 links, devices or pipes. Convert these images to JPEG "
        "or PNG.",
        f"Classes of {path}: 2 (cat, dog).",
    )
    assert (len(source), source.encoded(3)) == (4, Path(__file__).read_bytes())
    source = opened(write(tmp_path / "one.tar", {f"x/{number}.png": picture(number) for number in range(2)}))
    assert (
        source.unlabelled_because == "all images are of the class 'x', by their first-level folder or their .cls files"
    )
    for text in ("9" * 18, "9" * 40):
        numbers = {"a.png": picture(0), "a.cls": b"0", "b.png": picture(1), "b.cls": text.encode()}
        with pytest.raises(DataError, match=r"the label 9+ is too large; number"):
            opened(write(tmp_path / "numbers.tar", numbers))


def test_what_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", {"1.png": picture(0), "2.png": picture(1)})
    source, content = opened(path), path.read_bytes()
    for end in (0, 100, 700, 1500):
        (tmp_path / "cut.tar").write_bytes(content[:end])
        with pytest.raises(DataError, match=r"cut\.tar: not a \.tar file, or a damaged one"):
            opened(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(content[:1024] + b"x" * 512 + content[1536:])
    with pytest.raises(DataError, match="its end is missing"):
        opened(tmp_path / "cut.tar")
    path.write_bytes(content[:600])
    with pytest.raises(UnreadableImage, match=r"x\.tar/2\.png: the archive is cut off"):
        source.read(1)
    path.unlink()
    with pytest.raises(UnreadableImage, match="the file does not exist"):
        source.read(0)
    with pytest.raises(DataError, match="contains no images"):
        opened(write(tmp_path / "none.tar", {"a.txt": b"x"}))
    (tmp_path / "y.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"is compressed, .* decompress it to a \.tar file"):
        opened(tmp_path / "y.tar.gz")


def test_a_text_file_lists_datasets(tmp_path: Path) -> None:
    for name in ("a", "b c"):
        write(tmp_path / name / "x.tar", {"1.png": picture(len(name))})
    with pytest.raises(DataError, match="File name too long; name a folder"):
        opened(Path("x" * 300 + ".txt"))
    (tmp_path / "list.txt").write_text("﻿# two\na/x.tar\n\n  b c\n", encoding="utf-8")
    source = opened(tmp_path / "list.txt")
    assert [source.where(k) for k in range(2)] == [f"{tmp_path}/a/x.tar/1.png", f"{tmp_path}/b c/x.tar/1.png"]
    both = open_source((str(tmp_path / "a"), str(tmp_path / "b c")), split="train", data_root=None)
    assert both.digest == source.digest
    for content, message in (
        (b"# nothing\n", "lists nothing"),
        (b"#\nabsent\n", "line 2: .*absent does not exist"),
        (b"\xff\xfe", "expected a list of datasets"),
    ):
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            opened(tmp_path / "list.txt")


def test_a_list_may_be_named_by_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "x.tar", {"1.png": picture(0), "2.png": picture(1)})
    (tmp_path / "list.txt").write_text("x.tar\n")
    assert len(opened(Path("~/list.txt"))) == 2
