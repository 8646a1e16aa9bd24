"""Features of folders that the service keeps: what later processes read, and what they answer."""

import json
from pathlib import Path

import numpy as np
import pytest

from matrix_ssl.api.serve import open_index, open_served
from matrix_ssl.errors import DataError, RunFolderError
from tests.support import runs
from tests.support.served import encoded, pixels, write_onnx

# the images that a process opens; any library's opening is an event
NOTED = """
import sys
sys.addaudithook(lambda event, about: event == "open" and str(about[0]).endswith(".png")
                 and print("opened", about[0], file=sys.stderr, flush=True))
"""
ENCODERS = ["m.onnx", "random/tiny_resnet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(5):
        write(tmp_path / "photos" / f"{number}.png", number)
    write_onnx(tmp_path / "m.onnx")
    return tmp_path


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded(pixels(seed)))


def make_run(folder: Path, name: str, size: int) -> None:
    runs.succeed(folder, ["import", "random/tiny_resnet", "--image-size", str(size), "--out", name])


def started(folder: Path, where: str, *data: str, cache: str = "cache") -> tuple[list[str], runs.Ended, int]:
    """The names of the images that a process opens, how it ends, and the size of the index."""
    words = ["serve", where, *(word for one in data or ("photos",) for word in ("--data", one)), "--check"]
    ended = runs.run(folder, words, before=NOTED, environment={"MATRIX_SSL_CACHE": str(folder / cache)})
    assert ended.code == 0, ended
    opened = [line.rpartition("/")[2] for line in ended.err.splitlines() if line.startswith("opened ")]
    return sorted(opened), ended, json.loads(ended.out)["index"]["images"]


def opened(folder: Path, where: str, *data: str) -> list[str]:
    """The names of the images that a process opens."""
    return started(folder, where, *data)[0]


@pytest.mark.parametrize("where", ENCODERS)
def test_a_second_start_reads_only_new_and_changed_images(folder: Path, where: str) -> None:
    assert opened(folder, where) == [f"{number}.png" for number in range(5)]
    assert opened(folder, where) == []
    write(folder / "photos" / "2.png", 20)
    write(folder / "photos" / "10.png", 10)  # between 1 and 2
    (folder / "photos" / "0.png").unlink()
    (folder / "photos" / "bad.png").write_bytes(b"no image")
    read, ended, size = started(folder, where)
    assert (read, size) == (["10.png", "2.png", "bad.png"], 5)
    assert "3 of 6 images are new or have changed; the features of the others are kept." in ended.err
    read, ended, size = started(folder, where)
    assert (read, size) == (["bad.png"], 5)  # which is tried again
    assert "Skipped photos/bad.png: " in ended.err


@pytest.mark.parametrize("where", ENCODERS)
def test_the_index_is_that_of_features_computed_anew(folder: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_SSL_CACHE", str(folder / "cache"))
    where = str(folder / where) if where == "m.onnx" else where
    encoder = open_served(where, device="cpu")
    open_index(encoder, data=str(folder / "photos"), quiet=True)
    write(folder / "photos" / "2.png", 20)
    for number in range(10, 50):  # more than one batch
        write(folder / "photos" / f"{number}.png", number)
    (folder / "photos" / "0.png").unlink()
    (folder / "photos" / "1.png").write_bytes(b"no image")
    (folder / "photos" / "100.png").write_bytes(b"no image")
    for _ in range(2):
        index = open_index(encoder, data=str(folder / "photos"), quiet=True)
        names = sorted([*map(str, range(2, 5)), *map(str, range(10, 50))])
        assert [Path(path).stem for path in index.paths] == names
        for path, unit in zip(index.paths, index.units, strict=True):
            (one,) = encoder.features(encoder.square(Path(path).read_bytes(), path)[None])
            np.testing.assert_allclose(unit, one / np.linalg.norm(one), atol=1e-5)


def test_another_encoder_or_way_of_reading_reads_all_images(folder: Path) -> None:
    everything = [f"{number}.png" for number in range(5)]
    make_run(folder, "r", 16)
    for where in ("m.onnx", "r"):
        assert opened(folder, where) == everything
    write_onnx(folder / "m.onnx", crop_fraction=0.5)
    make_run(folder, "s", 24)
    for where in ("m.onnx", "s"):
        assert opened(folder, where) == everything
        assert opened(folder, where) == []
    write_onnx(folder / "m.onnx")
    assert opened(folder, "m.onnx") == opened(folder, "r") == []  # what has been computed before is still there


def test_several_folders_are_kept_together(folder: Path) -> None:
    write(folder / "more" / "a.png", 7)
    write(folder / "more" / "b.png", 8)
    assert len(opened(folder, "m.onnx", "photos", "more")) == 7
    write(folder / "more" / "c.png", 9)
    assert opened(folder, "m.onnx", "photos", str(folder / "more")) == ["c.png"]  # however the folder is written


def test_without_a_cache_all_images_are_read_and_a_warning_says_so(folder: Path) -> None:
    (folder / "file").write_text("no folder")
    for _ in range(2):
        read, ended, size = started(folder, "m.onnx", cache="file")
        assert (len(read), size) == (5, 5)
        assert "Warning: Cannot write " in ended.err
        assert (
            "The features of photos are computed now, but not kept for the next start; the variable MATRIX_SSL_CACHE "
            "names another folder for them." in ended.err
        )


def test_a_full_cache_is_told(folder: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_SSL_CACHE", str(small_disk))
    encoder = open_served(folder / "m.onnx")
    for number in range(400):
        write(folder / "photos" / f"{number}.png", number)
    (small_disk / "filler").write_bytes(b"0" * (2**20 - 2**14))
    with pytest.raises(RunFolderError, match=r"free space there .* the variable MATRIX_SSL_CACHE names another folder"):
        open_index(encoder, data=str(folder / "photos"), quiet=True)


def test_a_killed_start_is_resumed(folder: Path) -> None:
    for number in range(5, 80):
        write(folder / "photos" / f"{number}.png", number)
    killed = (
        "import os, signal\nimport matrix_ssl.evaluate.feature_files as f\nf._SECONDS_BETWEEN_SAVES = 0.0\n"
        "add = f.FeatureFiles.add\n"
        "f.FeatureFiles.add = lambda self, *a: os.kill(os.getpid(), 9) if self.seen >= 64 else add(self, *a)\n"
    )
    words = ["serve", "m.onnx", "--data", "photos", "--check"]
    assert runs.run(folder, words, before=killed, environment={"MATRIX_SSL_CACHE": str(folder / "cache")}).code == -9
    read, ended, size = started(folder, "m.onnx")
    assert (len(read), size) == (16, 80)
    assert "Resuming after 64 of 80 images." in ended.err


def test_no_image_is_told(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_bytes(b"no image")
    encoder = open_served(folder / "m.onnx")
    for name in ("empty", "bad", "bad"):
        with pytest.raises(DataError, match=f"{name}: there is no image that can be read"):
            open_index(encoder, data=str(folder / name), quiet=True)
