"""What an evaluation writes: measures against scikit-learn, files that come back, features that survive a stop."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch

from matrix_ssl.config import DataConfig
from matrix_ssl.data import open_source
from matrix_ssl.errors import RunFolderError
from matrix_ssl.evaluate import results
from matrix_ssl.evaluate.feature_files import FeatureFiles
from matrix_ssl.evaluate.features import RawPixels, extract
from matrix_ssl.evaluate.probes.accuracy import mean_interval
from matrix_ssl.evaluate.probes.protocols import Predictions, predict
from matrix_ssl.evaluate.results import Answers
from tests.conftest import unprivileged
from tests.support import runs

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def answers() -> Answers:
    labels = torch.randint(3, (200,), generator=torch.Generator().manual_seed(0))
    return Answers(labels, np.array([f"{i}.jpg" for i in range(200)]), CLASSES)


def guess(answers: Answers, *, draws: int = 1, seed: int = 1) -> Predictions:
    """Predictions that are right two times out of three."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(draws, len(answers.labels), generator=generator) < 1 / 3
    return Predictions((answers.labels + wrong.long()) % 3, {"k": 5})


def test_measures_are_those_of_sklearn(answers: Answers) -> None:
    made = guess(answers)
    found = results.describe(made, answers)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(answers.labels, made.labels[0]))
    assert found["mean_per_class"] == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(answers.labels, made.labels[0])
    )
    recalls = sklearn.metrics.recall_score(answers.labels, made.labels[0], average=None)
    assert [found["classes"][name]["accuracy"] for name in CLASSES] == pytest.approx(recalls.tolist())
    assert sum(one["images"] for one in found["classes"].values()) == found["images"] == 200
    assert found["interval"][0] < found["accuracy"] < found["interval"][1]
    assert found["settings"] == {"k": 5} and "sd_over_draws" not in found


def test_draws_are_averaged(answers: Answers) -> None:
    made = guess(answers, draws=4)
    found = results.describe(made, answers)
    accuracies = [(row == answers.labels).double().mean().item() for row in made.labels]
    assert found["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["sd_over_draws"] == pytest.approx(np.std(accuracies, ddof=1))


def test_a_class_without_test_images_is_left_out(answers: Answers) -> None:
    few = Answers(answers.labels.clamp_max(1), answers.where, CLASSES)
    made = Predictions(few.labels[None])
    assert results.describe(made, few)["classes"].keys() == {"ant", "bee"}
    assert results.describe(made, few)["mean_per_class"] == 1.0


def test_a_class_of_one_test_image_leaves_no_interval(answers: Answers, tmp_path: Path) -> None:
    labels = torch.cat([torch.tensor([2]), answers.labels[1:].clamp_max(1)])
    few = Answers(labels, answers.where, CLASSES)
    made = Predictions(labels[None])
    results.write(tmp_path / "new", "knn", {"measures": {"knn_1": results.describe(made, few)}}, {"knn_1": made}, few)
    found = results.read(tmp_path / "new", "knn")
    assert found is not None and found["measures"]["knn_1"]["mean_per_class_interval"] is None
    assert found["measures"]["knn_1"]["interval"] == [pytest.approx(0.025 ** (1 / 200)), 1.0]


def test_a_difference_is_paired(answers: Answers) -> None:
    made = guess(answers)
    better = made.labels.clone()
    better[0, :10] = answers.labels[:10]  # right wherever the other is, and in some places more
    found = results.difference(Predictions(better), made, answers)
    gain = (better[0] == answers.labels).double() - (made.labels[0] == answers.labels).double()
    assert found["difference"] == pytest.approx(float(gain.mean())) and found["interval"][0] >= 0
    apart = mean_interval((better[0] == answers.labels).double())
    assert found["interval"][1] - found["interval"][0] < (apart.high - apart.low) / 2


def test_a_difference_allows_for_the_draws(answers: Answers) -> None:
    """Two encoders of equal expected accuracy, each with draws that suit it better and worse."""
    generator = torch.Generator().manual_seed(0)
    excluded = 0
    for _ in range(100):
        accuracies = 0.5 + 0.1 * torch.randn(2, 10, 1, generator=generator)
        wrong = torch.rand(2, 10, 200, generator=generator) > accuracies
        a, b = (Predictions((answers.labels + one.long()) % 3) for one in wrong)
        low, high = results.difference(a, b, answers)["interval"]
        excluded += low > 0 or high < 0
    assert excluded <= 10


def test_one_image_has_a_difference(answers: Answers) -> None:
    one = Answers(answers.labels[:1], answers.where[:1], CLASSES)
    right, wrong = Predictions(one.labels.expand(3, 1)), Predictions((one.labels + 1).expand(3, 1) % 3)
    found = results.difference(right, wrong, one)
    assert found == {"difference": 1.0, "interval": [pytest.approx(-0.95), 1.0], "draws": 3, "p": 1.0}


@pytest.mark.parametrize("draws", [1, 3])
def test_no_difference_on_any_image_may_still_be_one_on_others(answers: Answers, draws: int) -> None:
    made = guess(answers, draws=draws)
    found = results.difference(made, made, answers)
    most = 1 - 0.025 ** (1 / 200)
    assert found["interval"] == pytest.approx([-most, most]) and found["p"] == 1.0


@pytest.mark.parametrize(("alone", "other"), [(5, 0), (3, 9), (0, 0)])
def test_a_difference_without_draws_has_the_exact_test(answers: Answers, alone: int, other: int) -> None:
    a, b = answers.labels.clone(), answers.labels.clone()
    b[:alone], a[alone : alone + other] = (b[:alone] + 1) % 3, (a[alone : alone + other] + 1) % 3
    n = alone + other
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(alone, other) + 1)) / 2**n)
    assert results.difference(Predictions(a[None]), Predictions(b[None]), answers)["p"] == pytest.approx(expected)
    draws = results.difference(guess(answers, draws=3), guess(answers, draws=3, seed=2), answers)
    assert "p" not in draws and draws["interval"][0] < draws["interval"][1]


