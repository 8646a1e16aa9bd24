"""The experiment on other kinds of images, without the packages that ship them."""

import numpy as np
import pytest

from benchmarks.experiments import kinds


def test_tiles_are_of_the_middle_and_in_order(tmp_path):
    image = np.random.default_rng(0).integers(0, 4096, (100, 600, 4), dtype=np.uint16)
    assert kinds.cut(image, tmp_path) == (3, 16)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 48
    tiles = np.stack([np.load(path) for path in files]).reshape(3, 16, 32, 32, 4)
    whole = tiles.transpose(0, 2, 1, 3, 4).reshape(96, 512, 4)
    assert np.array_equal(whole, image[2:98, 44:556])


@pytest.mark.parametrize(("down", "across"), [(3, 5), (2, 2), (6, 4)])
def test_chance_is_that_of_all_pairs(down, across):
    places = [(row, column) for row in range(down) for column in range(across)]
    near = [max(abs(a - c), abs(b - d)) == 1 for a, b in places for c, d in places if (a, b) != (c, d)]
    assert kinds.by_chance(down, across) == pytest.approx(np.mean(near))


def test_a_tile_whose_nearest_is_around_it_counts():
    row, column = np.divmod(np.arange(30), 5)
    angles = np.stack([row / 10, column / 10], axis=1)
    smooth = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)  # near places have a high similarity
    assert kinds.adjacent(smooth, 6, 5) == 1.0
    far = np.eye(15)[np.arange(30) % 15]  # the equal one is three rows below
    assert kinds.adjacent(far, 6, 5) == 0.0


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="scikit-image is not installed: pip install --no-deps scikit-image"):
        kinds.locate(kinds.SAMPLES["retina"])


def test_tiles_of_a_dicom_file_are_dicom_files_of_the_same_numbers(tmp_path):
    files = kinds.locate(kinds.SAMPLES["abdomen"])
    image, _ = kinds.read_bands(files)
    assert (image.shape, image.dtype, image.max()) == ((300, 484, 1), np.uint16, 1123)
    assert kinds.cut(image[:64, :96], tmp_path, header=files[0].read_bytes()) == (2, 3)
    tile, _ = kinds.read_bands([tmp_path / "01-02.dcm"])
    assert np.array_equal(tile, image[32:64, 64:96])
