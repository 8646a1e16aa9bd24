"""COCO files: what is read, what is left out and counted, and what is refused."""

import copy
import json
import math
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from matrix_ssl.errors import DataError, UnreadableImage
from matrix_ssl.evaluate.detection.annotations import check_objects, check_same_categories, read_annotations
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.evaluate.detection.shapes import RunLengths
from tests.conftest import unprivileged
from tests.support.drawn_coco import CATEGORIES, annotation, draw_set, square, write_json

MINI = Path(os.environ.get("MATRIX_SSL_DATA", "/nowhere")) / "coco_mini"


def content(*extra: dict[str, Any]) -> dict[str, Any]:
    """One image of 100 x 80 pixels with a square, and what a test adds."""
    images = [{"id": 5, "file_name": "a.png", "width": 100, "height": 80}]
    return {"images": images, "annotations": [annotation(1, 5, 7, square(50, 40, 10)), *extra],
            "categories": copy.deepcopy(CATEGORIES)}  # fmt: skip


def extra(**changes: Any) -> dict[str, Any]:
    """A second annotation with some values changed."""
    return annotation(2, 5, 3, square(30, 30, 10)) | changes


def read(tmp_path: Path, value: Any) -> Any:
    return read_annotations(write_json(tmp_path / "a.json", value))


def test_what_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, content(extra(iscrowd=1)))
    assert [(c.id, c.name) for c in found.categories] == [(3, "disc"), (7, "square")]
    (image,) = found.images
    assert (image.id, image.name, image.height, image.width) == (5, "a.png", 80, 100)
    (instance,) = image.objects()
    assert (instance.id, instance.category, instance.area, instance.crowd) == (1, 7, 400.0, False)
    assert instance.box == (40, 30, 60, 50)
    assert [i.crowd for i in image.instances] == [False, True]
    assert (found.counts["images"], found.counts["instances"], found.counts["crowds"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({"bbox": [30, 30, 0, 10]}, "degenerate_boxes"),
        ({"bbox": [30, 30, 10, -1]}, "degenerate_boxes"),
        ({"bbox": [100, 30, 10, 10]}, "degenerate_boxes"),  # to the right of the image
        ({"bbox": [30, -20, 10, 20]}, "degenerate_boxes"),  # above it
        ({"segmentation": []}, "empty_masks"),
        ({"segmentation": None}, "empty_masks"),
        ({"segmentation": [[1, 1, 2, 2, 3, 3]]}, "empty_masks"),  # a line
        ({"segmentation": [square(200, 30, 10)]}, "empty_masks"),  # to the right of the image
        ({"segmentation": {"size": [80, 100], "counts": [8000]}}, "empty_masks"),
        ({"segmentation": {"size": [80, 100], "counts": [4, 4]}}, "empty_masks"),  # the rest is unknown
        ({"segmentation": {"size": [80, 100], "counts": "zzzz"}}, "empty_masks"),
        ({"segmentation": {"size": [100, 80], "counts": [4000, 4000]}}, "empty_masks"),  # lies on its side
        ({"segmentation": {"counts": [4000, 4000]}}, "empty_masks"),
        ({"segmentation": {"size": [100, 80], "counts": [4000, 4000]}, "iscrowd": 1}, "crowds_unusable"),
        ({"segmentation": [], "iscrowd": 1}, "crowds_unusable"),
    ],
)
def test_what_holds_nothing_is_left_out_and_counted(tmp_path: Path, changes: dict[str, Any], counted: str) -> None:
    found = read(tmp_path, content(extra(**changes)))
    assert [i.id for i in found.images[0].instances] == [1]
    expected = {"images": 1, "instances": 1, counted: 1}
    assert {key: count for key, count in found.counts.items() if count} == expected


def test_what_is_changed_is_counted(tmp_path: Path) -> None:
    out = extra(bbox=[90, 70, 30, 30], segmentation=[square(95, 75, 8), [1, 1, 2, 2]])
    small = {"size": [40, 50], "counts": [1000, 1000]}
    crowd = extra(id=3, iscrowd=1, segmentation=small)
    found = read(tmp_path, content(out, crowd))
    (_, clipped, region) = found.images[0].instances
    assert clipped.box == (90, 70, 120, 100)  # scoring sees the box as it was annotated
    assert len(clipped.shape.polygons) == 1
    assert isinstance(region.shape, RunLengths) and (region.shape.height, region.shape.width) == (40, 50)
    counts = {"images": 1, "instances": 2, "crowds": 1, "clipped_boxes": 1, "short_polygons": 1, "rescaled_masks": 1}
    assert {key: count for key, count in found.counts.items() if count} == counts