def test_results_come_back(answers: Answers, tmp_path: Path) -> None:
    made = {"knn_5": guess(answers), "knn_7": guess(answers, draws=2)}
    values = {"measures": {"knn_5": results.describe(made["knn_5"], answers)}, "fingerprint": "abc"}
    results.write(tmp_path / "new", "knn", values, made, answers)
    assert results.read(tmp_path / "new", "knn") == json.loads(json.dumps(values | {"run": ""}))
    assert results.read(tmp_path / "new", "knn", fingerprint="abc") is not None
    assert results.read(tmp_path / "new", "knn", fingerprint="abd") is None
    assert results.read(tmp_path / "new", "linear") is None
    found = results.read_predictions(tmp_path / "new", "knn", "knn_7")
    assert found is not None and torch.equal(found[0].labels, made["knn_7"].labels)
    assert torch.equal(found[1].labels, answers.labels) and found[1].where.tolist() == answers.where.tolist()
    assert results.read_predictions(tmp_path / "new", "knn", "knn_1") is None


@pytest.mark.parametrize("content", [b"", b"{", b"PK\x03\x04", b'{"a": 1}'])
def test_a_damaged_result_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "knn.json").write_bytes(content)
    (tmp_path / "knn.npz").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"knn\.json"):
        results.read(tmp_path, "knn")
    with pytest.raises(RunFolderError, match=r"knn\.npz is damaged"):
        results.read_predictions(tmp_path, "knn", "knn_1")


def test_sets_have_folders_of_their_own() -> None:
    digits = open_source("digits", split="train", data_root=None)
    other = digits.subset(range(10))
    other.name = "a b/c.."
    assert results.folder_of(Path("r"), digits, digits, "student") == Path("r/evaluation/digits")
    assert results.folder_of(Path("r"), digits, other, "teacher") == Path("r/evaluation/digits-a-b-c-teacher")


