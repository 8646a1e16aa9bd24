"""Finding, opening and splitting sets of images, on real files of every layout."""

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as torchvision_datasets

from matrix_ssl.data import base, has_test_split, open_source, split_source
from matrix_ssl.data.base import MemorySource, Source
from matrix_ssl.data.kinds.packed import PackedSource
from matrix_ssl.errors import ConfigError, DataError, MissingExtra, UnreadableImage

REAL_DATA = os.environ.get("MATRIX_SSL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="MATRIX_SSL_DATA names no folder with real data")


def png(level: int, side: int = 4) -> bytes:
    """A square image of one grey level, by which tests recognise it."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, level: int = 0, side: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(level, side))


def pack(path: Path, files: Sequence[bytes], **arrays: object) -> None:
    """Writes a packed file; ``arrays`` replace or add arrays, None leaves one out."""
    content = {
        "jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offs": np.cumsum([0, *map(len, files)], dtype=np.uint32),
        **arrays,
    }
    np.savez(path, **{key: np.asarray(value) for key, value in content.items() if value is not None})


def opened(location: Path | str, split: str = "train", root: Path | None = None) -> Source:
    return open_source(str(location), split=split, data_root=root)  # type: ignore[arg-type]


def levels(source: Source) -> list[int]:
    return [int(source.read(index)[0, 0, 0]) for index in range(len(source))]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MATRIX_SSL_DATA", raising=False)


# Folders


def test_flat_folder_is_sorted_and_unlabelled(tmp_path: Path) -> None:
    for name, level in (("c.PNG", 3), ("a.png", 1), ("b.png", 2)):
        write(tmp_path / name, level)
    (tmp_path / "notes.txt").write_text("no image")
    source = opened(tmp_path)
    assert levels(source) == [1, 2, 3]
    assert (source.name, source.channels, len(source)) == (tmp_path.name, 3, 3)
    assert source.labels is None
    assert source.classes is None
    assert source.images is None
    assert source.where(1) == str(tmp_path / "b.png")


def test_class_folders_are_labels_and_deeper_folders_do_not_matter(tmp_path: Path) -> None:
    for k, name in enumerate(["dog/z.png", "cat/b/y.png", "cat/a.png", "cat/b/deep/er/x.png", "dog.old/w.png"]):
        write(tmp_path / name, k)
    source = opened(tmp_path)
    assert source.classes == ["cat", "dog", "dog.old"]
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert list(zip(levels(source), source.labels.tolist(), strict=True)) == [(2, 0), (3, 0), (1, 0), (0, 1), (4, 2)]


def test_a_single_class_folder_or_a_stray_image_means_unlabelled(tmp_path: Path) -> None:
    write(tmp_path / "only/a.png")
    assert opened(tmp_path).labels is None
    write(tmp_path / "other/a.png")
    assert opened(tmp_path).labels is not None
    write(tmp_path / "stray.png")
    assert opened(tmp_path).labels is None


def test_hidden_files_are_skipped_and_links_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a/1.png", "b/2.png", ".hidden.png", ".thumbnails/3.png", "a/._1.png"):
        write(root / name)
    write(tmp_path / "elsewhere/4.png")
    (root / "a/5.png").symlink_to(tmp_path / "elsewhere/4.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a/loop").symlink_to(root)
    (root / "b/broken.png").symlink_to(tmp_path / "nowhere.png")
    source = opened(root)
    places = [os.path.relpath(source.where(index), root) for index in range(len(source))]
    assert places == ["a/1.png", "a/5.png", "b/2.png", "b/broken.png", "c/4.png"]
    with pytest.raises(UnreadableImage, match=r"broken\.png: the file does not exist"):
        source.read(3)


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test"])
def test_standard_layout(tmp_path: Path, name: str) -> None:
    for k, label in enumerate("abc"):
        write(tmp_path / f"train/{label}/x.png", k)
    for k, label in enumerate("bc"):  # a class is absent: the numbers must still be those of the training split
        write(tmp_path / f"{name}/{label}/x.png", 10 + k)
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert has_test_split(str(tmp_path), data_root=None)
    assert (levels(train), levels(test)) == ([0, 1, 2], [10, 11])
    assert test.labels is not None
    assert test.labels.tolist() == [1, 2]
    assert train.classes == test.classes == ["a", "b", "c"]
    assert train.name == test.name == tmp_path.name
    write(tmp_path / f"{name}/unheard/x.png")
    with pytest.raises(DataError, match=r"'unheard' is not in the training split \(3 classes\)"):
        opened(tmp_path, "test")


def test_which_of_several_test_folders(tmp_path: Path) -> None:
    for name in ("train/a/x.png", "train/b/x.png", "val/a/x.png", "val/b/x.png", "test/x.png"):
        write(tmp_path / name, len(name))
    assert opened(tmp_path, "test").where(0) == str(tmp_path / "val/a/x.png")  # test has no labels
    write(tmp_path / "test/a/x.png")
    (tmp_path / "test/b").mkdir()
    assert str(tmp_path / "test") in opened(tmp_path, "test").where(0)


def test_train_beside_other_folders_is_a_class(tmp_path: Path) -> None:
    write(tmp_path / "train/x.png")
    assert opened(tmp_path).where(0).endswith("train/x.png")
    assert opened(tmp_path).labels is None
    write(tmp_path / "bicycle/x.png")
    assert opened(tmp_path).classes == ["bicycle", "train"]
    assert not has_test_split(str(tmp_path), data_root=None)


def test_no_test_part_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"has no test split: .* hold out"):
        opened(tmp_path, "test")


def test_folder_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the folder is empty"):
        opened(tmp_path)
    for name in ("a.txt", "b.txt", "sub/c.tar.gz", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"no image among 4 files with the extensions \.txt \(2\), .*none \(1\)"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"c\.tar\.gz is compressed, .* decompress it to a \.tar file"):
        opened("sub/c.tar.gz")
    with pytest.raises(DataError, match="Did you mean 'sub'"):
        opened("subb/deeper/still")
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        opened("digit")
    with pytest.raises(DataError, match="The dataset is empty"):
        opened("")


# Packed files


def packed_set(folder: Path) -> Path:
    """Two training shards of three images and a validation file of two, four classes."""
    names = np.array(["ant", "bee", "cow", "doe"])
    folder.mkdir()
    pack(folder / "set_train_1.npz", [png(k) for k in (4, 5, 6)], y=np.array([3, 0, 1], np.uint8), classes=names)
    pack(folder / "set_train_0.npz", [png(k) for k in (1, 2, 3)], y=np.array([0, 1, 2], np.uint8), classes=names)
    pack(folder / "set_val.npz", [png(k) for k in (7, 8)], y=np.array([2, 2], np.uint8), classes=names)
    return folder


def test_packed_folder_shards_in_order_and_parts_by_name(tmp_path: Path) -> None:
    folder = packed_set(tmp_path / "insects")
    train, test = opened(folder), opened(folder, "test")
    assert isinstance(train, MemorySource)
    assert train.images.shape == (6, 3, 4, 4)
    assert (levels(train), levels(test)) == ([1, 2, 3, 4, 5, 6], [7, 8])
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert train.classes == ["ant", "bee", "cow", "doe"]
    assert train.name == "insects"
    assert train.where(4) == f"{folder / 'set_train_1.npz'}[1]"
    assert opened(folder / "set_val.npz").name == "set_val"
    assert not has_test_split(str(folder / "set_val.npz"), data_root=None)


def test_packed_names(tmp_path: Path) -> None:
    pack(tmp_path / "one.npz", [png(1)])
    pack(tmp_path / "val.npz", [png(2)])
    assert (levels(opened(tmp_path)), levels(opened(tmp_path, "test"))) == ([1], [2])
    pack(tmp_path / "test.npz", [png(3)])
    assert levels(opened(tmp_path, "test")) == [3]
    (tmp_path / "one.npz").unlink()
    with pytest.raises(DataError, match="name the training split"):
        opened(tmp_path)


def test_in_memory_and_lazy_reading_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packed_set(tmp_path / "set")
    eager = opened(folder)
    monkeypatch.setattr(base, "MEMORY_LIMIT", 6 * 48 - 1)
    lazy = opened(folder)
    assert isinstance(lazy, PackedSource)
    assert lazy.images is None
    assert eager.images is not None
    for source in (lazy, lazy.subset([0, 1, 2, 3, 4, 5]), pickle.loads(pickle.dumps(lazy))):
        assert torch.equal(torch.stack([source.read(index) for index in range(6)]), eager.images)
        assert [source.where(index) for index in range(6)] == [eager.where(index) for index in range(6)]
        assert np.array_equal(source.labels, eager.labels)


def test_mixed_sizes_and_damaged_images_are_read_one_by_one(tmp_path: Path) -> None:
    pack(tmp_path / "mixed.npz", [png(1), png(2, side=6)])
    mixed = opened(tmp_path / "mixed.npz")
    assert mixed.images is None
    assert mixed.labels is None
    with pytest.raises(DataError, match="has no labels: its file has no array 'y' of whole numbers"):
        mixed.labelled()
    assert [tuple(mixed.read(index).shape) for index in range(2)] == [(3, 4, 4), (3, 6, 6)]
    pack(tmp_path / "bad.npz", [png(1), png(2)[:48], b"", png(3)])
    bad = opened(tmp_path / "bad.npz")
    assert bad.images is None
    assert int(bad.read(3)[0, 0, 0]) == 3
    with pytest.raises(UnreadableImage, match=r"bad\.npz\[1\]: damaged image"):
        bad.read(1)
    with pytest.raises(UnreadableImage, match=r"bad\.npz\[2\]: the file is empty"):
        bad.subset([3, 2]).read(1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"jpeg": None}, "the array 'jpeg' is missing"),
        ({"offs": None}, "the array 'offs' is missing"),
        ({"jpeg": np.zeros(9)}, "'jpeg' must be a row of bytes"),
        ({"offs": np.array([0.0, 5.0])}, "'offs' must hold n\\+1 integers"),
        ({"offs": np.array([0])}, "'offs' must hold n\\+1 integers"),
        ({"offs": np.array([0, 60, 10**6])}, "it runs from 0 to 1000000; the file is damaged"),
        ({"offs": np.array([0, 60, 40, 160], np.uint32)}, "'offs' must rise"),
        ({"y": np.array([0, 1, 2])}, "expected 2 integer labels, got int64 of shape \\(3,\\)"),
        ({"y": np.array([0.0, 1.0])}, "expected 2 integer labels, got float64"),
        ({"y": np.array([0, 2]), "classes": np.array(["a", "b"])}, "labels from 0 to 2 do not fit 2 classes"),
        ({"y": np.array([-1, 0])}, "labels from -1 to 0"),
        ({"y": np.array([0, 10**17])}, "the label 1" + "0" * 17 + " is too large"),
        ({"y": np.array([0, 1]), "classes": np.array(["a", "a"])}, "two classes have the name 'a'; rename one"),
        ({"y": np.array([{}, {}], dtype=object)}, "not an .npz file, or a damaged one"),  # a pickle
    ],
)
def test_damaged_packed_files(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    path = tmp_path / "bad.npz"
    pack(path, [png(1), png(2)], **arrays)
    with pytest.raises(DataError, match=message) as caught:
        opened(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    pack(path, [png(1), png(2)])
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 255  # inside the images: only the checksum of the archive notices
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(flipped), single.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz: not an \.npz"):
            opened(path)


def test_shards_must_agree(tmp_path: Path) -> None:
    pack(tmp_path / "train_0.npz", [png(1)], y=np.array([0]), classes=np.array(["a"]))
    pack(tmp_path / "train_1.npz", [png(1)], y=np.array([0]), classes=np.array(["b"]))
    with pytest.raises(DataError, match=r"train_1\.npz and .*train_0\.npz: their 'classes' differ"):
        opened(tmp_path)
    pack(tmp_path / "train_1.npz", [png(1)])
    with pytest.raises(DataError, match="only one of them has labels"):
        opened(tmp_path)


def test_labels_without_names_are_called_by_number_over_all_shards(tmp_path: Path) -> None:
    pack(tmp_path / "train_0.npz", [png(1)], y=np.array([0]))
    pack(tmp_path / "train_1.npz", [png(1)], y=np.array([2]))
    assert opened(tmp_path).classes == ["0", "1", "2"]


def test_a_test_split_without_names_has_the_classes_of_the_training_split(tmp_path: Path) -> None:
    pack(tmp_path / "train.npz", [png(1), png(2)], y=np.array([0, 2]))
    pack(tmp_path / "test.npz", [png(3)], y=np.array([1]))
    assert opened(tmp_path).classes == opened(tmp_path, "test").classes == ["0", "1", "2"]
    pack(tmp_path / "test.npz", [png(3)], y=np.array([3]))
    with pytest.raises(DataError, match="labels from 3 to 3 do not fit 3 classes"):
        opened(tmp_path, "test")


# Named sets


def test_digits_are_the_fixed_stratified_split() -> None:
    train, test = opened("digits"), opened("digits", "test")
    assert has_test_split("digits", data_root=None)
    assert train.images is not None
    assert test.images is not None
    assert (tuple(train.images.shape), tuple(test.images.shape)) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (train.channels, train.classes) == (1, [str(k) for k in range(10)])
    everything = load_digits()
    used = set()
    for source in (train, test):
        assert source.labels is not None
        share = np.bincount(source.labels) / len(source)
        np.testing.assert_allclose(share, np.bincount(everything.target) / 1797, atol=0.002)
        for index in range(len(source)):
            original = int(source.where(index).removeprefix("digits[").removesuffix("]"))
            used.add(original)
            expected = np.floor(everything.images[original] * 255 / 16 + 0.5)
            np.testing.assert_array_equal(source.read(index)[0].numpy(), expected)
            assert source.labels[index] == everything.target[original]
    assert used == set(range(1797))


def test_named_set_without_a_root_names_every_remedy() -> None:
    with pytest.raises(DataError, match=r"cifar10: .*--data-root .*MATRIX_SSL_DATA.*--download"):
        opened("cifar10")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "stl10-unlabeled"])
def test_named_set_that_is_absent(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is not in .*--data-root or MATRIX_SSL_DATA.*--download") as caught:
        opened(name, root=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_names_are_looked_up_in_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_set(tmp_path / "cifar10")
    write(tmp_path / "mine/a/x.png")
    assert len(opened("cifar10", root=tmp_path)) == 6
    assert len(opened("mine", root=tmp_path)) == 1
    with pytest.raises(DataError, match=r"or in .*Did you mean 'mine'"):
        opened("minne", root=tmp_path)
    monkeypatch.setenv("MATRIX_SSL_DATA", str(tmp_path))
    assert len(opened("cifar10", "test")) == 2
    assert has_test_split("cifar10", data_root=None)
    assert len(opened("cifar10", root=tmp_path)) == 6


def test_cifar_files_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files in the published layout, with their own checksums in place of the published ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batch = pickle.dumps({"data": pixels, "labels": [3, 1, 0, 2]}, protocol=2)
    meta = pickle.dumps({"label_names": ["a", "b", "c", "d"]}, protocol=2)
    checksums = {}
    for name, content in (("data_batch_1", batch), ("batches.meta", meta)):
        (folder / name).write_bytes(content)
        checksums[name] = hashlib.md5(content).hexdigest()
    reader = torchvision_datasets.CIFAR10
    monkeypatch.setattr(reader, "train_list", [["data_batch_1", checksums["data_batch_1"]]])
    monkeypatch.setattr(reader, "test_list", [])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": checksums["batches.meta"]})
    source = opened("cifar10", root=tmp_path)
    assert source.images is not None
    np.testing.assert_array_equal(source.images.numpy().reshape(4, 3072), pixels)  # the files are channels first
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ([3, 1, 0, 2], ["a", "b", "c", "d"])
    assert source.where(2) == "cifar10/train[2]"
    (folder / "data_batch_1").write_bytes(batch + b"changed")
    with pytest.raises(DataError, match="cifar10 is not in"):
        opened("cifar10", root=tmp_path)


def test_stl_files_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    files = {
        "train_X.bin": pixels.transpose(0, 1, 3, 2).tobytes(),  # the files hold columns
        "train_y.bin": bytes([10, 1, 2]),
        "unlabeled_X.bin": pixels[:2].transpose(0, 1, 3, 2).tobytes(),
        "class_names.txt": "\n".join("abcdefghij").encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    reader = torchvision_datasets.STL10
    checksums = [[name, hashlib.md5(content).hexdigest()] for name, content in files.items()]
    monkeypatch.setattr(reader, "train_list", checksums)
    monkeypatch.setattr(reader, "test_list", [])
    source = opened("stl10", root=tmp_path)
    assert source.images is not None
    np.testing.assert_array_equal(source.images.numpy(), pixels)
    assert source.labels is not None
    assert source.labels.tolist() == [9, 0, 1]
    assert source.classes == list("abcdefghij")
    assert has_test_split("stl10", data_root=tmp_path)
    unlabelled = opened("stl10-unlabeled", root=tmp_path)
    assert (len(unlabelled), unlabelled.labels, unlabelled.classes) == (2, None, None)
    assert not has_test_split("stl10-unlabeled", data_root=tmp_path)


@needs_real_data
def test_real_packed_sets() -> None:
    root = Path(str(REAL_DATA))
    cifar = opened("cifar10", "test", root)
    assert cifar.labels is not None
    assert cifar.images is not None
    assert cifar.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(cifar.labels).tolist() == [1000] * 10
    assert (cifar.classes or [])[3] == "cat"
    imagenette = opened("imagenette128", "test", root)
    assert len(imagenette) == 3925
    assert imagenette.images is not None
    assert imagenette.images.shape[1:] == (3, 128, 128)


# Hugging Face


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves parts of images as ``datasets`` does; a part is (name, levels, side of the last image)."""
    datasets = pytest.importorskip("datasets")

    def save(*parts: tuple[str, list[int]], last_side: int = 4, label: object = None) -> Path:
        features = {
            "id": datasets.Value("int64"),
            "photo": datasets.Image(),
            "kind": label or datasets.ClassLabel(names=["x", "y"]),
        }
        content = {}
        for name, shown in parts:
            sides = [4] * (len(shown) - 1) + [last_side]
            files = [{"bytes": png(k, side), "path": None} for k, side in zip(shown, sides, strict=True)]
            columns = {"id": shown, "photo": files, "kind": [k % 2 for k in shown]}
            content[name] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        datasets.DatasetDict(content).save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    return save


def test_hugging_face_folder(saved: Callable[..., Path]) -> None:
    location = f"hf:{saved(('train', [5, 6, 8]), ('validation', [9]))}"
    train, test = opened(location), opened(location, "test")
    assert has_test_split(location, data_root=None)
    assert train.images is not None
    assert (levels(train), levels(test)) == ([5, 6, 8], [9])
    assert train.labels is not None
    assert (train.labels.tolist(), train.classes) == ([1, 0, 0], ["x", "y"])
    assert (train.name, train.where(2)) == ("saved", f"{location}/train[2]")


def test_hugging_face_images_of_many_sizes_stay_encoded(saved: Callable[..., Path]) -> None:
    datasets = pytest.importorskip("datasets")
    location = f"hf:{saved(('train', [5, 6, 8]), last_side=6, label=datasets.Value('int64'))}"
    source = opened(location)
    assert not has_test_split(location, data_root=None)
    assert (source.images, source.labels) == (None, None)  # "kind" is now a plain number, not a class
    for copy in (source, pickle.loads(pickle.dumps(source)), source.subset([0, 1, 2])):
        assert levels(copy) == [5, 6, 8]
    assert levels(source.subset([2, 0])) == [8, 5]
    assert source.subset([2, 0]).where(0) == f"{location}/train[2]"


@pytest.mark.parametrize(
    ("kind", "values", "labels", "why"),
    [
        ("string", ["owl", "bee", "owl"], [1, 0, 1], ""),
        ("string", ["owl", None, "owl"], None, "its column 'label' holds neither whole numbers nor texts alone"),
        ("float32", [0.0, 1.0, 0.0], None, "its column 'label' holds neither whole numbers nor texts alone"),
        ("int64", [0, None, 1], None, "its column 'label' holds neither whole numbers nor texts alone"),
        ("int64", [0, -1, 1], None, "1 of the 3 labels of its column 'label' are below 0"),
    ],
)
def test_hugging_face_labels_of_any_type_leave_the_images(
    tmp_path: Path, kind: str, values: list[object], labels: list[int] | None, why: str
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    files = [{"bytes": png(k), "path": None} for k in range(3)]
    datasets.Dataset.from_dict({"image": files, "label": values}, features=features).save_to_disk(tmp_path / "x")
    source = opened(f"hf:{tmp_path / 'x'}")
    assert levels(source) == [0, 1, 2]
    assert (None if source.labels is None else source.labels.tolist()) == labels
    if labels is None:
        assert source.remarks == (f"hf:{tmp_path / 'x'}/train is taken without labels: {why}.",)
        with pytest.raises(DataError, match=why):
            source.labelled()


def test_hugging_face_splits_without_published_labels_are_not_judged(tmp_path: Path) -> None:
    """As of ImageNet, whose test images have the label -1; a split that lacks a class keeps its numbers."""
    datasets = pytest.importorskip("datasets")

    def part(shown: list[int], labels: list[object], kind: object) -> object:
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        files = [{"bytes": png(k), "path": None} for k in shown]
        return datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)

    named = datasets.ClassLabel(names=["x", "y"])
    parts = {"train": part([1, 2], [0, 1], named), "test": part([3], [-1], named), "validation": part([4], [1], named)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "hidden")
    location = f"hf:{tmp_path / 'hidden'}"
    assert levels(opened(location, "test")) == [4]
    assert opened(location).remarks == (
        f"{location}: training images from train, test images from validation; not used: test.",
    )
    text = datasets.Value("string")
    parts = {"train": part([1, 2], ["a", "b"], text), "test": part([3], ["b"], text)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "texts")
    test = opened(f"hf:{tmp_path / 'texts'}", "test")
    assert (test.labels.tolist(), test.classes) == ([1], ["a", "b"])


def test_hugging_face_errors(saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        opened(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="no split 'train', only other"):
        opened(f"hf:{saved(('other', [1]))}")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "words")
    with pytest.raises(DataError, match="no column holds images; its columns are text"):
        opened(f"hf:{tmp_path / 'words'}")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # what Python does for a package that is absent
    with pytest.raises(MissingExtra, match=r"\.\[datasets\]"):
        opened("hf:any/set")


# Subsets and held-out images


@pytest.mark.parametrize("kind", ["folder", "memory", "packed"])
def test_subset_keeps_names_labels_and_places(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "folder":
        for k in range(6):
            write(tmp_path / f"set/{'ab'[k % 2]}/{k}.png", k + 1)
    else:
        packed_set(tmp_path / "set")
        monkeypatch.setattr(base, "MEMORY_LIMIT", 0 if kind == "packed" else base.MEMORY_LIMIT)
    source = opened(tmp_path / "set")
    assert (source.images is not None) == (kind == "memory")
    part = source.subset(np.array([5, 0, 3])).subset([2, 0])
    assert source.labels is not None
    assert part.labels is not None
    assert levels(part) == [levels(source)[3], levels(source)[5]]
    assert part.labels.tolist() == source.labels[[3, 5]].tolist()
    assert [part.where(0), part.where(1)] == [source.where(3), source.where(5)]
    assert (part.name, part.classes, part.channels) == (source.name, source.classes, source.channels)
    again = pickle.loads(pickle.dumps(part))
    assert (levels(again), again.where(1)) == (levels(part), part.where(1))
    assert len(source.subset([])) == 0
    for wrong in ([6], [-1], [0.5], [True, False], [[0]]):
        with pytest.raises(IndexError):
            source.subset(wrong)


def test_a_large_folder_is_cheap_to_send_to_a_worker(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"set/{'ab'[k % 2]}/{k}.png")
    many = opened(tmp_path / "set").subset([0, 1, 2] * 10_000)
    assert len(pickle.dumps(many)) < 30_000 * 16


def test_split_is_stratified_disjoint_and_repeatable() -> None:
    source = opened("digits")
    train, held_out = split_source(source, 0.2, 7)
    assert source.labels is not None
    assert held_out.labels is not None
    counts = np.bincount(source.labels)
    assert np.bincount(held_out.labels).tolist() == [round(0.2 * count) for count in counts]
    places = [{part.where(index) for index in range(len(part))} for part in (source, train, held_out)]
    assert not places[1] & places[2]
    assert places[1] | places[2] == places[0]
    again, other = split_source(source, 0.2, 7)[1], split_source(source, 0.2, 8)[1]
    assert [again.where(i) for i in range(9)] == [held_out.where(i) for i in range(9)]
    assert [other.where(i) for i in range(9)] != [held_out.where(i) for i in range(9)]


def test_split_limits(tmp_path: Path) -> None:
    pack(tmp_path / "s.npz", [png(k) for k in range(5)], y=np.array([0, 0, 0, 1, 1]), classes=np.array(["ant", "bee"]))
    source = opened(tmp_path / "s.npz")
    for fraction in (0.01, 0.99):
        parts = split_source(source, fraction, 0)
        assert [sorted(set(part.labels.tolist())) for part in parts if part.labels is not None] == [[0, 1], [0, 1]]
    learn, judge = split_source(source.subset([0, 1, 3]), 0.5, 0)  # 'bee' has a single image
    assert [part.labels.tolist() for part in (learn, judge) if part.labels is not None] == [[0, 1], [0]]
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            split_source(source, fraction, 0)
    pack(tmp_path / "u.npz", [png(k) for k in range(10)])
    unlabelled = split_source(opened(tmp_path / "u.npz"), 0.3, 0)
    assert [len(part) for part in unlabelled] == [7, 3]
    assert sorted(levels(unlabelled[0]) + levels(unlabelled[1])) == list(range(10))
