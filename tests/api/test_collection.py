"""Images with their features, in Python and by the commands: answers, files, pages, caches and mistakes."""

import csv
import re
import shutil
import sys
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import matrix_ssl
from matrix_ssl.api import collection, evaluation, questions
from matrix_ssl.api.collection import too_alike, too_many_issues
from matrix_ssl.api.gathered import is_features
from matrix_ssl.api.questions import Places
from matrix_ssl.cli.main import commands
from matrix_ssl.config.system import with_slashes
from matrix_ssl.data import open_source
from matrix_ssl.errors import ConfigError, DataError, MatrixSSLError, MissingExtra, RunFolderError
from matrix_ssl.evaluate.explore.clusters import cluster
from matrix_ssl.evaluate.explore.neighbours import Neighbours, nearest
from matrix_ssl.evaluate.explore.selection import select
from matrix_ssl.report.explore.columns import read_columns
from matrix_ssl.report.listing import Listing
from matrix_ssl.runs.files import features_cache
from tests.api.conftest import PIXELS

QUIET: dict[str, Any] = {"device": "cpu", "quiet": True}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MATRIX_SSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def images() -> matrix_ssl.Collection:
    return matrix_ssl.Collection("of_folder", **QUIET)


def command(*words: str) -> Result:
    result = CliRunner().invoke(commands, list(words))
    if result.exception is not None:
        raise result.exception
    return result


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_search_by_images_of_the_dataset_and_by_others(images: matrix_ssl.Collection, tmp_path: Path) -> None:
    embedding = images.embedding
    shutil.copy(embedding.paths[5], tmp_path / "query.png")
    expected = nearest(embedding.features, k=4)
    for query in (embedding.paths[5], "photos/" + "/".join(embedding.paths[5].split("/")[-2:]), 5, "5"):
        listing = images.search(query, k=4)
        assert listing.paths == [embedding.paths[i] for i in expected.indices[5]]
        np.testing.assert_allclose(listing.column("similarity"), expected.similarities[5], atol=1e-6)
        assert listing.column("rank") == [1, 2, 3, 4] and listing.column("query") == [embedding.paths[5]] * 4
    other = images.search(tmp_path / "query.png", k=5)
    assert other.paths == [embedding.paths[5], *listing.paths] and other.column("similarity")[0] == pytest.approx(1)
    several = images.search([str(tmp_path), 7], k=2)
    assert several.column("query") == [str(tmp_path / "query.png")] * 2 + [embedding.paths[7]] * 2


def test_search_by_images_in_memory(images: matrix_ssl.Collection, tmp_path: Path) -> None:
    paths = images.embedding.paths
    expected = images.search([shutil.copy(paths[i], tmp_path / f"{i}.png") for i in (5, 6)], k=3)
    pictures = [Image.open(paths[i]).convert("RGB") for i in (5, 6)]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    for queries in (pictures, arrays, torch.from_numpy(arrays).permute(0, 3, 1, 2)):
        found = images.search(queries, k=3)
        assert found.paths == expected.paths and found.column("query") == ["image 0"] * 3 + ["image 1"] * 3
        np.testing.assert_allclose(found.column("similarity"), expected.column("similarity"), atol=2e-3)
    alone = images.search(arrays[1], k=3)
    assert alone.paths == expected.paths[3:] and alone.paths[0] == paths[6]
    assert images.search([pictures[0], 7], k=2).column("query") == ["image 0"] * 2 + [paths[7]] * 2
    assert images.search(np.array([7]), k=2).column("query") == [paths[7]] * 2
    alone.page(tmp_path / "page.html")
    assert "image 0" in (tmp_path / "page.html").read_text()
    with pytest.raises(
        ConfigError, match="A query of type dict: name an image, a folder or the number of an image, or"
    ):
        images.search([{}])  # type: ignore[list-item]


