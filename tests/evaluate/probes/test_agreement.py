"""The whole way from images to accuracies, on a torchvision encoder with seeded weights, against scikit-learn.

The other side reads the files with Pillow, prepares them with torchvision's transforms, runs torchvision's own model on
weights that ``export`` wrote, and classifies with scikit-learn: nothing of this package but the exported file.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torchvision.transforms import v2

from matrix_ssl.data import open_source
from matrix_ssl.runs.files import read_json
from matrix_ssl.runs.folder import read_config
from tests.support.runs import BARE, succeed

SIDE, CLASSES = 24, ("0", "1", "2", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of four digits in a train and a val part, and the evaluated run ``e`` of a random ResNet-18."""
    folder = tmp_path_factory.mktemp("agreement")
    digits = open_source("digits", split="train", data_root=None)
    assert digits.images is not None and digits.labels is not None
    for label in CLASSES:
        for place, index in enumerate(np.flatnonzero(digits.labels == int(label))[:27]):
            path = folder / "digits4" / ("train" if place < 18 else "val") / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.images[index, 0].numpy()).convert("RGB").resize((80, 64)).save(path)
    size = ["--image-size", str(SIDE)]
    succeed(folder, ["import", "random", "--architecture", "resnet18", "--out", "e", *size])
    succeed(folder, ["export", "e", "--format", "torchvision", "--out", "e.pth"])
    command = ["evaluate", "e", "--data", "digits4", "--device", "cpu", "--protocol", "knn,linear"]
    succeed(folder, command, before=BARE)
    return folder


@pytest.fixture(scope="module")
def features(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    """By part: features (n, 512), labels (n,) and file names, computed without this package."""
    model = torchvision.models.resnet18()
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)  # what `export` says to do for small images
    model.maxpool = torch.nn.Identity()
    model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load(folder / "e.pth", weights_only=True))
    crop = round(0.875 * 64)  # of the shorter side
    prepare = v2.Compose([
        v2.CenterCrop(crop), v2.Resize((SIDE, SIDE), antialias=True), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    found = {}
    for part in ("train", "val"):
        paths = sorted((folder / "digits4" / part).rglob("*.png"))
        images = torch.stack([prepare(v2.functional.pil_to_tensor(Image.open(path))) for path in paths])
        with torch.no_grad():
            rows = model.eval()(images).double().numpy()
        found[part] = rows, np.array([CLASSES.index(path.parent.name) for path in paths]), [str(p.name) for p in paths]
    return found


def predictions(folder: Path, protocol: str, measure: str, names: list[str]) -> np.ndarray:
    """What the evaluation predicted, (draws, m), in the order of ``names``."""
    with np.load(folder / "e" / "evaluation" / "digits4" / f"{protocol}.npz") as arrays:
        order = {Path(where).name: i for i, where in enumerate(arrays["where"])}
        return arrays[measure][:, [order[name] for name in names]]


@pytest.mark.slow
def test_the_stem_is_that_for_small_images(folder: Path) -> None:
    assert read_config(folder / "e").network.stem == "auto" and SIDE <= 64


@pytest.mark.parametrize("k", [1, 10, 20])
def test_neighbours(folder, features, k) -> None:
    (x, y, _), (test, answers, names) = features["train"], features["val"]
    vote = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = vote.fit(x, y).predict(test)
    assert predictions(folder, "knn", f"knn_{k}", names)[0].tolist() == expected.tolist()
    found = read_json(folder / "e" / "evaluation" / "digits4" / "knn.json")["measures"][f"knn_{k}"]
    assert found["accuracy"] == pytest.approx((expected == answers).mean())


def test_linear(folder, features) -> None:
    (x, y, _), (test, answers, names) = features["train"], features["val"]
    found = read_json(folder / "e" / "evaluation" / "digits4" / "linear.json")["measures"]["linear"]
    scaler = StandardScaler().fit(x)
    probe = LogisticRegression(C=1 / found["settings"]["l2"], tol=1e-9, max_iter=10_000).fit(scaler.transform(x), y)
    expected = probe.predict(scaler.transform(test))
    assert predictions(folder, "linear", "linear", names)[0].tolist() == expected.tolist()
    assert found["accuracy"] == pytest.approx((expected == answers).mean())
    for label, name in enumerate(CLASSES):
        mine = found["classes"][name]
        assert mine["accuracy"] == pytest.approx((expected == answers)[answers == label].mean())
        assert mine["images"] == (answers == label).sum()


@pytest.mark.slow
def test_a_file_that_appears_between_two_evaluations_makes_it_another_question(folder, tmp_path) -> None:
    shutil.copytree(folder / "e", tmp_path / "e")
    shutil.copytree(folder / "digits4", tmp_path / "digits4")
    command = ["evaluate", "e", "--data", "digits4", "--device", "cpu", "--protocol", "linear-sgd",
               "--set", "linear_sgd.epochs=1"]  # fmt: skip
    succeed(tmp_path, command, before=BARE)
    assert "has been measured" in succeed(tmp_path, command, before=BARE).err
    first = next((tmp_path / "digits4" / "train" / "3").iterdir())
    shutil.copy(first, first.with_name("9999.png"))
    assert "has been measured" not in succeed(tmp_path, command, before=BARE).err