def test_whole_numbers_may_be_floats_or_text(tmp_path: Path) -> None:
    value = content(extra(image_id="5", category_id=3.0, iscrowd="0", id="2"))
    value["images"][0] |= {"id": "5", "width": 100.0, "height": "80"}
    value["categories"][0]["id"] = "3"
    (image,) = read(tmp_path, value).images
    assert (image.id, image.width, image.height) == (5, 100, 80)
    assert [(one.id, one.category, one.crowd) for one in image.instances] == [(1, 7, False), (2, 3, False)]


def test_a_single_polygon_without_the_list_around_it(tmp_path: Path) -> None:
    flat, nested = (read(tmp_path, content(extra(segmentation=one))) for one in (square(9, 9, 4), [square(9, 9, 4)]))
    assert flat.images[0].instances[1].shape.area() == nested.images[0].instances[1].shape.area() == 64


@pytest.mark.parametrize(
    "root",
    [{"id": 0, "name": "disc", "supercategory": "none"}, {"id": 0, "name": "shapes", "supercategory": "none"}],
)
def test_an_unused_root_of_the_categories_is_no_class(tmp_path: Path, root: dict[str, Any]) -> None:
    value = content(extra())
    value["categories"] = [root, *({**one, "supercategory": "shapes"} for one in value["categories"])]
    found = read(tmp_path, value)
    assert [c.name for c in found.categories] == ["disc", "square"]
    assert found.unused == (root["name"],)
    value["annotations"][0]["category_id"] = 0
    if root["name"] == "disc":
        with pytest.raises(DataError, match="two categories have the name 'disc'"):
            read(tmp_path, value)
    else:
        assert [c.name for c in read(tmp_path, value).categories] == ["shapes", "disc", "square"]


def test_boxes_of_two_corners_are_suspected(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"bbox seems to hold x0, y0, x1, y1 \(annotation 1: \[40.0, 30.0, 60.0, 50.0\]"
    ):
        read(tmp_path, changed_boxes([40, 30, 60, 50]))
    read(tmp_path, changed_boxes([40, 30, 20, 20]))
    boxes = content()
    boxes["annotations"] = [extra(id=k, bbox=[30 + k, 30 + k, 90, 70], segmentation=[]) for k in range(12)]
    with pytest.raises(DataError, match="bbox seems to hold"):
        read_annotations(write_json(tmp_path / "a.json", boxes), masks=False)


def changed_boxes(box: list[float]) -> dict[str, Any]:
    value = content()
    value["annotations"][0]["bbox"] = box
    return value


def test_boxes_without_masks(tmp_path: Path) -> None:
    value = content()
    value["annotations"][0]["segmentation"] = []
    found = read(tmp_path, value)
    with pytest.raises(
        DataError, match=r"no image has a usable instance to learn \(1 instances .* mask is missing .*--no-masks"
    ):
        check_objects(found, "to learn")
    boxes = read_annotations(tmp_path / "a.json", masks=False)
    check_objects(boxes, "to learn")
    (one,) = boxes.images[0].objects()
    assert (one.box, one.shape.area()) == ((40, 30, 60, 50), 400)


@pytest.mark.parametrize("masks", [False, True])
def test_a_box_far_beyond_the_image_takes_no_memory(tmp_path: Path, masks: bool) -> None:
    """pycocotools takes memory for every pixel of an outline, and ends the process where there is none."""
    value = content(extra(bbox=[0, 0, 1e9, 1e9]))
    found = read_annotations(write_json(tmp_path / "a.json", value), masks=masks)
    image = found.images[0]
    assert found.counts["clipped_boxes"] == 1 and image.instances[1].box == (0, 0, 1e9, 1e9)
    if not masks:
        assert image.instances[1].shape.area() <= 9 * image.height * image.width


def test_an_area_that_is_missing_is_that_of_the_mask(tmp_path: Path) -> None:
    value = content(extra(segmentation={"size": [80.0, "100"], "counts": ["100", 50.0, 7850]}))
    del value["annotations"][0]["area"]
    value["annotations"][1]["area"] = None
    assert [i.area for i in read(tmp_path, value).images[0].instances] == [400.0, 50.0]


