"""Masks, images and targets at the size of the network, and which of them an iteration gets."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from pycocotools import mask as coco
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from matrix_ssl.config import override
from matrix_ssl.errors import DataError, UnreadableImage
from matrix_ssl.evaluate.detection.annotations import AnnotatedImage, Instance, read_annotations
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.evaluate.detection.images import TrainingImages, fit, make_target, read_ahead, read_pixels, resize
from matrix_ssl.evaluate.detection.settings import DetectionSettings
from matrix_ssl.evaluate.detection.shapes import (
    Polygons,
    RunLengths,
    decode,
    encode,
    encode_pixels,
    parse_run_lengths,
    paste,
)
from tests.support.drawn_coco import draw_set, square, write_json


def theirs(runs: Any) -> NDArray[np.uint8]:
    """pycocotools' decoding, which warns with recent releases of NumPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return coco.decode(runs)


def random_masks() -> list[NDArray[np.uint8]]:
    """Noise, long runs, and the extremes."""
    draw = np.random.default_rng(0)
    noise = [(draw.random((h, w)) < p).astype(np.uint8) for h, w, p in ((7, 5, 0.5), (1, 9, 0.3), (40, 33, 0.02))]
    block = np.zeros((300, 200), np.uint8)
    block[40:290, 3:150] = 1
    return [*noise, block, np.zeros((4, 4), np.uint8), np.ones((300, 300), np.uint8)]


class TestShapes:
    def test_run_lengths_are_pycocotools(self) -> None:
        for pixels in random_masks():
            packed = coco.encode(np.asfortranarray(pixels))
            text = {"size": list(pixels.shape), "counts": packed["counts"].decode()}
            assert np.array_equal(decode(packed), pixels) and np.array_equal(decode(text), theirs(packed))
            runs = parse_run_lengths(text)
            assert runs is not None and runs.area() == pixels.sum() == coco.area(packed)
            again = parse_run_lengths({"size": text["size"], "counts": runs.counts.tolist()})
            assert again is not None and np.array_equal(again.counts, runs.counts)
            assert encode(runs, *pixels.shape)["counts"] == packed["counts"]
            assert encode_pixels(torch.from_numpy(pixels)) == text

    @pytest.mark.parametrize(
        "counts",
        ["", "zzzzzzzz", "0", "a", "é", " ", "PPPPPPPPPPPPPPPPPPP0", [], [-1, 17], [15], [17], [1.5, 14.5], None, 16],
    )
    def test_run_lengths_without_a_meaning(self, counts: Any) -> None:
        assert parse_run_lengths({"size": [4, 4], "counts": counts}) is None
        assert parse_run_lengths({"size": [4], "counts": [16]}) is None
        assert parse_run_lengths({"size": [4, "4"], "counts": [16]}) is None

    def test_polygons_are_drawn_at_the_size_of_the_network(self) -> None:
        shape = Polygons((np.array(square(30, 20, 10)).reshape(-1, 2), np.array(square(50, 20, 4)).reshape(-1, 2)))
        assert shape.area() == 400 + 64
        drawn = decode(encode(shape, 80, 240, scale=(3.0, 2.0)))
        expected = np.zeros((80, 240), np.uint8)
        expected[20:60, 60:120] = 1
        expected[32:48, 138:162] = 1
        assert np.array_equal(drawn, expected)

    def test_run_lengths_are_rescaled(self) -> None:
        """A crowd region kept at twice the image's size."""
        whole = np.zeros((160, 200), np.uint8)
        whole[40:80, 100:200] = 1
        runs = parse_run_lengths(
            {"size": [160, 200], "counts": coco.encode(np.asfortranarray(whole))["counts"].decode()}
        )
        assert runs is not None and runs.fits(80, 100)
        expected = np.zeros((80, 100), np.uint8)
        expected[20:40, 50:100] = 1
        assert np.array_equal(decode(encode(runs, 80, 100, scale=(1.0, 1.0))), expected)

    @pytest.mark.parametrize(("height", "width", "fits"), [(428, 640, True), (320, 480, True), (321, 480, True),
                                                           (640, 428, False), (480, 480, False)])  # fmt: skip
    def test_only_the_same_ratio_of_sides_is_rescaled(self, height: int, width: int, fits: bool) -> None:
        assert RunLengths(428, 640, np.array([428 * 640])).fits(height, width) == fits

    def test_pasting_an_even_mask_fills_the_pixels_whose_centres_are_in_the_box(self) -> None:
        for box in (
            (10.0, 20.0, 30.0, 50.0),
            (9.6, 19.4, 30.4, 50.6),
            (-5.0, -7.0, 12.0, 9.0),
            (90.0, 70.0, 120.0, 99.0),
        ):
            pasted = paste(torch.ones(28, 28), torch.tensor(box), 80, 100)
            x, y = torch.arange(100) + 0.5, torch.arange(80) + 0.5
            inside = ((y > box[1]) & (y < box[3]))[:, None] & ((x > box[0]) & (x < box[2]))
            # towards the border of the box the value falls to a half, which it reaches there
            assert torch.equal(pasted, inside), box

    def test_pasting_keeps_the_place_of_a_half(self) -> None:
        mask = torch.zeros(28, 28)
        mask[:, 14:] = 1
        pasted = paste(mask, torch.tensor([0.0, 0.0, 56.0, 56.0]), 56, 56)
        assert not pasted[1:-1, :28].any() and pasted[1:-1, 28:55].all()
        assert not paste(mask, torch.tensor([200.0, 0.0, 256.0, 56.0]), 56, 56).any()
        assert not paste(mask, torch.tensor([5.0, 5.0, 5.0, 9.0]), 56, 56).any()


