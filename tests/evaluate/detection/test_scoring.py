"""Average precision: by hand, beside pycocotools on files, with crowds, and its intervals."""

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from matrix_ssl.evaluate.detection import intervals
from matrix_ssl.evaluate.detection.annotations import Annotations, read_annotations
from matrix_ssl.evaluate.detection.predict import DetectionResults
from matrix_ssl.evaluate.detection.scoring import MEASURES, classes_table, score, scores_table
from matrix_ssl.evaluate.detection.shapes import encode_pixels
from tests.support.drawn_coco import write_json

HEIGHT, WIDTH = 300, 400
Box = tuple[int, int, int, int]  # x, y, width, height


def pixels(box: Box) -> torch.Tensor:
    x, y, width, height = box
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[y : y + height, x : x + width] = 1
    return mask


def truth(number: int, box: Box, *, image: int = 1, category: int = 1, crowd: int = 0) -> dict[str, Any]:
    x, y, w, h = box
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": w * h,
            "iscrowd": crowd, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}  # fmt: skip


def detection(box: Box, value: float, *, image: int = 1, category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": value,
            "segmentation": encode_pixels(pixels(box))}  # fmt: skip


def read(folder: Path, items: list[dict[str, Any]], *, count: int = 1, categories: int = 1) -> Annotations:
    images = [{"id": k + 1, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH} for k in range(count)]
    kinds = [{"id": k + 1, "name": f"kind {k + 1}"} for k in range(categories)]
    content = {"images": images, "annotations": items, "categories": kinds}
    return read_annotations(write_json(folder / "t.json", content))


class TestByHand:
    """Two objects and three detections of one class.

    ranked by score        IoU with the object   right at thresholds
    1. a = A exactly       1                     0.50 to 0.95
    2. b, nowhere near     0                     never
    3. c, 62 % of B        0.62                  0.50, 0.55, 0.60

    At the first three thresholds precision after each detection is 1, 1/2, 2/3 at recall 1/2, 1/2, 1. The highest
    precision at recall r or above is 1 for the 51 levels r = 0, 0.01, ..., 0.50 and 2/3 for the other 50 levels:
    AP = (51 + 50 · 2/3) / 101 = 0.834983. At the other seven thresholds recall ends at 1/2: AP = 51 / 101 = 0.504950.
    """

    LOW, HIGH = (51 + 50 * 2 / 3) / 101, 51 / 101
    A, B = (10, 10, 100, 100), (200, 20, 100, 100)
    DETECTIONS = ((A, 0.9), ((10, 180, 100, 100), 0.8), ((200, 20, 62, 100), 0.7))

    @pytest.mark.parametrize("kind", ["box", "mask"])
    def test_ap(self, tmp_path: Path, kind: str) -> None:
        found = DetectionResults([detection(*d) for d in self.DETECTIONS], {})
        result = score(read(tmp_path, [truth(1, self.A), truth(2, self.B)]), found)
        ap = (3 * self.LOW + 7 * self.HIGH) / 10
        expected = {"AP": ap, "AP50": self.LOW, "AP75": self.HIGH, "AP_small": None, "AP_medium": None, "AP_large": ap,
                    "AR_1": 0.5, "AR_10": (3 * 1 + 7 * 0.5) / 10, "AR_100": 0.65, "AR_small": None, "AR_medium": None,
                    "AR_large": 0.65}  # fmt: skip
        assert result[kind] == pytest.approx(expected)
        (row,) = result["per_class"]
        assert (row["id"], row["name"], row["objects"]) == (1, "kind 1", 2)
        assert (row[f"{kind}_AP"], row[f"{kind}_AP50"]) == pytest.approx((ap, self.LOW))

    def test_a_class_without_an_object_is_in_no_mean(self, tmp_path: Path) -> None:
        wrong = detection((10, 180, 100, 100), 0.95, category=2)
        found = DetectionResults([*(detection(*d) for d in self.DETECTIONS), wrong], {})
        result = score(read(tmp_path, [truth(1, self.A), truth(2, self.B)], categories=2), found)
        assert result["box"]["AP50"] == pytest.approx(self.LOW)
        assert result["per_class"][1] == {"id": 2, "name": "kind 2", "objects": 0, "box_AP": None, "box_AP50": None,
                                          "mask_AP": None, "mask_AP50": None}  # fmt: skip

    def test_nothing_found_is_zero(self, tmp_path: Path) -> None:
        result = score(read(tmp_path, [truth(1, self.A)]), DetectionResults([], {}), resamples=3)
        assert (result["box"]["AP"], result["mask"]["AP50"], result["box"]["AR_100"]) == (0, 0, 0)
        assert result["interval_95"]["box"] == {"AP": None, "AP50": None}

    def test_a_image_that_could_not_be_read_is_left_out(self, tmp_path: Path) -> None:
        annotations = read(tmp_path, [truth(1, self.A), truth(2, self.B, image=2)], count=2)
        result = score(annotations, DetectionResults([detection(self.A, 0.9)], {2: ("b.png", "gone")}))
        assert (result["images"], result["box"]["AP"], result["per_class"][0]["objects"]) == (1, pytest.approx(1), 1)

    def test_a_mask_may_be_right_where_its_box_is_not(self, tmp_path: Path) -> None:
        item = detection(self.A, 0.9) | {"bbox": [300, 200, 50, 50]}
        result = score(read(tmp_path, [truth(1, self.A)]), DetectionResults([item], {}))
        assert (result["box"]["AP"], result["mask"]["AP"]) == (0, pytest.approx(1))