def broken(where: str, **changes: Any) -> dict[str, Any]:
    """The content with one entry changed; a value of None removes a key."""
    value = content(extra())
    entry = value[where][-1]
    entry |= changes
    for key in [key for key, new in changes.items() if new is None]:
        del entry[key]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "is not a COCO annotation file: it has no list 'images'"),
        ({"images": {}}, "it has no list 'images'"),
        ({"images": [], "annotations": []}, "it has no list 'categories'"),
        ({"images": [], "annotations": [], "categories": [{}]}, "the list 'images' is empty"),
        ({"images": [3], "annotations": [], "categories": []}, "'images' must be a list of objects"),
        (broken("annotations", image_id=6), "annotation 2: image_id 6 is not among the 1 images"),
        (broken("annotations", image_id="five"), "annotation 2: image_id 'five' is not among"),
        (broken("annotations", image_id=5.5), "annotation 2: image_id 5.5 is not among"),
        (broken("annotations", image_id=None), "annotation 2: image_id None is not among"),
        (broken("annotations", category_id=4), "annotation 2: category_id 4 is not among the 2 categories"),
        (broken("annotations", category_id=True), "annotation 2: category_id True is not among"),
        (broken("annotations", id=1), "annotation id 1 is repeated"),
        (broken("annotations", id=None), "annotation number 1 of the list has the id None"),
        (broken("annotations", bbox=[1, 2, 3]), r"annotation 2: bbox \[1, 2, 3\] must be four numbers"),
        (broken("annotations", bbox=[1, 2, 3, math.nan]), "annotation 2: bbox .* must be four numbers"),
        (broken("annotations", bbox=[1, 2, 3, "4"]), "annotation 2: bbox .* must be four numbers"),
        (broken("annotations", bbox=None), "annotation 2: bbox None must be four numbers"),
        (broken("annotations", area="big"), "annotation 2: area 'big' is not a number"),
        (broken("annotations", area=-4), "annotation 2: area -4 is not a number of pixels"),
        (content() | {"annotations": [extra(bbox=[0.1, 0.2, 0.5, 0.5])]}, "bbox seems to hold parts of the image"),
        (broken("annotations", iscrowd=2), "annotation 2: iscrowd 2 must be 0 or 1"),
        (broken("annotations", segmentation="x"), "annotation 2: segmentation must be a list of polygons"),
        (broken("annotations", segmentation=[1, 2, 3]), "annotation 2: segmentation must be a list of polygons"),
        (broken("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 2: a polygon must be a list of num"),
        (broken("annotations", segmentation=[[1, 2, 3, 4, 5, math.inf]]), "annotation 2: a polygon must be a list"),
        (broken("categories", name="disc"), "two categories have the name 'disc'"),
        (broken("categories", name=None), "category 7 has no name"),
        (broken("categories", id=3), "category id 3 is repeated"),
        (broken("images", width=0), "image 5: height 80 and width 0 must be integers"),
        (broken("images", height=None), "image 5: height None and width 100 must be integers"),
        (broken("images", height=2.5), "image 5: height 2.5 and width 100 must be integers"),
        (broken("images", file_name=None), "image 5 has no file_name"),
        (broken("images", file_name="../a.png"), r"file_name '../a.png' must be a relative path inside"),
        (broken("images", file_name="/etc/passwd"), "file_name '/etc/passwd' must be a relative path inside"),
        (broken("images", file_name=""), "file_name '' must be a relative path inside"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, value)
    assert str(tmp_path / "a.json") in str(caught.value)


def test_ids_and_names_of_images_differ(tmp_path: Path) -> None:
    value = content()
    value["images"].append({**value["images"][0], "file_name": "b.png"})
    with pytest.raises(DataError, match="image id 5 is repeated"):
        read(tmp_path, value)
    value["images"][1] |= {"id": 6, "file_name": "./a.png"}
    with pytest.raises(DataError, match=r"two images have the file_name 'a.png'"):
        read(tmp_path, value)


def test_files_that_cannot_be_read(tmp_path: Path, open_folder: Path) -> None:
    with pytest.raises(DataError, match=r"none.json: the file does not exist; name a COCO annotation file"):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\); name a COCO"):
        read_annotations(tmp_path)
    for text in ("", "{", "\xff", "[" * 100_000):
        (tmp_path / "a.json").write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match=r"a.json is not JSON \("):
            read_annotations(tmp_path / "a.json")
    secret = write_json(open_folder / "a.json", content())
    secret.chmod(0)
    with unprivileged(), pytest.raises(DataError, match="no permission to read the file"):
        read_annotations(secret)


