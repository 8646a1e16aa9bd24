"""Paths that a run records hold in every folder."""

from pathlib import Path

import pytest

from matrix_ssl.data.sources import absolute, check_outside, open_source
from matrix_ssl.encoder.where import absolute as absolute_where
from matrix_ssl.encoder.where import is_folder, read_where
from matrix_ssl.errors import DataError


def test_paths_that_exist_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("photos", "cifar10"):
        (tmp_path / name).mkdir()
    whole = str(tmp_path / "photos")
    assert absolute("photos") == absolute("./photos") == absolute("~/photos") == absolute(whole) == whole
    assert absolute(("photos", "cifar10", "./cifar10")) == (whole, "cifar10", str(tmp_path / "cifar10"))
    assert absolute("hf:photos") == f"hf:{whole}"
    for name in ("digits", "absent", "hf:absent/name", "memory:array", ""):
        assert absolute(name) == name
    with pytest.raises(DataError, match="there is no such home folder"):
        open_source("~nobody-of-this-name/x", split="train", data_root=None)


def test_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    assert absolute_where("run") == absolute_where("~/run") == str(tmp_path / "run")
    for name in ("torchvision/resnet18", "random/resnet18", "absent.pth", "hf:a/b"):
        assert absolute_where(name) == name
    assert absolute_where("hf:./run") == f"hf:{tmp_path / 'run'}"
    assert read_where("~/run").path == read_where(Path("~/run")).path == tmp_path / "run"
    assert is_folder("~/run")
    assert not is_folder("torchvision/resnet18")


def test_an_output_inside_the_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for out, data in (("photos/r", "photos"), ("photos/cat/f.npz", ("photos", "digits")), ("photos", "link")):
        with pytest.raises(DataError, match=r"is inside the images' folder .*: choose another place for it"):
            check_outside(Path(out), data)
    for out, data in (("r", "photos"), ("photos2", "photos"), ("r", "digits"), ("r", "hf:a/b"), ("r", "absent")):
        check_outside(Path(out), data)


def test_an_output_inside_a_named_dataset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root/photos").mkdir(parents=True)
    with pytest.raises(DataError, match="is inside the images' folder"):
        check_outside(tmp_path / "root/photos/r", "photos", data_root=tmp_path / "root")
    monkeypatch.setenv("MATRIX_SSL_DATA", str(tmp_path / "root"))
    with pytest.raises(DataError, match="is inside the images' folder"):
        check_outside(tmp_path / "root/photos/r", "photos")
    check_outside(tmp_path / "root/r", "photos")
