"""What a folder is taken for, and that the user is told: splits, classes, and what is left out."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from matrix_ssl.data import open_source, split_source
from matrix_ssl.data.base import Source
from matrix_ssl.errors import DataError


def write(*names: str, root: Path) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def images(*names: str) -> Path:
        write(*names, root=tmp_path / "set")
        return tmp_path / "set"

    return images


def opened(folder: Path, split: str = "train") -> Source:
    return open_source(str(folder), split=split, data_root=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["Testing", "eval", "evaluation", "DEV", "validation"])
def test_usual_names_of_splits_in_any_case(make: Callable[..., Path], train: str, test: str) -> None:
    folder = make(f"{train}/a/1.png", f"{train}/b/1.png", f"{test}/b/1.png", "extra/a/1.png", "preview.jpg")
    source, judged = opened(folder), opened(folder, "test")
    assert (source.classes, judged.classes) == (["a", "b"], ["a", "b"])
    assert judged.labels is not None
    assert judged.labels.tolist() == [1]
    assert source.remarks == (
        f"{folder}: training images from {train}, test images from {test}; not used: extra, preview.jpg.",
        f"Classes of {folder / train}: 2 folders (a, b).",
    )
    assert judged.remarks == ()


def test_split_names_that_are_classes_are_a_warning(make: Callable[..., Path]) -> None:
    folder = make("test/1.png", "val/1.png")
    assert opened(folder).classes == ["test", "val"]
    assert "beside test, val there is no training folder" in opened(folder).remarks[0]
    write("train/1.png", "dog/1.png", root=folder / "inner")
    assert "beside train there are no test folders" in opened(folder / "inner").remarks[0]


def test_folds_are_not_classes(make: Callable[..., Path]) -> None:
    folder = make(*(f"fold{k}/{split}/{c}/1.png" for k in (1, 2) for split in ("train", "test") for c in "ab"))
    with pytest.raises(DataError, match=r"each of its 2 folders \(fold1, fold2\) has .*name one of them, such as"):
        opened(folder)
    assert opened(folder / "fold2").classes == ["a", "b"]


def test_thumbnails_and_system_folders_are_no_images(make: Callable[..., Path]) -> None:
    folder = make(
        "cat/1.png", "dog/2.png", "cat/@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg", "__MACOSX/cat/._1.png", "cat/._1.png",
        "dog/.thumbnails/2.png", "#recycle/3.png", ".cache/4.png",
    )  # fmt: skip
    (folder / "cat/Thumbs.db").write_bytes(b"x")
    os.mkfifo(folder / "cat/2.png")
    source = opened(folder)
    assert (len(source), source.classes) == (2, ["cat", "dog"])
    assert source.remarks[0] == (
        f"Left out of {folder}: 5 thumbnails or copies of the system (#recycle, .thumbnails, @eaDir, __MACOSX, "
        "hidden files); 1 pipes, sockets or devices."
    )


def test_other_extensions_are_counted_with_a_remedy(make: Callable[..., Path]) -> None:
    folder = make("1.png", "2.jfif")
    for name in ("3.JXL", "4.jp2", "5.CR2", "6.zip", "notes.txt"):
        (folder / name).write_text("x")
    source = opened(folder)
    assert len(source) == 2
    assert source.read(1).shape == (3, 4, 4)
    assert source.remarks == (
        f"Left out of {folder}: 5 of 7 files, by their extensions: .jxl (1), .jp2 (1), .cr2 (1), .zip (1), "
        ".txt (1). Convert these images to JPEG or PNG. Develop raw images into TIFF or JPEG. Unpack archives.",
    )
    (folder / "1.png").unlink()
    (folder / "2.jfif").unlink()
    with pytest.raises(
        DataError, match=r"no image among 5 files .*\.jxl \(1\).* Convert these images to JPEG or PNG\."
    ):
        opened(folder)


def test_the_file_that_makes_a_folder_unlabelled_is_named(make: Callable[..., Path]) -> None:
    source = opened(make("cat/1.png", "dog/1.png", "preview.jpg"))
    assert source.labels is None
    assert source.remarks[0].endswith(
        "1 of 3 images is beside the class folders and not in one of them ('preview.jpg'): move or remove it, or name "
        "a .csv table with the labels."
    )
    with pytest.raises(DataError, match=r"has no labels: 1 of 3 images .*'preview.jpg'"):
        source.labelled()


def test_one_folder_of_images_is_no_class(make: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="has no labels: all images are in the folder 'only'"):
        opened(make("only/1.png")).labelled()


def test_a_folder_around_the_dataset_as_after_unpacking_is_named(make: Callable[..., Path]) -> None:
    folder = make("photos/cat/1.png", "photos/dog/1.png")
    with pytest.raises(DataError, match=rf"a folder of its own, or name {folder}/photos, which has 2\."):
        opened(folder).labelled()
    assert opened(folder / "photos").classes == ["cat", "dog"]


def test_splits_inside_the_only_folder_are_not_training_images(make: Callable[..., Path]) -> None:
    folder = make("photos/train/cat/1.png", "photos/train/dog/1.png", "photos/test/cat/1.png", "photos/test/dog/1.png")
    with pytest.raises(DataError, match=rf"its only folder has a training and a test split: name {folder}/photos\."):
        opened(folder)
    assert len(opened(folder / "photos")) == 2


def test_other_npz_files_beside_images_are_not_packed_files(make: Callable[..., Path]) -> None:
    import numpy as np

    folder = make("cat/1.png", "dog/1.png")
    np.savez(folder / "features.npz", features=np.zeros((2, 3)))
    assert opened(folder).classes == ["cat", "dog"]
    assert ".npz (1)" in opened(folder).remarks[0]
    content = (folder / "cat/1.png").read_bytes()
    np.savez(folder / "packed.npz", jpeg=np.frombuffer(content, np.uint8), offs=np.array([0, len(content)]))
    (folder / "features.npz").unlink()
    assert len(opened(folder)) == 1
    assert opened(folder).remarks == (f"{folder} has packed files, so its image files are not used.",)


def test_a_class_of_one_image_is_kept_for_training(make: Callable[..., Path]) -> None:
    source = opened(make(*(f"{label}/{k}.png" for label, n in (("a", 5), ("b", 5), ("rare", 1)) for k in range(n))))
    learn, judge = split_source(source, 0.2, 0)
    assert learn.labels is not None
    assert judge.labels is not None
    assert (learn.labels.tolist().count(2), judge.labels.tolist()) == (1, [0, 1])
    assert judge.remarks[-1] == "1 class has a single image, which is used for training and not judged: 'rare'."
    assert learn.remarks == source.remarks
    with pytest.raises(DataError, match="every class has a single image, so none can be held out"):
        split_source(source.subset([0, 5, 10]), 0.2, 0)
