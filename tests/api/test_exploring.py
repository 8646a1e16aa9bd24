"""The page of a folder of images, from the encoder to the file, and how it resumes."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import matrix_ssl
from matrix_ssl.api import exploring
from matrix_ssl.api.exploring import ExploreSettings
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, RunFolderError
from tests.support.runs import run

QUIET = {"device": "cpu", "quiet": True}
THREE = ExploreSettings(clusters=3, map="pca", thumbnail=16)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def data_of(page: Path) -> dict:
    (text,) = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(text)


def test_a_run_explores_its_own_images(tmp_path, monkeypatch):
    explored = exploring.explore("of_folder", out=tmp_path / "page", choices=THREE, **QUIET)
    assert explored.page == tmp_path / "page" / "index.html"
    assert files(tmp_path / "page") == {
        ".lock", "explore.json", "index.html", "map.npz", "sheets/0000.jpg",
    }  # fmt: skip
    data = data_of(explored.page)
    assert data["places"]["start"] + data["places"]["ends"][0] == str(Path("photos/a/00.png").resolve())
    names = [column["name"] for column in data["columns"]]
    assert names == ["label", "cluster", "confidence", "outlier score", "brightness", "sharpness"]
    assert data["columns"][0]["values"] == ["a", "b"] and data["columns"][1]["values"] == ["1", "2", "3"]
    assert (explored.page.parent / data["folder"] / "a/00.png").resolve() == Path("photos/a/00.png").resolve()
    assert dict(explored.contents.facts)["Images"] == "40"
    features = matrix_ssl.Run("of_folder").embed(**QUIET).features.astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T - 9 * np.eye(40)
    assert np.allclose(explored.contents.similarities[:, 0], cosines.max(axis=1), atol=1e-5)
    with Image.open(tmp_path / "page" / "sheets" / "0000.jpg") as sheet:
        assert sheet.size == (256, 48)

    before = explored.page.read_bytes()
    monkeypatch.setattr(exploring, "plane", None)  # the map is there already
    again = exploring.explore("of_folder", out=tmp_path / "page", choices=THREE, **QUIET)
    assert again.page.read_bytes() == before


def test_columns_that_are_absent_are_refused_before_the_work(tmp_path):
    with pytest.raises(DataError, match=r"--columns absent\.csv is not a file"):
        exploring.explore("of_folder", out=tmp_path / "page", choices=ExploreSettings(columns=("absent.csv",)), **QUIET)
    assert not (tmp_path / "page").exists()


def test_columns_and_a_map_by_other_choices(tmp_path):
    (tmp_path / "more.csv").write_text("file,night\na/00.png,yes\nb/01.png,no\n")
    choices = ExploreSettings(clusters=2, columns=(str(tmp_path / "more.csv"),), threshold=0.0, thumbnail=16, map="pca")
    explored = exploring.explore("of_folder", out=tmp_path / "page", choices=choices, **QUIET)
    assert explored.contents.columns[-1].name == "night"
    assert any("more.csv has a row for 2 of the 40 images." in note for note in explored.contents.notes)
    assert any("higher threshold" in doubt for doubt in explored.contents.doubts)


def test_features_of_a_file(tmp_path):
    embedding = matrix_ssl.Run("of_folder").embed(**QUIET)
    embedding.save(tmp_path / "features.npz")
    np.save(tmp_path / "bare.npy", embedding.features)
    other = exploring.explore("of_folder", out=tmp_path / "other", choices=THREE, **QUIET)
    for data, folder in ((None, "first"), ("photos", "second")):
        explored = exploring.explore(tmp_path / "features.npz", data, out=tmp_path / folder, choices=THREE, **QUIET)
        assert np.array_equal(explored.contents.neighbours, other.contents.neighbours)
        assert explored.contents.places == other.contents.places
    sheet = "sheets/0000.jpg"
    assert (tmp_path / "first" / sheet).read_bytes() == (tmp_path / "other" / sheet).read_bytes()
    shutil.copytree("photos", tmp_path / "fewer")
    (tmp_path / "fewer" / "b" / "01.png").unlink()
    with pytest.raises(DataError, match="is not among the images of 'fewer'"):
        exploring.explore(tmp_path / "features.npz", str(tmp_path / "fewer"), out=tmp_path / "third", **QUIET)
    with pytest.raises(DataError, match=re.escape("bare.npy[0] is not here: name the images")):
        exploring.explore(tmp_path / "bare.npy", out=tmp_path / "fourth", **QUIET)
    assert not (tmp_path / "third").exists() and not (tmp_path / "fourth").exists()


@pytest.mark.parametrize("lost", [False, True])
def test_images_that_were_moved_are_found_in_their_new_folder(tmp_path, monkeypatch, lost):
    old, new = tmp_path / "old" / "photos", tmp_path / "new" / "pictures"
    shutil.copytree("photos", old)
    if lost:  # all but one class is in a single folder of the features
        for path in (old / "b").iterdir():
            path.write_bytes(b"no image")
    where = Path("of_folder").resolve()
    monkeypatch.chdir(old.parent)
    matrix_ssl.Run(where).embed("photos", **QUIET).save(tmp_path / "f.npz")  # with relative places
    new.parent.mkdir()
    old.rename(new)
    with pytest.raises(DataError, match=r"photos/a/00\.png is not here: name the images of .* with --data"):
        exploring.explore(tmp_path / "f.npz", out=tmp_path / "page", choices=THREE, **QUIET)
    images = matrix_ssl.Collection(tmp_path / "f.npz", str(new), **QUIET)
    earlier = matrix_ssl.Collection(tmp_path / "f.npz", **QUIET).embedding.paths
    there = [str(new / path.removeprefix("photos/")) for path in earlier]
    assert [images.source().where(index) for index in range(len(images))] == images.embedding.paths == there
    listing = images.outliers(count=2)
    assert set(listing.paths) < set(there) and images.search(there[3], k=1).rows[0][0] == there[3]
    assert "data:image/jpeg" in listing.page(tmp_path / "x.html").read_text()
    explored = exploring.explore(tmp_path / "f.npz", str(new), out=tmp_path / "page", choices=THREE, **QUIET)
    assert explored.contents.places == there and explored.contents.files
    shutil.copy(new / "a" / "02.png", new / "a" / "00.png")  # not the same images any more
    with pytest.raises(DataError, match="is not among the images of 'pictures'"):
        matrix_ssl.Collection(tmp_path / "f.npz", str(new), **QUIET).source()


def test_images_without_labels_and_one_that_cannot_be_read(tmp_path):
    for index in range(7):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(sorted(Path("photos/a").iterdir())[index], tmp_path / "photos" / f"{index}.png")
    (tmp_path / "photos" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    explored = exploring.explore(
        "of_folder", str(tmp_path / "photos"), out=tmp_path / "page", choices=ExploreSettings(thumbnail=16), **QUIET
    )
    contents = explored.contents
    assert contents.labels is None and contents.issues is None and len(contents.places) == 6
    assert not any(place.endswith("/3.png") for place in contents.places)
    assert contents.notes[1].startswith("There are no labels") and contents.notes[2].endswith("cannot be read: 1.")
    with Image.open(tmp_path / "page" / "sheets" / "0000.jpg") as sheet:
        last = np.asarray(sheet).astype(int)[:16, 5 * 16 : 6 * 16]  # the sixth image is 6.png, not 5.png
    with Image.open(tmp_path / "photos" / "6.png") as image:
        expected = np.asarray(image.convert("RGB").resize((16, 16))).astype(int)
    assert abs(last.mean() - expected.mean()) < 4


def test_a_folder_whose_name_is_not_unicode(tmp_path):
    folder = tmp_path / "photos\udce9 100%"
    shutil.copytree("photos", folder)
    explored = exploring.explore("of_folder", str(folder), out=tmp_path / "page", choices=THREE, **QUIET)
    data = data_of(explored.page)
    assert data["places"]["start"] + data["places"]["ends"][0] == f"{folder}/a/00.png"
    assert (explored.page.parent / unquote(data["folder"], errors="surrogateescape")).resolve() == folder.resolve()


def test_what_the_folder_is_for_does_not_change(tmp_path):
    exploring.explore("of_folder", out=tmp_path / "page", choices=THREE, **QUIET)
    exploring.explore("of_folder", "photos", out=tmp_path / "page", choices=THREE, **QUIET)  # the same by another path
    with pytest.raises(RunFolderError, match=r"page is the page of other features, .* or remove this one\."):
        exploring.explore("random/tiny_resnet", "photos", out=tmp_path / "page", choices=THREE, **QUIET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(RunFolderError, match="is not empty"):
        exploring.explore("of_folder", out=tmp_path / "full", choices=THREE, **QUIET)
    assert files(tmp_path / "full") == {"mine.txt"}
    with pytest.raises(DataError, match="inside the images' folder"):
        exploring.explore("of_folder", out=Path("photos/page"), choices=THREE, **QUIET)
    with pytest.raises(ConfigError, match="clusters=41: expected 1 to 40 clusters"):
        exploring.explore("of_folder", out=tmp_path / "many", choices=ExploreSettings(clusters=41), **QUIET)
    with pytest.raises(ConfigError, match="threshold"):
        ExploreSettings(threshold=2.0)


def test_a_stop_loses_nothing_and_leaves_no_half_file(tmp_path, monkeypatch):
    written = exploring.write_page

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exploring, "write_page", stopped)
    with pytest.raises(KeyboardInterrupt):
        exploring.explore("of_folder", out=tmp_path / "page", choices=THREE, **QUIET)
    kept = files(tmp_path / "page")
    assert "index.html" not in kept and "map.npz" in kept and not any(".tmp" in name for name in kept)
    monkeypatch.setattr(exploring, "write_page", written)
    monkeypatch.setattr(exploring, "evaluation_batches", None)  # the thumbnails are there already
    assert exploring.explore("of_folder", out=tmp_path / "page", choices=THREE, **QUIET).page.is_file()


def test_the_method_of_a_run_and_the_command(tmp_path):
    chosen = {"clusters": 3, "map": "pca", "thumbnail": 16}
    page = matrix_ssl.Run("of_folder").explore(out=tmp_path / "a", settings=chosen, **QUIET)
    assert matrix_ssl.Collection("of_folder", **QUIET).explore(tmp_path / "a", settings=chosen) == page
    options = ["--clusters", "3", "--map", "pca", "--thumbnail", "16", "--device", "cpu"]
    ended = run(Path.cwd(), ["explore", "of_folder", "--out", str(tmp_path / "b"), *options])
    assert ended.code == 0, ended.err
    assert ended.out == f"page    {tmp_path / 'b' / 'index.html'}\n"
    assert "The map is the first two principal components of the features." in ended.err
    assert data_of(tmp_path / "b" / "index.html") == data_of(page)
    with pytest.raises(MatrixSSLError, match="Unknown setting 'cluster'"):
        matrix_ssl.Run("of_folder").explore(out=tmp_path / "c", settings={"cluster": 3}, **QUIET)
