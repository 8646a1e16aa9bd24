"""Tables of what was measured: from files as evaluation and detection write them, and from damaged ones."""

import json
import os
import shutil
from pathlib import Path

import pytest

from matrix_ssl.report import write_report
from matrix_ssl.report.tables import read_tables
from tests.support.synthetic_run import make_run


def put(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was evaluated on two datasets and once on detection."""
    run = make_run(tmp_path / "r")
    shutil.rmtree(run / "evaluation")
    judged = {"train": {"name": "cats", "images": 1200, "classes": 3}, "test": {"images": 1000, "classes": 3}}
    one = {"accuracy": 0.5, "interval": [0.46, 0.54], "mean_per_class": 0.48}
    shared = {"set": judged, "training_images": 1200}
    baselines = {
        "raw_pixels": {"linear": one | {"accuracy": 0.25}},
        "random_network": {"linear": one | {"accuracy": 0.333}},
    }
    put(run / "evaluation/cats/linear.json", {"measures": {"linear": one}, "baselines": baselines, **shared})
    put(run / "evaluation/cats/knn.json", {"measures": {"knn_20": one | {"accuracy": 0.4}}, **shared})
    few = {"semi_supervised_1": one | {"labelled": 12}, "semi_supervised_10": one | {"labelled": 120}}
    put(run / "evaluation/cats/semi-supervised.json", {"measures": few, **shared})
    put(run / "evaluation/cats/linear-sgd-against-linear.json", {"difference": -0.012, "interval": [-0.03, 0.005]})
    put(run / "evaluation/dogs/transfer.json", {"measures": {"transfer": one}, "set": judged})
    scores = {"AP": 0.123, "AP50": 0.3, "AP75": None}
    put(run / "detection/coco-fpn/result.json", {"box": scores, "mask": {"AP": 0.1}})
    return run


def test_tables(run: Path) -> None:
    cats, dogs, detection = read_tables(run)
    assert cats.title == "Accuracy in % on cats, 1,000 test images of 3 classes" and "on dogs," in dogs.title
    assert cats.rows == [
        ["20-NN", "40.0", "46.0 to 54.0", "48.0", "–", "–", "1,200"],
        ["linear", "50.0", "46.0 to 54.0", "48.0", "25.0", "33.3", "1,200"],
        ["fine-tuned, 1 %", "50.0", "46.0 to 54.0", "48.0", "–", "–", "12"],
        ["fine-tuned, 10 %", "50.0", "46.0 to 54.0", "48.0", "–", "–", "120"],
    ]
    assert "guessing gives 33.3" in cats.note
    assert "linear-sgd minus linear: −1.2 points (−3.0 to +0.5)." in cats.note and "linear-sgd" not in dogs.note
    assert detection.columns == ["", "box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75"]
    assert detection.rows == [["coco-fpn", "12.3", "30.0", "–", "10.0", "–", "–"]]


def test_public_encoders_have_columns_and_differences(run: Path) -> None:
    one = {"accuracy": 0.45, "interval": [0.41, 0.49], "mean_per_class": 0.45}
    public = {
        "reference": "torchvision/resnet50", "sha256": "0123456789abcdef", "tensors": "318 of 318 tensors.",
        "image_size": 224, "feature_seconds": 35.2, "measures": {"linear": one},
        "differences": {"linear": {"difference": 0.05, "interval": [0.012, 0.088]}},
    }  # fmt: skip
    path = run / "evaluation/cats/linear.json"
    put(path, json.loads(path.read_text()) | {"public": {"torchvision/resnet50, 224 px": public}})
    cats, differences, dogs, _ = read_tables(run)
    assert cats.columns[-2] == "torchvision/resnet50, 224 px" and len(dogs.columns) == len(cats.columns) - 1
    assert [row[-2] for row in cats.rows] == ["–", "45.0", "–", "–"]
    assert differences.title == "This encoder minus public encoders on cats"
    assert differences.rows == [["linear", "+5.0 (+1.2 to +8.8)"]]
    assert "torchvision/resnet50, SHA-256 0123456789ab; 318 of 318 tensors; features in 35 s." in differences.note
    assert "minus public encoders on cats" in write_report(run).read_text()
    assert "Satterthwaite" not in differences.note
    public["differences"]["linear"]["draws"] = 10
    put(path, json.loads(path.read_text()) | {"public": {"torchvision/resnet50, 224 px": public}})
    assert "with Satterthwaite's interval for both" in read_tables(run)[1].note


def test_the_page_shows_them(run: Path) -> None:
    page = write_report(run).read_text()
    for text in (
        "Everything measured",
        "Accuracy in % on cats",
        "fine-tuned, 10 %",
        "Detection and segmentation",
        "12.3",
    ):
        assert text in page
    for name in ("evaluation", "detection"):
        shutil.rmtree(run / name)
    assert "Everything measured" not in write_report(run).read_text()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"measures": 3}', '{"measures": {"linear": {"accuracy": "x"}}}'])
def test_damaged_files_are_left_out(run: Path, content: str) -> None:
    (run / "evaluation/cats/linear.json").write_text(content)
    (run / "detection/coco-fpn/result.json").write_text(content)
    cats, dogs = read_tables(run)
    assert [row[0] for row in cats.rows] == ["20-NN", "fine-tuned, 1 %", "fine-tuned, 10 %"] and dogs.rows
    assert "cats/linear.json is damaged and skipped." in cats.note


def test_the_page_is_written_without_a_damaged_file(run: Path) -> None:
    (run / "evaluation/cats/linear.json").write_text('{"measures": {"linear": {"accuracy": "x"}}}')
    assert "cats/linear.json is damaged and skipped." in write_report(run).read_text()
    files = [*(run / "evaluation").glob("*/*.json"), *(run / "detection").glob("*/*.json"), run / "metrics.jsonl"]
    for path in files:  # so that no table is left
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    page = write_report(run).read_text()
    for path in files[:-1]:
        assert f"{path.parent.name}/{path.name} is damaged and skipped." in page
    assert "metrics.jsonl cannot be read (it is a pipe, a device or a socket, not a file) and is skipped." in page
