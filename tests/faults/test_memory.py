"""Commands under a limit of their address space: what is promised fits, and what does not fit is one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from matrix_ssl.api.measuring import measure
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.feature_rows import rows_of
from matrix_ssl.evaluate.measure import compare_rows
from matrix_ssl.runs import checkpoint
from tests.support.runs import BARE, fail, from_files, run, succeed, tiny

LIMITED = """
import psutil, resource
size = psutil.Process().memory_info().vms + {mib} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (size, size))
"""
ROWS, WIDTH = 1_200_000, 64  # 293 MiB
MEASURE = 256  # MiB that "measure" may take, most of it address space that each thread reserves


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A feature file that is larger than the limit."""
    rows = np.random.default_rng(0).standard_normal((1000, WIDTH), dtype=np.float32)
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (ROWS, WIDTH))
    for start in range(0, ROWS, len(rows)):
        file[start : start + len(rows)] = rows
    file.flush()
    return tmp_path / "x.npy"


def test_measuring_needs_no_more_memory_for_more_rows(features: Path) -> None:
    ended = run(features.parent, ["measure", "x.npy"], before=LIMITED.format(mib=MEASURE))
    assert ended.code == 0, ended.err
    features.unlink()  # the order of columns has to be read at once
    np.lib.format.open_memmap(features, "w+", np.float32, (ROWS, WIDTH), fortran_order=True).flush()
    message = fail(features.parent, ["measure", "x.npy"], before=LIMITED.format(mib=MEASURE))
    assert "memory" in message.lower()


IMAGES = 512  # MiB that any command on a folder of images may take, for any number of images of 6 megapixels
OF_IMAGES = {
    "pretrain": [*from_files("photos"), "--no-report"],
    "embed": ["embed", "r", "--data", "photos", "--out", "f.npz", "--device", "cpu"],
    "pack": ["pack", "photos", "p", "--workers", "0"],
    "evaluate": ["evaluate", "r", "--data", "photos", "--protocol", "knn", "--device", "cpu", "--no-report"],
    "diagnose": ["diagnose", "r", "--data", "photos", "--out", "d", "--device", "cpu"],
    "outliers": ["outliers", "r", "--data", "photos", "-k", "2", "--page", "o.html", "--device", "cpu"],
    "explore": ["explore", "r", "--data", "photos", "--out", "page", "--map", "pca", "--device", "cpu"],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 images of two shapes, 1,029 MiB of pixels, and a run whose encoder is untrained."""
    folder = tmp_path_factory.mktemp("large")
    for name, height in (("ant", 2000), ("bee", 1996)):
        (folder / "photos" / name).mkdir(parents=True)
        first = folder / "photos" / name / "0.jpg"
        Image.new("RGB", (3000, height), (99, 5, 30)).save(first)
        for number in range(1, 30):
            first.with_name(f"{number}.jpg").hardlink_to(first)
    succeed(folder, ["import", "random/tiny_resnet", "--image-size", "32", "--out", "r"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_IMAGES)
def test_more_images_need_no_more_memory(photos: Path, tmp_path: Path, name: str) -> None:
    for path in photos.iterdir():
        (tmp_path / path.name).symlink_to(path)
    if name == "pretrain":
        (tmp_path / "r").unlink()
    environment = {"MATRIX_SSL_CACHE": str(tmp_path / "cache")}
    ended = run(tmp_path, OF_IMAGES[name], before=LIMITED.format(mib=IMAGES), environment=environment)
    assert ended.code == 0, ended.err


TIMES, BESIDE = 8, 128  # of the size of the features, and MiB, that a command on a file of them may take
OF_FEATURES = {
    "search": ["--query", "0"], "duplicates": [], "outliers": [], "cluster": ["--count", "4"], "mislabels": [],
    "select": ["--count", "5"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_FEATURES)
def test_questions_to_features_need_so_many_times_their_size(tmp_path: Path, name: str) -> None:
    rows = np.random.default_rng(0).standard_normal((1200, 16384), dtype=np.float32)
    np.savez(tmp_path / "x.npz", features=rows, labels=np.arange(1200) % 3)
    limit = LIMITED.format(mib=TIMES * rows.nbytes // 2**20 + BESIDE)
    ended = run(tmp_path, [name, "x.npz", *OF_FEATURES[name]], before=limit)
    assert ended.code == 0, ended.err
    message = fail(tmp_path, [name, "x.npz", *OF_FEATURES[name]], before=LIMITED.format(mib=rows.nbytes // 2**20))
    assert "memory" in message


def test_features_of_too_many_columns_are_refused_before_they_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((2, 200_000), np.float32))
    with pytest.raises(DataError, match=r"wide\.npy: the products of 200,000 columns take 3874\.3 GiB and .* are free"):
        measure(tmp_path / "wide.npy")
    wide = rows_of(torch.zeros(2, 200_000), "a")
    with pytest.raises(DataError, match="a and a: the products of 400,000 columns take"):
        compare_rows(wide, wide)


def test_a_training_that_does_not_fit_is_one_sentence_and_resumes(tmp_path: Path) -> None:
    stop = (
        "\nimport matrix_ssl.training.engine as e; real = e.Engine.update\n"
        "def update(self, *rest):\n"
        "    if self.task.step == 4: import torch; torch.empty(2**44)\n"
        "    return real(self, *rest)\n"
        "e.Engine.update = update\n"
    )
    words = tiny("checkpoint_every=3", "log_every=1")
    message = fail(tmp_path, words, before=BARE + stop, code=1)
    assert message.startswith("The memory is not enough. Use smaller batches (--set batch_size=...)")
    newest, problems = checkpoint.load_newest(tmp_path / "r")
    assert newest is not None and newest.step == 3 and not problems
    assert "Resuming after step 3" in succeed(tmp_path, words, before=BARE).err