def test_an_approximate_search_states_its_recall(images: matrix_ssl.Collection) -> None:
    pytest.importorskip("faiss")
    listing = images.search([2, 5], k=3, approximate=True)
    assert listing.rows == images.search([2, 5], k=3).rows
    assert listing.sentences[1] == "The search was approximate: it finds 100.0 % of the neighbours of 40 images."


@pytest.mark.parametrize("k", [1, 3, 39])
def test_the_recall_of_an_approximate_search_is_of_other_images(
    images: matrix_ssl.Collection, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    """With an index that finds every image itself and one of its neighbours."""
    pytest.importorskip("faiss")
    features = images.embedding.features

    class Weak:
        def __init__(self, _: np.ndarray):
            pass

        def nearest(self, queries: np.ndarray, *, k: int) -> Neighbours:
            exact = nearest(features, queries, k=k)
            exact.indices[:, 2:] = -1
            return exact

    monkeypatch.setattr(collection, "ApproximateIndex", Weak)
    (_, note) = images.search(0, k=k, approximate=True).sentences
    assert f"it finds {100 / k:.1f} % of the neighbours of 40 images" in note


def test_an_approximate_search_names_its_extra(images: matrix_ssl.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r"The package 'faiss' is not installed: .*\[search\]"):
        images.search(2, approximate=True)


def test_every_answer_names_images_of_the_dataset(images: matrix_ssl.Collection) -> None:
    paths = set(images.embedding.paths)
    for listing in (images.duplicates(threshold=0.5), images.outliers(count=7), images.clusters(count=3),
                    images.clusters(), images.label_issues(), images.select(4)):  # fmt: skip
        assert isinstance(listing, Listing) and set(listing.paths) <= paths
        assert set(listing.column("label")) <= {"a", "b"} and listing.title in repr(listing)
    assert sorted(images.clusters(count=3).paths) == sorted(paths)
    assert len(images.outliers(count=7)) == 7 and len(images.outliers(count=900)) == 40
    distances = images.outliers(count=40).column("distance")
    assert distances == sorted(distances, reverse=True)


def test_selection_beside_labelled_images(images: matrix_ssl.Collection, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/00.png\n05.png\n")
    places = images.embedding.paths
    start = [i for i, path in enumerate(places) if path.endswith(("a/00.png", "b/05.png"))]
    for rule in ("k-centre", "facility-location", "log-determinant"):
        chosen = images.select(6, rule=rule, labelled=tmp_path / "list.txt").paths
        expected = select(images.embedding.features, count=6, rule=rule, start=start).indices
        assert chosen == [places[i] for i in expected]
        assert chosen == images.select(6, rule=rule, labelled=["a/00.png", "05.png"]).paths
    with pytest.raises(DataError, match=r"1 of its 1 names match no image of 'of_folder' \('99.png'\)"):
        images.select(3, labelled=["99.png"])


def test_tables_in_any_folder_are_data_again(tmp_path: Path) -> None:
    relative = matrix_ssl.Collection("of_folder", "photos", **QUIET)  # whose paths are relative to the current folder
    chosen = relative.select(3)
    for folder in (Path(), Path("tables"), tmp_path):
        folder.mkdir(exist_ok=True)
        chosen.save(folder / "chosen.csv")
        relative.embedding.save(folder / "features.csv")
        for file, places in (("chosen.csv", chosen.paths), ("features.csv", relative.embedding.paths)):
            source = open_source(str(folder / file), split="train", data_root=None)
            assert [Path(source.where(i)).resolve() for i in range(len(source))] == [Path(p).resolve() for p in places]
        _, sentence = read_columns(folder / "chosen.csv", relative.embedding.paths)
        assert sentence == f"chosen.csv has a row for 3 of the {len(relative)} images."


def test_an_answer_is_the_list_of_labelled_images_of_the_next_selection(tmp_path: Path) -> None:
    whole = matrix_ssl.Collection("of_folder", **QUIET)
    relative = matrix_ssl.Collection("of_folder", "photos", **QUIET)
    first = whole.select(3)
    first.save(tmp_path / "first.csv")
    expected = whole.select(4, labelled=first.paths).paths
    for images in (whole, relative):  # whose paths are from the root, and relative to this folder
        listing = images.select(4, labelled=tmp_path / "first.csv")
        assert [str(Path(path).absolute()) for path in listing.paths] == expected
        assert images.select(4, labelled=first.paths).rows == listing.rows
    command("select", "of_folder", "--count", "4", "--labelled", str(tmp_path / "first.csv"), "--out", "next.csv")
    assert [row["path"] for row in rows(Path("next.csv"))] == expected
    (tmp_path / "names.csv").write_text("a/00.png\nb/05.png\n")
    assert whole.select(4, labelled=tmp_path / "names.csv").rows == (
        whole.select(4, labelled=["a/00.png", "b/05.png"]).rows
    )


def test_a_query_may_be_the_end_of_one_path(images: matrix_ssl.Collection) -> None:
    path = images.embedding.paths[5]
    for query in ("/".join(path.split("/")[-2:]), path.split("/")[-1]):
        assert images.search(query, k=4).paths == images.search(path, k=4).paths
    places = Places(["x/a/1.png", "x/b/1.png", "x/b/11.png"])
    assert places.row("b/1.png") == 1 and places.row("11.png") == 2
    with pytest.raises(DataError, match=r"'1\.png' names 2 images, such as .*: write more of the path"):
        places.row("1.png")


@pytest.mark.parametrize("query", [r"b\1.png", "b/1.png", r"C:\x\b\1.png", "C:/x/b/1.png"])
def test_a_query_on_windows_has_either_separator(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [r"C:\x\a\1.png", r"C:\x\b\1.png", r"C:\x\b\11.png"]
    assert [PureWindowsPath(place).match(query) for place in places] == [False, True, False]
    monkeypatch.setattr(questions, "with_slashes", partial(with_slashes, separator="\\"))
    assert Places(places).row(query) == 1


def test_what_was_taken_for_classes_is_said_where_images_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    for is_said in (True, False):
        matrix_ssl.Collection("of_folder", device="cpu")
        assert ("photos: 2 folders (a, b)." in capsys.readouterr().err) == is_said


def test_features_are_computed_once(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read, batches = [], evaluation.features.evaluation_batches

    def counted(source: Any, *arguments: Any, **options: Any) -> Any:
        read.append(len(source))
        return batches(source, *arguments, **options)

    monkeypatch.setattr(evaluation.features, "evaluation_batches", counted)
    first = matrix_ssl.Collection("of_folder", **QUIET)
    assert read == [40] and len(list(cache.iterdir())) == 1
    second = matrix_ssl.Collection("of_folder", **QUIET)
    assert read == [40] and np.array_equal(first.embedding.features, second.embedding.features)
    assert first.embedding.paths == second.embedding.paths
    kept = tmp_path / "kept.parquet"
    pytest.importorskip("pyarrow")
    for _ in range(2):
        third = matrix_ssl.Collection("of_folder", features=kept, **QUIET)
        assert np.array_equal(third.embedding.features, first.embedding.features) and kept.exists()
    assert read == [40]
    Image.fromarray(PIXELS[0, :8]).save(Path("photos/a/00.png"))
    try:
        assert not np.array_equal(matrix_ssl.Collection("of_folder", **QUIET).embedding.features[0],
                                  first.embedding.features[0])  # fmt: skip
        assert read == [40, 1]  # the one that has changed
        with pytest.raises(DataError, match=r"kept.parquet holds features of other images than 'photos'"):
            matrix_ssl.Collection("of_folder", features=kept, **QUIET)
    finally:
        Image.fromarray(PIXELS[0]).save(Path("photos/a/00.png"))
    with pytest.raises(DataError, match="holds features of a different encoder than of_array"):
        matrix_ssl.Collection("of_array", "photos", features=kept, **QUIET)


def test_a_file_of_features_answers_alone(tmp_path: Path) -> None:
    matrix_ssl.open("of_folder").embed(quiet=True).save(tmp_path / "f.safetensors")
    images = matrix_ssl.Collection("of_folder", **QUIET)
    from_file = matrix_ssl.Collection(tmp_path / "f.safetensors")
    assert from_file.outliers().rows == images.outliers().rows
    shutil.copy(images.embedding.paths[3], tmp_path / "q.png")
    assert from_file.search(tmp_path / "q.png", k=3).rows == images.search(tmp_path / "q.png", k=3).rows
    assert "data:image/jpeg" in from_file.outliers(count=2).page(tmp_path / "page.html").read_text()
    np.save(tmp_path / "plain.npy", images.embedding.features)
    plain = matrix_ssl.Collection(tmp_path / "plain.npy")
    assert plain.search(3, k=2).paths == [f"plain.npy[{i}]" for i in nearest(images.embedding.features, k=2).indices[3]]
    with pytest.raises(DataError, match="does not say which encoder its features are of"):
        plain.search(tmp_path / "q.png")
    with pytest.raises(DataError, match="is not here, so the page cannot show it"):
        plain.outliers().page(tmp_path / "page.html")
    with pytest.raises(DataError, match="the images have no labels"):
        plain.label_issues()
    matrix_ssl.open("of_folder").embed(quiet=True, tta=True).save(tmp_path / "tta.npz")
    with pytest.raises(DataError, match="a different encoder or block"):
        matrix_ssl.Collection(tmp_path / "tta.npz").search(tmp_path / "q.png")


def test_a_cache_that_cannot_be_written_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, message in (("/dev/null/x", "Cannot write /dev/null/x/features/"), ("~nobody-here", "")):
        monkeypatch.setenv("MATRIX_SSL_CACHE", place)
        assert features_cache() == Path(place) / "features"
        if message:
            with pytest.raises(RunFolderError, match=rf"{message}.*the variable MATRIX_SSL_CACHE names another folder"):
                matrix_ssl.Collection("of_folder", **QUIET)


def test_data_of_a_program_leave_no_cache(cache: Path) -> None:
    images = matrix_ssl.Collection("of_array", PIXELS, **QUIET)
    assert images.search(4, k=1).paths[0].startswith("array[") and not cache.exists()
    assert images.thumbnail("array[4]").startswith(b"\xff\xd8")


def test_commands_write_tables_and_pages(tmp_path: Path) -> None:
    out, page, kept = tmp_path / "x.csv", tmp_path / "x.html", tmp_path / "f.npz"
    written = ["--out", str(out), "--page", str(page), "--features", str(kept), "--device", "cpu"]
    for words, columns, text in (
        (["search", "--query", "photos/a/00.png", "-k", "3"], ["query", "rank", "similarity", "path", "label"],
         "The 3 nearest of 40 images for 1 query."),
        (["duplicates", "--threshold", "0.9"], ["group", "similarity", "path", "label"], "Groups of near-duplicates"),
        (["outliers", "--count", "5"], ["rank", "distance", "path", "label"], "The 5 oddest of 40 images"),
        (["cluster", "--count", "4"], ["cluster", "representative", "path", "label"], "Clusters of"),
        (["mislabels"], ["rank", "suggested", "probability", "path", "label"], "label is wrong"),
        (["select", "--count", "5"], ["rank", "gain", "path", "label"], "5 of 40 images by log-determinant"),
    ):  # fmt: skip
        result = command(words[0], "of_folder", *words[1:], *written)
        assert text in result.stdout and f"page    {page}" in result.stdout
        with out.open(newline="") as file:
            assert next(csv.reader(file)) == columns
        html = page.read_text()
        table = rows(out)
        assert html.count('src="data:image/jpeg;base64,') == html.count("<li>") <= len(table)
        assert words[0] == "mislabels" or table
        assert re.findall(r'(?:src|href)="(?!data:|#)[^"]', html) == []


def test_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "odd"
    folder.mkdir()
    for index, name in enumerate(("<img src=x onerror=alert(1)>", "=1+1\r", "\x1b[31mred", "a,b\n\"c'")):
        Image.fromarray(PIXELS[index]).save(folder / f"{name.replace('/', '')}.png")
    words = ["outliers", "random/tiny_resnet", "--data", "odd", "--out", "x.csv", "--page", "x.html", "--device", "cpu"]
    result = command(*words)
    assert "\x1b" not in result.stdout and "\\x1b[31mred.png" in result.stdout
    html = Path("x.html").read_text()
    assert "<img src=x" not in html and "&lt;img src=x onerror" in html and "\x1b" not in html
    assert {row["path"] for row in rows(Path("x.csv"))} == {f"odd/{path.name}" for path in folder.iterdir()}


def test_a_file_of_features_is_not_written_over_and_notices_new_images(tmp_path: Path) -> None:
    shutil.copytree("photos", tmp_path / "photos")
    file = tmp_path / "f.csv"
    matrix_ssl.open("of_folder").embed(str(tmp_path / "photos"), quiet=True).save(file)
    before = file.read_bytes()
    with pytest.raises(RunFolderError, match=r"f\.csv is read by this command"):
        command("outliers", str(file), "--out", str(file))
    for out in (tmp_path / "photos" / "x.csv", tmp_path / "photos" / "a" / "x.csv"):
        with pytest.raises(DataError, match="is inside the images' folder"):
            command("outliers", str(file), "--out", str(out))
        assert not out.exists()
    assert file.read_bytes() == before
    images = matrix_ssl.Collection(file, quiet=True)
    assert len(images.source()) == 40
    shutil.copy(images.embedding.paths[1], images.embedding.paths[0])
    with pytest.raises(DataError, match=r"00\.png has changed since .*f\.csv was written"):
        images.source()


def test_features_of_no_length_are_one_cluster() -> None:
    rows = np.random.default_rng(0).random((20, 8)).astype(np.float32) * np.float32(1e-42)
    assert len(np.unique(rows, axis=0)) > 3 and len(cluster(rows).representatives) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["search", "of_folder", "--query", "absent.jpg"],
            "--query 'absent.jpg' is neither a file or folder nor the path",
        ),
        (["search", "of_folder", "--query", "40"], "--query 40: the images have the numbers 0 to 39."),
        (
            ["search", "of_folder", "--query", "0", "-k", "40"],
            "k=40: expected 1 to 39 images, as many as there are beside",
        ),
        (["duplicates", "of_folder", "--threshold", "2"], "threshold=2.0: expected a cosine similarity"),
        (["select", "of_folder", "--count", "41"], "count=41: there are 40 images; choose 1 to 40."),
        (["cluster", "of_folder", "--count", "41"], "count=41: expected 1 to 40 clusters"),
        (["outliers", "absent"], "absent"),
        (["outliers", "random/tiny_resnet"], "random/tiny_resnet does not name a dataset: give --data FOLDER."),
        (["outliers", "absent.npz"], "absent.npz does not exist"),
        (["outliers", "of_folder", "--page", "photos/x.html"], "photos/x.html is inside the images' folder"),
        (["outliers", "of_folder", "--features", "photos/x.npz"], "photos/x.npz is inside the images' folder"),
        (["outliers", "of_folder", "--out", "absent/x.csv"], "Cannot write absent/x.csv"),
        (["outliers", "of_folder", "--features", "x.txt"], "features are written to .npz"),
        (["outliers", "of_folder", "--features", "x.csv"], "x.csv: such a file does not say which encoder"),
        (["search", "of_folder", "--query", "~nobody-here/x"], "--query '~nobody-here/x' is neither a file or folder"),
        (["search", "of_folder", "--query", "x" * 5000], "is neither a file or folder nor the path"),
        (["outliers", "of_folder", "--out", "x.csv", "--page", "x.csv"], "--out and --page are both x.csv"),
        (
            ["select", "of_folder", "--count", "2", "--labelled", "list.txt", "--out", "list.txt"],
            "list.txt is read by this command: choose another place",
        ),
        (["outliers", "of_folder", "--page", "of_folder/config.json"], "of_folder/config.json is a file of the run"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(MatrixSSLError) as error:
        command(*words)
    assert message in str(error.value) and str(error.value).endswith(".")
    assert sorted(Path().rglob("*")) == before


def test_queries_and_counts_of_the_wrong_kind(images: matrix_ssl.Collection, tmp_path: Path) -> None:
    assert images.search(np.int64(3), k=2).paths == images.search(3, k=2).paths
    assert images.search(np.arange(2), k=2).paths == images.search([0, 1], k=2).paths
    for query, name in ((1.5, "float"), (None, "NoneType"), (object(), "object")):
        for asked in (query, [0, query]):
            with pytest.raises(ConfigError, match=f"A query of type {name}: name an image"):
                images.search(asked)
    matrix_ssl.open("of_folder").embed(quiet=True).save(tmp_path / "features.npz")
    for k in (0, -1, 40):
        with pytest.raises(ConfigError, match=f"k={k}: expected 1 to 39 images"):
            matrix_ssl.Collection(tmp_path / "features.npz").search(0, k=k)


def test_names_are_refused_before_images_are_opened(tmp_path: Path) -> None:
    matrix_ssl.open("of_folder").embed(quiet=True).save(tmp_path / "f.npz")
    for words, message in (
        ({"split": "val"}, "split='val' does not exist"), ({"weights": "best"}, "weights='best' does not exist"),
        ({"device": "gpu"}, "device=gpu: expected auto, cpu, cuda or mps"),
    ):  # fmt: skip
        for where in (tmp_path / "f.npz", "of_folder"):
            with pytest.raises(ConfigError, match=message):
                matrix_ssl.Collection(where, **words)


def test_answers_and_features_are_written_into_the_home_folder(
    images: matrix_ssl.Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    listing = images.outliers(count=2)
    listing.save("~/x.csv")
    assert listing.page("~/x.html") == tmp_path / "x.html" and (tmp_path / "x.html").exists()
    assert [row["path"] for row in rows(tmp_path / "x.csv")] == listing.paths
    images.embedding.save("~/f.npz")
    assert matrix_ssl.Collection("~/f.npz", quiet=True).outliers(count=2).rows == listing.rows
    shutil.copy(listing.paths[0], tmp_path / "q.png")
    files = matrix_ssl.open("of_folder").embed(["~/q.png"], **QUIET)
    assert files.paths == [str(tmp_path / "q.png")]


@pytest.mark.parametrize(("ask", "message"), [
    (lambda images: images.search(0, k=2.5), "k=2.5: expected a whole number."),
    (lambda images: images.search(0, k="3"), "k='3': expected a whole number."),
    (lambda images: images.search(0, k=True), "k=True: expected a whole number."),
    (lambda images: images.search(True), "A query of type bool: name an image"),
    (lambda images: images.search(-1), "--query -1: the images have the numbers 0 to 39."),
    (lambda images: images.outliers(count=2.5), "count=2.5: expected a whole number."),
    (lambda images: images.outliers(k="5"), "k='5': expected a whole number."),
    (lambda images: images.duplicates(threshold="0.9"), "threshold='0.9': expected a cosine similarity"),
    (lambda images: images.clusters(count="3"), "count='3': expected a whole number."),
    (lambda images: images.clusters(seed=-1), "seed=-1: expected a whole number from 0 to"),
    (lambda images: images.clusters(seed=2**63), "expected a whole number from 0 to"),
    (lambda images: images.label_issues(by="linear", seed=0.5), "seed=0.5: expected a whole number."),
    (lambda images: images.select(2.5), "count=2.5: expected a whole number."),
    (lambda images: images.select(3, labelled=[0, 1]), "labelled: an image of type int; name every image by its path."),
])  # fmt: skip
def test_numbers_of_the_wrong_kind(images: matrix_ssl.Collection, ask: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ask(images)


def test_seeds_of_all_sizes_and_images_as_paths(images: matrix_ssl.Collection) -> None:
    for seed in (2**32 - 1, 2**32, 2**63 - 1):
        assert images.clusters(count=3, seed=seed).rows == images.clusters(count=3, seed=seed).rows
    assert images.outliers(k=np.int64(5), count=np.int64(3)).rows == images.outliers(k=5, count=3).rows
    paths = images.embedding.paths[:2]
    assert images.select(3, labelled=[Path(path) for path in paths]).rows == images.select(3, labelled=paths).rows


def test_a_number_is_no_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = matrix_ssl.Collection(Path("of_folder").resolve(), **QUIET)
    expected = images.search(5, k=2).rows
    monkeypatch.chdir(tmp_path)
    Path("5").mkdir()
    shutil.copy(images.embedding.paths[7], "5/x.png")
    assert images.search(5, k=2).rows == images.search([np.int64(5)], k=2).rows == expected
    assert images.search("5", k=2).column("query") == ["5/x.png"] * 2


def test_settings_of_a_page_are_also_texts(images: matrix_ssl.Collection, tmp_path: Path) -> None:
    page = images.explore(tmp_path / "a", settings=["clusters=3", "map=pca", "thumbnail=16"])
    assert page.read_text(encoding="utf-8").count('"representatives":[[') == 1
    assert matrix_ssl.Run("of_folder").explore(
        out=tmp_path / "a", settings=["clusters=3", "map=pca", "thumbnail=16"], **QUIET
    ) == page  # fmt: skip


def test_a_query_that_cannot_be_read_and_features_of_patches(images: matrix_ssl.Collection, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        images.search(tmp_path / "bad.png")
    with pytest.raises(ConfigError, match="There is no query"):
        images.search([])
    matrix_ssl.open("of_folder").embed(quiet=True, patches=True).save(tmp_path / "p.npz")
    with pytest.raises(DataError, match=r"p\.npz"):
        matrix_ssl.Collection(tmp_path / "p.npz")
    assert not is_features("of_folder/encoder.safetensors")


def test_a_page_of_many_images_says_what_it_shows(tmp_path: Path) -> None:
    many = Listing("Many", ("One.", "Two."), ("group", "path"), tuple((i % 3, f"{i}.png") for i in range(900)), "group",
                   shown=4)  # fmt: skip
    html = many.page(tmp_path / "x.html").read_text()
    assert html.count("<li>") == 12 and "The page shows the first 12 of 900 images of the groups." in html
    assert len(many.terminal()[0].rows) == 18 and "882 more: --out" in many.terminal()[-1]
    assert many.terminal(saved=Path("rows.csv"))[-1] == "882 more: all are in rows.csv."


def test_a_table_has_places_below_the_current_folder_and_a_single_query_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tuple((str(tmp_path / "q.png"), i, str(tmp_path / "photos" / f"{i}.png")) for i in range(2))
    above, table, *rest = Listing("Search", ("One.",), ("query", "rank", "path"), rows, "query").terminal()
    assert above == "query: q.png" and [column.header for column in table.columns] == ["rank", "path"]
    assert list(table.columns[1].cells) == ["photos/0.png", "photos/1.png"] and rest == ["One."]


def test_lists_that_are_not_to_be_believed_say_so() -> None:
    assert too_alike([[0, 1], [2, 3]], 8, 0.9) == [] and too_many_issues(2, 10) == []
    assert "at a similarity of 0.9: choose a higher threshold." in too_alike([[0, 1, 2], [3, 4]], 8, 0.9)[0]
    assert too_many_issues(3, 10)[0].startswith("These are more than 20 % of the images: an encoder that cannot tell")
