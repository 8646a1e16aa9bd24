"""What can be known before the features of the images are computed is refused before."""

import sys
from pathlib import Path

import numpy as np
import pytest

from matrix_ssl.api import diagnosing, evaluation, measuring, run
from matrix_ssl.cli.explore import explore
from matrix_ssl.cli.find import cluster, duplicates, mislabels, search, select
from matrix_ssl.data import sources
from matrix_ssl.errors import MatrixSSLError
from tests.support.runs import make_images

WHERE = "random/tiny_resnet"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images of two classes, and an encoder that computes nothing."""

    def compute(*_: object, **__: object) -> None:
        raise AssertionError("features are computed")

    for function in ("features.fill", "kept_embedding.fill", "protocols._run_frozen"):
        monkeypatch.setattr(f"matrix_ssl.evaluate.{function}", compute)
    monkeypatch.setattr("matrix_ssl.api.diagnosing.diagnose_blocks", compute)
    monkeypatch.setenv("MATRIX_SSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("ant", "bee"):
        make_images(Path("photos", name), 2)
    make_images(Path("plain"), 3)
    make_images(Path("queries"), 1)
    Path("bad.png").write_bytes(b"no image")
    Path("list.txt").write_text("absent.png\n")
    Path("a.csv").write_text("path,place\nabsent.png,north\n")
    np.save("f.npy", np.eye(4, dtype=np.float32))
    np.save("short.npy", np.eye(3, 4, dtype=np.float32))
    return tmp_path / "photos"


@pytest.mark.parametrize(("command", "words", "message"), [
    (duplicates, ["--threshold", "3"], "threshold=3.0: expected a cosine similarity above -1 and at most 1."),
    (duplicates, ["--threshold", "nan"], "threshold=nan: expected a cosine similarity"),
    (search, ["--query", "absent.jpg"], "--query 'absent.jpg' is neither a file or folder"),
    (search, ["--query", "4"], "--query 4: the images have the numbers 0 to 3."),
    (search, ["--query", "0", "-k", "4"], "k=4: expected 1 to 3 images"),
    (search, ["--query", "bad.png", "-k", "4"], "--query bad.png: "),
    (search, ["--query", "queries", "-k", "4", "--out", "queries/x.csv"], "is inside the images' folder"),
    (search, ["--query", "queries/0.png", "-k", "4", "--page", "queries/0.png"], "is read by this command"),
    (duplicates, ["--out", "x.html"], "x.html: a table of all rows is written to a .csv file."),
    (duplicates, ["--page", "x.csv"], "x.csv: a page is written to a .html or .htm file."),
    (cluster, ["--count", "5"], "count=5: expected 1 to 4 clusters, as many as there are images."),
    (select, ["--count", "5"], "count=5: there are 4 images; choose 1 to 4."),
    (select, ["--count", "1", "--labelled", "list.txt"], "list.txt: 1 of its 1 names match no image of 'photos'"),
    (select, ["--count", "1", "--labelled", "absent.txt"], "absent.txt does not exist."),
    (mislabels, ["--data", "plain"], "'photos-plain' has no labels"),
    (explore, ["--out", "page", "--clusters", "5"], "clusters=5: expected 1 to 4 clusters"),
    (explore, ["--out", "page", "--columns", "a.csv"], "a.csv: none of its 1 paths is one of the images."),
])  # fmt: skip
def test_a_question_that_the_images_cannot_answer(photos: Path, command, words: list[str], message: str) -> None:
    before = sorted(photos.parent.rglob("*"))
    with pytest.raises(MatrixSSLError) as error:
        command.main([WHERE, "--data", "photos", *words], standalone_mode=False)
    assert message in str(error.value) and str(error.value)[-1] in ".?"
    assert sorted(photos.parent.rglob("*")) == before


@pytest.mark.parametrize(("command", "words"), [(search, ["--query", "0", "-k", "1"]), (explore, ["--out", "page"])])
def test_the_encoder_and_the_images_are_opened_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch, command, words: list[str]
) -> None:
    opened = []
    for module in (run, sources):
        name = "open_encoder" if module is run else "open_folder"
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, **k: opened.append(real.__name__) or real(*a, **k))
    with pytest.raises(AssertionError, match="features are computed"):
        command.main([WHERE, "--data", "photos", *words], standalone_mode=False)
    assert sorted(opened) == ["open_encoder", "open_folder"]


@pytest.mark.parametrize(("command", "words", "package"), [
    (search, ["--query", "0", "-k", "1", "--approximate"], "faiss"),
    (explore, ["--out", "page", "--map", "umap"], "umap"),
])  # fmt: skip
def test_an_extra_that_is_missing(
    photos: Path, monkeypatch: pytest.MonkeyPatch, command, words: list[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MatrixSSLError, match=f"The package '{package}' is not installed"):
        command.main([WHERE, "--data", "photos", *words], standalone_mode=False)


def test_files_and_encoders_that_do_not_fit(photos: Path) -> None:
    data = str(photos)
    for against, message in (
        ("absent.npy", "absent.npy does not exist"), ("random/absent", "absent"),
        (WHERE, "does not name a dataset"),
    ):  # fmt: skip
        with pytest.raises(MatrixSSLError, match=message):
            measuring.measure(
                "f.npy" if against == WHERE else WHERE, None if against == WHERE else data, against=against
            )
    for words in ({}, {"against": WHERE}):
        with pytest.raises(MatrixSSLError, match="--population 3 is less than the 4 images of 'photos': it is a"):
            measuring.measure("short.npy" if words else WHERE, data, population=3, **words)
    with pytest.raises(MatrixSSLError, match=r"f\.npy has 4 rows and short\.npy 3"):
        measuring.measure("f.npy", against="short.npy")
    with pytest.raises(MatrixSSLError, match="inside the images' folder"):
        measuring.measure("f.npy", data, against=WHERE, out=photos / "m")
    for words, message in (
        ({"reference": "random/absent"}, "absent"), ({"against": "random/absent"}, "absent"),
        ({"reference": "random/resnet18"}, "has other blocks than random/tiny_resnet"),
        ({"against": "untrained", "images": 3}, "3 of its images would be measured, and 4 are needed"),
    ):  # fmt: skip
        with pytest.raises(MatrixSSLError, match=message):
            diagnosing.diagnose(WHERE, data, **words)


def test_evaluations(photos: Path) -> None:
    from matrix_ssl.evaluate.trained.protocols import EvaluationSettings

    before = sorted(photos.parent.rglob("*"))

    def evaluate(data: str, **words: object) -> None:
        evaluation.evaluate(WHERE, data, settings=EvaluationSettings(), report=False, quiet=True, **words)

    with pytest.raises(MatrixSSLError, match="inside the images' folder"):
        evaluate("photos", test_data="plain", out=Path("plain/r"), protocols=["knn"])
    with pytest.raises(MatrixSSLError, match=r"absent\.txt does not exist"):
        evaluate("photos", protocols=["knn", "semi-supervised"], label_list=Path("absent.txt"), out=Path("r"))
    assert sorted(photos.parent.rglob("*")) == before
    with pytest.raises(MatrixSSLError, match=r"list\.txt: 1 of its 1 names match no image"):
        evaluate("photos", protocols=["knn", "semi-supervised"], label_list=Path("list.txt"), out=Path("r"))