class TestSizes:
    @pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427), (333, 500), (100, 1000), (375, 500)])
    def test_the_rule_is_torchvisions(self, height: int, width: int) -> None:
        transform = GeneralizedRCNNTransform(800, 1333, [0.0], [1.0]).eval()
        resized, _ = transform.resize(torch.zeros(1, height, width))
        found = fit(AnnotatedImage(1, "", height, width, ()), shorter=800, longest=1333)
        assert max(abs(a - b) for a, b in zip(found, resized.shape[1:], strict=True)) <= 1  # it rounds down

    def test_resizing_an_even_ramp_keeps_it(self) -> None:
        ramp = torch.arange(64).repeat(3, 40, 1).byte() * 4
        half = resize(ramp, 20, 32)
        assert half.shape == (3, 20, 32) and half.min() >= 0 and half.max() <= 1
        torch.testing.assert_close(half[0, 0, 4:28] * 255, torch.arange(4, 28) * 8 + 2.0, atol=0.6, rtol=0)
        assert torch.equal(resize(ramp, 20, 32, flip=True), half.flip(2))


def image_bytes(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


class TestPixels:
    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "RGBA", "LA", "I;16"])
    def test_every_kind_of_image_becomes_colours(self, tmp_path: Path, mode: str) -> None:
        grey = Image.fromarray(np.tile(np.repeat(np.array([0, 255], np.uint8), 10), (12, 1)))
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
        form = "JPEG" if mode == "CMYK" else "PNG"
        (tmp_path / "a").write_bytes(image_bytes(image, form))
        pixels = read_pixels(AnnotatedImage(1, "a", 12, 20, ()), ImageFiles(tmp_path))
        assert pixels.shape == (3, 12, 20) and pixels.dtype == torch.uint8
        assert pixels[:, :, :8].max() <= 10 and pixels[:, :, 12:].min() >= 245

    def test_the_orientation_of_a_camera_is_applied_before_the_size_is_compared(self, tmp_path: Path) -> None:
        tags = Image.Exif()
        tags[ExifTags.Base.Orientation] = 6  # lies on its left side
        image = Image.new("RGB", (20, 12), "black")
        image.paste("white", (0, 0, 10, 12))
        (tmp_path / "a").write_bytes(image_bytes(image, "JPEG", exif=tags, quality=95))
        pixels = read_pixels(AnnotatedImage(1, "a", 20, 12, ()), ImageFiles(tmp_path))
        assert pixels[:, :8].min() > 200 and pixels[:, 12:].max() < 50
        with pytest.raises(UnreadableImage, match="it is 12 x 20 pixels, its annotations are for 20 x 12"):
            read_pixels(AnnotatedImage(1, "a", 12, 20, ()), ImageFiles(tmp_path))


def test_targets_follow_the_image() -> None:
    shapes = [Polygons((np.array(square(x, 40, 10)).reshape(-1, 2),)) for x in (30, 95)]
    boxes = [(20.0, 30.0, 40.0, 50.0), (85.0, 30.0, 105.0, 50.0)]
    instances = [
        Instance(i, 7, box, 400.0, shape, False) for i, (box, shape) in enumerate(zip(boxes, shapes, strict=True))
    ]
    crowd = Instance(9, 7, boxes[0], 400.0, shapes[0], True)
    image = AnnotatedImage(1, "", 80, 100, (*instances, crowd))
    plain = make_target(image, {7: 2}, 160, 200, flip=False)
    assert plain["labels"].tolist() == [2, 2]
    assert plain["boxes"].tolist() == [[40, 60, 80, 100], [170, 60, 200, 100]]  # the second one is clipped
    assert plain["masks"].shape == (2, 160, 200)
    turned = make_target(image, {7: 2}, 160, 200, flip=True)
    assert turned["boxes"].tolist() == [[120, 60, 160, 100], [0, 60, 30, 100]]
    assert torch.equal(turned["masks"], plain["masks"].flip(2))
    for target in (plain, turned):
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = torch.where(mask > 0)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert [float(v) for v in extent] == box.tolist()