def test_categories_of_two_parts(tmp_path: Path) -> None:
    train = read(tmp_path, content())
    fewer, renamed, more = content(), content(), content()
    del fewer["categories"][0]
    check_same_categories(train, read(tmp_path, fewer))
    renamed["categories"][0]["name"] = "ring"
    with pytest.raises(DataError, match=r"category 3 is 'ring', but 'disc' in .*; both need the same cat"):
        check_same_categories(train, read(tmp_path, renamed))
    more["categories"].append({"id": 9, "name": "star"})
    with pytest.raises(DataError, match=r"category 9 \('star'\) is not in"):
        check_same_categories(train, read(tmp_path, more))


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        draw_set(tmp_path / "in" / "deep", images=3)
        return tmp_path / "in"

    @staticmethod
    def pack(folder: Path, target: Path, name: str, mode: Any = "w") -> Path:
        with tarfile.open(target, mode) as archive:
            archive.add(folder, name)
        return target

    def test_an_archive_gives_the_bytes_of_the_folder_in_any_order(self, folder: Path, tmp_path: Path) -> None:
        plain = ImageFiles(folder)
        names = [f"deep/{index:03d}.png" for index in (2, 0, 1, 0)]
        for top in (".", "./train2017"):
            packed = ImageFiles(self.pack(folder, tmp_path / "a.tar", top))
            packed.check(names)
            assert [packed.read(name) for name in names] == [plain.read(name) for name in names]
            assert packed.missing(["deep", "train2017/deep/000.png", "deep/000.png"]) == (
                ["deep", "train2017/deep/000.png"] if top == "." else ["deep"]
            )

    def test_missing_images_are_told_together(self, folder: Path, tmp_path: Path) -> None:
        packed = self.pack(folder, tmp_path / "a.tar", ".")
        for location in (folder, packed):
            files = ImageFiles(location)
            names = ["deep/000.png", *(f"{letter}.png" for letter in "abcd")]
            with pytest.raises(DataError, match=r"lacks 4 of 5 images .* \(a.png, b.png, c.png, ...\); name the fol"):
                files.check(names)
            with pytest.raises(UnreadableImage, match="the file does not exist"):
                files.read("a.png")

    def test_links_in_an_archive_are_no_files(self, tmp_path: Path) -> None:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.addfile(link)
        assert ImageFiles(tmp_path / "a.tar").missing(["a.png"]) == ["a.png"]

    def test_what_is_neither_folder_nor_archive(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere does not exist; name a folder of images or a .tar file"):
            ImageFiles(tmp_path / "nowhere")
        (tmp_path / "a.txt").write_text("not an archive " * 100)
        squeezed = self.pack(folder, tmp_path / "a.tar.gz", ".", "w:gz")
        for path in (tmp_path / "a.txt", squeezed):
            with pytest.raises(DataError, match=r"is neither a folder nor a whole, uncompressed .tar file"):
                ImageFiles(path)

    def test_an_archive_that_was_cut_afterwards(self, folder: Path, tmp_path: Path) -> None:
        files = ImageFiles(self.pack(folder, tmp_path / "a.tar", "."))
        with (tmp_path / "a.tar").open("r+b") as file:
            file.truncate(3000)
        with pytest.raises(UnreadableImage, match="the archive is cut off"):
            files.read("deep/002.png")

    def test_what_is_forbidden(self, open_folder: Path) -> None:
        draw_set(open_folder / "in", images=1)
        self.pack(open_folder / "in", open_folder / "a.tar", ".")
        (open_folder / "in" / "000.png").chmod(0)
        (open_folder / "a.tar").chmod(0)
        with unprivileged():
            files = ImageFiles(open_folder / "in")
            with pytest.raises(UnreadableImage, match="no permission to read the file"):
                files.read("000.png")
            with pytest.raises(DataError, match=r"a.tar: no permission to read the file"):
                ImageFiles(open_folder / "a.tar")
        (open_folder / "in").chmod(0)
        with unprivileged(), pytest.raises(DataError, match="no permission to read the folder"):
            ImageFiles(open_folder / "in").check(["000.png"])
        (open_folder / "in").chmod(0o700)


@pytest.mark.skipif(not MINI.is_dir(), reason="MATRIX_SSL_DATA names no folder with coco_mini")
@pytest.mark.parametrize(("part", "images", "crowds", "empty"), [("train", 385, 41, 4), ("val", 97, 4, 0)])
def test_real_annotations(part: str, images: int, crowds: int, empty: int) -> None:
    raw = json.loads((MINI / f"instances_{part}.json").read_text())
    found = read_annotations(MINI / f"instances_{part}.json")
    assert len(found.images) == images and len(found.categories) == 80
    assert found.counts["instances"] + crowds == len(raw["annotations"])
    assert (found.counts["crowds"], found.counts["rescaled_masks"]) == (crowds, crowds)
    assert found.counts["images_without_instances"] == empty
    files = ImageFiles(MINI / f"coco_mini_{part}.tar")
    files.check([image.name for image in found.images])
    with tarfile.open(MINI / f"coco_mini_{part}.tar") as archive:
        for image in found.images[::60]:
            member = archive.extractfile(image.name)
            assert member is not None and member.read() == files.read(image.name)