class TestCrowds:
    """One object, found; a second detection of a higher score lies on a crowd region. Ignored, AP is 1, else 1/2."""

    REGION = (200, 100, 160, 160)

    def result(self, tmp_path: Path, region: dict[str, Any] | None) -> dict[str, Any]:
        items = [truth(1, (10, 10, 100, 100)), *([region] if region else [])]
        found = [detection((10, 10, 100, 100), 0.6), detection((220, 120, 80, 80), 0.9)]
        return score(read(tmp_path, items), DetectionResults(found, {}))

    def region(self, scale: int) -> dict[str, Any]:
        whole = np.kron(pixels(self.REGION).numpy().astype(np.uint8), np.ones((scale, scale), np.uint8))
        runs = coco.encode(np.asfortranarray(whole))
        encoded = {"size": [int(v) for v in runs["size"]], "counts": runs["counts"].decode()}
        return truth(2, self.REGION, crowd=1) | {"segmentation": encoded}

    @pytest.mark.parametrize("kind", ["box", "mask"])
    @pytest.mark.parametrize("scale", [1, 2, 3])
    def test_are_ignored_whatever_size_they_are_stored_at(self, tmp_path: Path, kind: str, scale: int) -> None:
        assert self.result(tmp_path, self.region(scale))[kind]["AP"] == pytest.approx(1)

    @pytest.mark.parametrize("kind", ["box", "mask"])
    def test_without_the_region_the_detection_is_wrong(self, tmp_path: Path, kind: str) -> None:
        assert self.result(tmp_path, None)[kind]["AP"] == pytest.approx(0.5)

    def test_a_region_of_polygons(self, tmp_path: Path) -> None:
        assert self.result(tmp_path, truth(2, self.REGION, crowd=1))["mask"]["AP"] == pytest.approx(1)

    def test_objects_of_a_class_do_not_count_crowds(self, tmp_path: Path) -> None:
        assert self.result(tmp_path, self.region(2))["per_class"][0]["objects"] == 1


