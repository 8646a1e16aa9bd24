"""COCO files from elsewhere: numbers that crash or fill the memory elsewhere are clipped, counted or one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.detection.annotations import read_annotations
from matrix_ssl.evaluate.detection.shapes import Polygons, clip_far, decode, encode

HEIGHT, WIDTH = 20, 30


def read(folder: Path, image: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The instances of an image of 30 x 20 pixels with one annotation."""
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 5, 1, 5, 5]]}
    images = [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH} | (image or {})]
    value = {"images": images, "categories": [{"id": 1, "name": "x"}], "annotations": [one | changes]}
    (folder / "a.json").write_text(json.dumps(value))
    return read_annotations(folder / "a.json").images[0].instances


@pytest.mark.parametrize("far", [1e3, 1e9, 1e12, 1e300])
def test_a_polygon_far_outside_covers_what_it_covers_inside(tmp_path: Path, far: float) -> None:
    pytest.importorskip("pycocotools")
    (instance,) = read(tmp_path, segmentation=[[-far, 5, far, 5, far, 15, -far, 15]])
    mask = decode(encode(instance.shape, HEIGHT, WIDTH))
    assert mask[5:15].all() and not mask[:5].any() and not mask[15:].any()


def test_a_polygon_beside_the_image_stays_as_it_is() -> None:
    polygon = np.array([[-29.0, -19.0], [59.0, -19.0], [10.0, 39.0]])
    assert clip_far(polygon, HEIGHT, WIDTH) is polygon


@pytest.mark.parametrize("seed", range(5))
def test_a_clipped_polygon_has_the_same_mask(seed: int) -> None:
    """As far as rounding allows: at the outline a pixel may differ."""
    pytest.importorskip("pycocotools")
    generator = np.random.default_rng(seed)
    polygon = generator.uniform(-100, 130, (5, 2))
    whole, part = (
        decode(encode(Polygons((points,)), HEIGHT, WIDTH))
        for points in (polygon, clip_far(polygon, HEIGHT, WIDTH))
        if len(points)
    )
    assert (whole != part).mean() < 0.02


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"bbox": [1, 1, int("9" * 400), 5]}, "400 digits"),
        ({"bbox": [1e308, 1, 1e308, 5]}, "bbox"),
        ({"image": {"height": 10**9, "width": 10**9}}, "268,435,456 pixels"),
        ({"image_id": [1]}, "image_id"),
        ({"category_id": {}}, "category_id"),
        ({"segmentation": [[[1, 2]]]}, "polygon"),
        ({"segmentation": [["a", "b"]]}, "polygon"),
        ({"area": True}, "area"),
    ],
)
def test_numbers_that_no_image_has_are_one_sentence(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    "runs",
    [
        {"size": [10**9, 15 * 10**8], "counts": [5 * 10**17, 10**18]},
        {"size": [HEIGHT, WIDTH], "counts": "9" * 10_000},
        {"size": [HEIGHT, WIDTH], "counts": [2**62, 2**62]},
        {"size": ["a", 2], "counts": []},
        {"size": None},
        {},
    ],
)
def test_run_lengths_of_no_image_are_left_out(tmp_path: Path, runs: dict[str, Any]) -> None:
    assert read(tmp_path, segmentation=runs) == ()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DataError, match="pipe"):
        read_annotations(tmp_path / "a.json")
