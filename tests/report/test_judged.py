"""How many test images were judged: in the title, and in a remark where it is not all of them."""

from pathlib import Path
from typing import Any

from matrix_ssl.report.tables import read_evaluation
from matrix_ssl.runs.files import write_json


def result(**measure: Any) -> dict[str, Any]:
    score = {"accuracy": 0.0, "interval": [0.0, 0.1], "mean_per_class": 0.0}
    split = {"images": 6, "classes": 2}
    return {"set": {"train": split, "test": split}, "measures": {"knn_1": score | measure}}


def test_images_and_classes_that_were_judged(tmp_path: Path) -> None:
    classes = {"a": {"accuracy": 0.0, "images": 3}}
    write_json(tmp_path / "knn.json", result(images=3, classes=classes) | {"not_judged": ["b"]})
    evaluation = read_evaluation(tmp_path)
    assert evaluation is not None
    assert "3 test images of 1 classes" in evaluation.table().title
    assert evaluation.remarks == [
        "3 of 6 test images could not be read and were not judged. 1 of 2 classes have no judged test image: 'b'."
    ]
    assert "'b'" in evaluation.table().note


def test_all_were_judged(tmp_path: Path) -> None:
    classes = {name: {"accuracy": 0.0, "images": 3} for name in "ab"}
    for values in (result(images=6, classes=classes), result()):  # the second as of an earlier version
        write_json(tmp_path / "knn.json", values)
        evaluation = read_evaluation(tmp_path)
        assert evaluation is not None
        assert "6 test images of 2 classes" in evaluation.table().title
        assert not evaluation.remarks