def random_set(folder: Path, *, count: int, seed: int = 0) -> tuple[Annotations, DetectionResults, dict[str, Any]]:
    """Objects of three classes and all sizes, and detections that are near them, doubled or wrong."""
    draw = np.random.default_rng(seed)

    def box(low: int, high: int) -> Box:
        w, h = (int(v) for v in draw.integers(low, high, 2))
        return int(draw.integers(0, WIDTH - w)), int(draw.integers(0, HEIGHT - h)), w, h

    items: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, count + 1):
        for _ in range(int(draw.integers(0, 6))):
            low, high = ((6, 30), (35, 90), (100, 200))[int(draw.integers(3))]
            items.append(truth(len(items) + 1, box(low, high), image=image, category=int(draw.integers(1, 4))))
            x, y, w, h = items[-1]["bbox"]
            for _ in range(int(draw.integers(0, 3))):
                moved = (x + int(draw.integers(-2, 3)), y, max(4, w - int(draw.integers(0, w // 3 + 1))), h)
                moved = (min(max(moved[0], 0), WIDTH - moved[2]), *moved[1:])
                category = items[-1]["category_id"] if draw.random() < 0.8 else int(draw.integers(1, 4))
                found.append(detection(moved, float(draw.random()), image=image, category=category))
        found.append(detection(box(6, 200), float(draw.random()), image=image, category=int(draw.integers(1, 4))))
    annotations = read(folder, items, count=count, categories=3)
    return annotations, DetectionResults(found, {}), json.loads((folder / "t.json").read_text())


def by_files(content: dict[str, Any], found: list[dict[str, Any]], folder: Path, kind: str) -> NDArray[np.float64]:
    """As a user of pycocotools does it: two files, loaded, evaluated, summarised."""
    key = {"bbox": "bbox", "segm": "segmentation"}[kind]
    results = [{k: v for k, v in item.items() if k in ("image_id", "category_id", "score", key)} for item in found]
    with contextlib.redirect_stdout(io.StringIO()):
        side = COCO(str(write_json(folder / "truth.json", content)))
        evaluation = COCOeval(side, side.loadRes(str(write_json(folder / "found.json", results))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_all_measures_are_pycocotools(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    annotations, predictions, content = random_set(tmp_path, count=12)
    result = score(annotations, predictions)
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        expected = by_files(content, predictions.detections, tmp_path, theirs)
        assert [result[kind][name] for name in MEASURES] == pytest.approx(expected.tolist())
        assert min(expected) >= 0 and 0.1 < expected[0] < 0.9 and len(set(np.round(expected, 3))) > 6
    per_class = [row["box_AP"] for row in result["per_class"]]
    assert np.mean(per_class) == pytest.approx(result["box"]["AP"]) and len(set(per_class)) == 3
    assert capfd.readouterr().out == ""  # pycocotools is silent


class TestIntervals:
    def test_weights_count_images_as_often(self, tmp_path: Path) -> None:
        """An image of weight 2 is two images with the same objects and detections; one of weight 0 is absent."""
        annotations, predictions, content = random_set(tmp_path, count=8, seed=1)
        weights = np.array([1, 2, 0, 1, 3, 0, 1, 1])
        evaluation = self.evaluation(annotations, predictions)
        found = intervals.average_precision(intervals._collect(evaluation, 8), weights)
        copies: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": content["categories"]}
        repeated = []
        for image, weight in enumerate(weights, start=1):
            for copy in range(weight):
                number = 100 * copy + image
                copies["images"].append({**content["images"][image - 1], "id": number, "file_name": f"{number}.png"})
                copies["annotations"] += [{**a, "image_id": number, "id": 1000 * copy + a["id"]}
                                          for a in content["annotations"] if a["image_id"] == image]  # fmt: skip
                repeated += [{**d, "image_id": number} for d in predictions.detections if d["image_id"] == image]
        expected = by_files(copies, repeated, tmp_path, "bbox")
        assert found == pytest.approx((expected[0], expected[1]))
        ones = intervals.average_precision(intervals._collect(evaluation, 8), np.ones(8, int))
        assert ones == pytest.approx(tuple(score(annotations, predictions)["box"][key] for key in ("AP", "AP50")))

    @staticmethod
    def evaluation(annotations: Annotations, predictions: DetectionResults) -> Any:
        from matrix_ssl.evaluate.detection import scoring

        kept = []
        real, scoring.resample = scoring.resample, lambda evaluation, **_: kept.append(evaluation)
        try:
            score(annotations, predictions, resamples=1)
        finally:
            scoring.resample = real
        return kept[0]

    def test_they_cover_the_value_and_follow_the_seed(self, tmp_path: Path) -> None:
        annotations, predictions, _ = random_set(tmp_path, count=20, seed=2)
        first, again, other = (score(annotations, predictions, resamples=60, seed=seed) for seed in (0, 0, 1))
        assert first == again and first["interval_95"] != other["interval_95"]
        for kind in ("box", "mask"):
            for name in ("AP", "AP50"):
                low, high = first["interval_95"][kind][name]
                assert low < first[kind][name] < high and 0.01 < high - low < 0.6

    def test_resamples_that_agree_give_none(self, tmp_path: Path) -> None:
        """Every object of three images is found, so every resample has an AP of 1; or there is one image."""
        boxes = [(10, 10, 100, 100), (30, 20, 100, 100), (10, 50, 90, 100)]
        items = [truth(image, box, image=image) for image, box in enumerate(boxes, start=1)]
        found = [detection(box, 0.9, image=image) for image, box in enumerate(boxes, start=1)]
        perfect = score(read(tmp_path, items, count=3), DetectionResults(found, {}), resamples=50)
        wrong = [detection((10, 10, 90, 100), 0.9), detection((200, 10, 90, 100), 0.8)]
        single = score(read(tmp_path, items[:1]), DetectionResults(wrong, {}), resamples=50)
        assert perfect["box"]["AP"] == pytest.approx(1) and 0 < single["box"]["AP"] < 1
        for result in (perfect, single):
            assert result["interval_95"] == {kind: {"AP": None, "AP50": None} for kind in ("box", "mask")}

    def test_none_are_made_unasked(self, tmp_path: Path) -> None:
        annotations, predictions, _ = random_set(tmp_path, count=3)
        assert score(annotations, predictions)["interval_95"] == {}


def test_tables_show_what_there_is(tmp_path: Path) -> None:
    from rich.console import Console

    annotations, predictions, _ = random_set(tmp_path, count=5)
    predictions = dataclasses.replace(
        predictions, detections=[d for d in predictions.detections if d["category_id"] < 3]
    )
    result = score(annotations, predictions, resamples=5)
    result["box"]["AP_small"] = None
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(scores_table(result), classes_table(result))
    text = console.export_text()
    assert f"{100 * result['box']['AP']:.1f}" in text and f"{100 * result['mask']['AP50']:.1f}" in text
    assert "kind 1" in text and "on 5 images" in text and " - " in text
    assert max(map(len, text.splitlines())) <= 80