class TestBatches:
    SETTINGS = override(
        DetectionSettings(), ["batch_size=4", "train_sizes=40,56,72", "train_longest=96", "workers=0", "seed=3"]
    )

    @staticmethod
    def images(folder: Path, settings: DetectionSettings, *, rank: int = 0, processes: int = 1) -> TrainingImages:
        if not (folder / "a.json").exists():
            write_json(folder / "a.json", draw_set(folder / "in", images=7))
        annotations = read_annotations(folder / "a.json")
        return TrainingImages(annotations, ImageFiles(folder / "in"), settings, rank=rank, processes=processes)

    def test_epochs_follow_each_other_without_a_gap(self, tmp_path: Path) -> None:
        images = self.images(tmp_path, self.SETTINGS)
        order = [index for iteration in range(7) for index in images.indices(iteration)]
        epochs = [order[start : start + 7] for start in range(0, 28, 7)]
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 4

    def test_a_batch_is_a_function_of_the_iteration(self, tmp_path: Path) -> None:
        straight = list(self.images(tmp_path, self.SETTINGS).batches(range(6)))
        resumed = list(self.images(tmp_path, self.SETTINGS).batches(range(3, 6)))
        threaded = list(self.images(tmp_path, override(self.SETTINGS, ["workers=3"])).batches(range(3, 6)))
        halves = [self.images(tmp_path, self.SETTINGS, rank=rank, processes=2) for rank in (0, 1)]
        parts = [list(half.batches(range(3, 6))) for half in halves]
        shapes = set()
        for place, batch in enumerate(straight[3:]):
            for other in (resumed[place], threaded[place]):
                assert batch.iteration == other.iteration == place + 3
                assert all(torch.equal(a, b) for a, b in zip(batch.images, other.images, strict=True))
                for a, b in zip(batch.targets, other.targets, strict=True):
                    assert all(torch.equal(a[key], b[key]) for key in ("boxes", "labels", "masks"))
            together = [*parts[0][place].images, *parts[1][place].images]
            assert all(torch.equal(a, b) for a, b in zip(batch.images, together, strict=True))
            shapes |= {min(image.shape[1:]) for image in batch.images}
        assert shapes == {40, 56, 72}

    def test_half_of_the_images_are_flipped(self, tmp_path: Path) -> None:
        """A disc lies left of a square in every image: category 3 before 7, labels 1 and 2."""
        batches = self.images(tmp_path, self.SETTINGS).batches(range(25))
        turned = [float(t["boxes"][0, 0] > t["boxes"][1, 0]) for batch in batches for t in batch.targets]
        assert all(
            t["labels"].tolist() == [1, 2] for t in next(self.images(tmp_path, self.SETTINGS).batches([0])).targets
        )
        assert 0.35 < np.mean(turned) < 0.65 and len(turned) == 100

    def test_a_image_that_cannot_be_used_is_replaced_and_reported(self, tmp_path: Path) -> None:
        images = self.images(tmp_path, self.SETTINGS)
        (tmp_path / "in" / "002.png").write_bytes(b"nothing")
        Image.new("RGB", (10, 10)).save(tmp_path / "in" / "003.png")
        batches = list(images.batches(range(7)))
        assert all(len(batch.images) == 4 for batch in batches)
        where = {Path(place).name: why for batch in batches for place, why in batch.unreadable}
        assert where == {
            "002.png": "not an image, or its first bytes are damaged",
            "003.png": "it is 10 x 10 pixels, its annotations are for 96 x 80",
        }

    def test_when_none_can_be_used(self, tmp_path: Path) -> None:
        images = self.images(tmp_path, self.SETTINGS)
        for path in (tmp_path / "in").iterdir():
            path.write_bytes(b"")
        with pytest.raises(DataError, match=r"7 images tried in a row cannot be read, .*: the file is empty"):
            next(images.batches([0]))

    def test_images_without_an_object_are_left_out(self, tmp_path: Path) -> None:
        content = draw_set(tmp_path / "in", images=3)
        content["annotations"] = content["annotations"][:2]
        for item in content["annotations"][:1]:
            item["iscrowd"] = 1
        write_json(tmp_path / "a.json", content)
        assert len(self.images(tmp_path, self.SETTINGS)) == 1
        content["annotations"].pop()
        write_json(tmp_path / "a.json", content)
        with pytest.raises(DataError, match="no image has a usable instance to learn"):
            self.images(tmp_path, self.SETTINGS)

    @pytest.mark.parametrize("threads", [0, 1, 3])
    def test_reading_ahead_keeps_the_order_and_raises_in_its_turn(self, threads: int) -> None:
        def function(key: int) -> int:
            if key == 20:
                raise DataError("twenty")
            return key * key

        results = []
        with pytest.raises(DataError, match="twenty"):
            for value in read_ahead(function, range(40), threads=threads):
                results.append(value)
        assert results == [key * key for key in range(20)]
        assert list(read_ahead(function, range(5), threads=threads)) == [0, 1, 4, 9, 16]