def test_penalty_and_neighbours_are_reported() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, generator=generator), torch.arange(60) % 3
    said: list[str] = []
    found = predict(x, y, x[:20], classes=CLASSES, neighbours=(1, 20, 200), say=said.append)
    assert found.keys() == {"knn_1", "knn_20", "linear", "low_shot_1", "low_shot_5", "low_shot_10"}
    assert said == ["Skipping knn_200: only 60 training images."]
    assert found["knn_20"].settings == {"k": 20} and found["linear"].settings["l2"] in (1e4, 1e3, 1e2, 10, 1, 0.1, 0.01)
    assert found["low_shot_5"].labels.shape == (10, 20)
    assert torch.equal(found["knn_1"].labels[0], y[:20])  # every test image is its own neighbour


def extraction(folder: Path | None, *, stop_after: int = 0, fingerprint: str = "one") -> object:
    """Raw pixels of the digits; stopped by an exception after some images."""
    source = open_source("digits", split="train", data_root=None)
    data = DataConfig(image_size=8, mean=(0.5,), std=(0.5,), crop_fraction=1.0)

    def progress(done: int, _: int) -> None:
        if stop_after and done >= stop_after:
            raise KeyboardInterrupt

    files = None if folder is None else FeatureFiles(folder, fingerprint=fingerprint)
    return extract({"raw": RawPixels()}, source, data, device=torch.device("cpu"), on_progress=progress, files=files)


def test_features_in_files_are_those_in_memory(tmp_path: Path) -> None:
    expected, found = extraction(None), extraction(tmp_path / "f")
    assert torch.equal(found.vectors["raw"], expected.vectors["raw"]) and found.indices.tolist() == list(range(1437))
    assert torch.equal(found.labels, expected.labels)


def test_a_killed_extraction_goes_on_after_its_last_save(tmp_path: Path) -> None:
    code = (
        f"import os, signal, sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "import matrix_ssl.evaluate.feature_files as f, tests.evaluate.test_results as t\n"
        "from pathlib import Path\n"
        "saved = f.FeatureFiles.save\n"
        "f._SECONDS_BETWEEN_SAVES = 0.0\n"
        "def save(self):\n"
        "    if self.seen > 700: os.kill(os.getpid(), signal.SIGKILL)\n"  # rows are in the files that do not count
        "    saved(self)\n"
        "f.FeatureFiles.save = save\n"
        "t.extraction(Path('f'))\n"
    )
    ended = runs.run(tmp_path, [], before=code)
    assert ended.code == -signal.SIGKILL, ended
    assert FeatureFiles(tmp_path / "f", fingerprint="one").seen == 512
    found, expected = extraction(tmp_path / "f"), extraction(None)
    assert torch.equal(found.vectors["raw"], expected.vectors["raw"])
    assert found.indices.tolist() == expected.indices.tolist()


def test_rows_after_a_save_without_any_do_not_count(tmp_path: Path) -> None:
    """The first images could not be read; a process added rows and was killed before it saved them."""
    first = FeatureFiles(tmp_path / "f", fingerprint="one")
    first.add(np.zeros(0, np.int64), {"raw": np.zeros((0, 2), np.float32)}, [("a", "no image"), ("b", "no image")])
    first.save()
    first.add(np.array([2, 3]), {"raw": np.ones((2, 2), np.float32)}, [])
    again = FeatureFiles(tmp_path / "f", fingerprint="one")
    assert again.seen == 2
    again.add(np.array([2, 3, 4]), {"raw": np.arange(6, dtype=np.float32).reshape(3, 2)}, [])
    again.save()
    indices, vectors = again.read()
    assert indices.tolist() == [2, 3, 4] and vectors["raw"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_features_of_another_encoder_are_dropped(tmp_path: Path) -> None:
    extraction(tmp_path / "f")
    assert FeatureFiles(tmp_path / "f", fingerprint="one").seen == 1437
    assert FeatureFiles(tmp_path / "f", fingerprint="two").seen == 0


def test_a_full_disk_is_told(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"0" * 900_000)
    with pytest.raises(RunFolderError, match="free space there"):
        extraction(small_disk / "f")


def test_a_folder_that_may_not_be_written_is_told(open_folder: Path) -> None:
    (open_folder / "locked").mkdir(mode=0o555)
    with unprivileged(), pytest.raises(RunFolderError, match="Cannot write"):
        extraction(open_folder / "locked" / "f")
    assert not any((open_folder / "locked").iterdir())
