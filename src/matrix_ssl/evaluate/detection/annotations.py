"""Reads COCO annotation files, checks them as a whole, and counts unusable annotations.

A file that is not COCO JSON, ids that are repeated or refer to nothing, and values that are not numbers are errors.
Integers may be written as 3.0 or "3", and a single polygon without the list around it. Boxes that hold x0, y0, x1, y1
instead of x, y, width, height are an error, detected by comparison with the masks. Single annotations without an object
to learn or to detect are skipped and counted in ``Annotations.counts``.

Format: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; categories may have any ids.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.untrusted import MOST_TEXT, parse_json, read_file
from matrix_ssl.data.files.open_files import why_unreadable
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.detection.files import check_name
from matrix_ssl.evaluate.detection.shapes import MOST_PIXELS, Polygons, Shape, clip_far, is_rescaled, parse_run_lengths

# what is counted, including everything skipped or changed, by the name of its count
COUNTED = {
    "images": "images listed",
    "images_without_instances": "images without a usable instance, skipped in training",
    "instances": "usable instances",
    "crowds": "crowd regions, ignored in training and in scoring",
    "crowds_unusable": "crowd regions without a usable mask, skipped",
    "degenerate_boxes": "instances skipped because their box has no area inside the image",
    "empty_masks": "instances skipped because their mask is missing or cannot be read, or has no area",
    "short_polygons": "polygons of fewer than three points, skipped",
    "clipped_boxes": "instances whose box extends beyond the image, clipped in training",
    "rescaled_masks": "masks stored at a different size than the image's, rescaled",
}
_LONGEST = 20  # digits of a number that is written as a string
_MANY = 10  # boxes
_SMALLEST = 0.01  # side of a box in pixels, below which float32 cannot distinguish its two ends
_Sizes = dict[int, tuple[str, int, int]]  # file name, height and width of every image, by its id
_OUTSIDE = 0.01  # pixels by which a box may extend beyond the image before it counts as clipped; COCO rounds to 0.01


@dataclass(frozen=True)
class Category:
    """A class of objects; its label in training is its position in the list of categories, from 1."""

    id: int
    name: str


@dataclass(frozen=True)
class Instance:
    """One annotated object, or a region with a crowd of objects."""

    id: int
    category: int  # its id
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, as annotated
    area: float  # of the mask, pixels
    shape: Shape
    crowd: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotated objects."""

    id: int
    name: str  # of its file
    height: int
    width: int
    instances: tuple[Instance, ...]

    def objects(self) -> tuple[Instance, ...]:
        """The instances that are not crowds."""
        return tuple(instance for instance in self.instances if not instance.crowd)


@dataclass(frozen=True)
class Annotations:
    """A checked annotation file."""

    path: Path
    sha256: str  # of the file
    images: tuple[AnnotatedImage, ...]  # in the order of the file
    categories: tuple[Category, ...]  # in the order of their ids
    counts: dict[str, int]  # by the names in COUNTED
    unused: tuple[str, ...] = ()  # categories that are not classes: parents of the others to which no object belongs


def read_annotations(path: Path, *, masks: bool = True) -> Annotations:
    """Reads and checks an annotation file; without ``masks``, an object's shape is its box.

    Raises:
        DataError: the file cannot be read or is not in COCO's format, an id is repeated or refers to nothing, it has no
            image, or its boxes are probably corners.
    """
    content, sha256 = _load(path)
    used = {number for item in content["annotations"] if _is_whole(number := whole(item.get("category_id")))}
    categories, unused = _categories(content["categories"], used, str(path))
    counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    sizes = _sizes(content["images"], str(path))
    instances = _instances(
        content["annotations"], sizes, {category.id for category in categories}, counts, str(path), masks=masks
    )
    _refuse_corners([one for several in instances.values() for one in several], sizes, instances, str(path))
    images = tuple(
        AnnotatedImage(number, name, height, width, tuple(instances.get(number, ())))
        for number, (name, height, width) in sizes.items()
    )
    counts["images"] = len(images)
    counts["images_without_instances"] = sum(not image.objects() for image in images)
    return Annotations(path, sha256, images, categories, dict(counts), unused)


def check_objects(annotations: Annotations, purpose: str) -> None:
    """Raises DataError, with the reason, if no image has an object for a purpose such as ``"to learn"``."""
    if any(image.objects() for image in annotations.images):
        return
    counts = annotations.counts
    listed = [f"{counts[name]} {COUNTED[name]}" for name in ("empty_masks", "degenerate_boxes") if counts[name]]
    why = f" ({'; '.join(listed)})" if listed else ""
    remedy = "use --no-masks for boxes alone" if counts["empty_masks"] else "check its annotations"
    raise DataError(f"{annotations.path}: no image has a usable instance {purpose}{why}; {remedy}.")


def check_same_categories(train: Annotations, val: Annotations) -> None:
    """Raises DataError unless the categories of ``val`` are among those of ``train``, with the same ids and names."""
    names = {category.id: category.name for category in train.categories}
    for category in val.categories:
        if category.id not in names:
            raise DataError(
                f"{val.path}: category {category.id} ({category.name!r}) is not in {train.path}; both need the same "
                f"categories."
            )
        if names[category.id] != category.name:
            raise DataError(
                f"{val.path}: category {category.id} is {category.name!r}, but {names[category.id]!r} in {train.path}; "
                f"both need the same categories."
            )


def _load(path: Path) -> tuple[dict[str, list[Any]], str]:
    try:
        raw = read_file(path, most=MOST_TEXT)
    except OSError as error:
        raise DataError(f"{path}: {why_unreadable(error, setting='workers')}; name a COCO annotation file.") from None
    try:
        content = parse_json(raw)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); name a COCO annotation file.") from None
    except MemoryError:
        raise DataError(f"{path} does not fit into memory; split it, or use a larger machine.") from None
    keys = ("images", "annotations", "categories")
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path} is not a COCO annotation file: it has no list {key!r}; it needs {', '.join(keys)}."
            )
        if not all(isinstance(item, dict) for item in content[key]):
            raise DataError(f"{path}: {key!r} must be a list of objects.")
    for key in ("images", "categories"):
        if not content[key]:
            raise DataError(f"{path}: the list {key!r} is empty; name a file with some.")
    return content, hashlib.sha256(raw).hexdigest()


def _categories(
    items: list[dict[str, Any]], used: set[int], where: str
) -> tuple[tuple[Category, ...], tuple[str, ...]]:
    """The classes, and the names of parent categories, such as Roboflow's, that no annotation uses."""
    numbered = list(_numbered(items, f"{where}: category"))
    names: dict[int, str] = {}
    unused = []
    for number, item in numbered:
        name = item.get("name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: category {number} has no name.")
        is_root = number not in used and item.get("supercategory") in (None, "", "none", name)
        if is_root and any(name in (o.get("supercategory"), o.get("name")) for k, o in numbered if k != number):
            unused.append(name)
            continue
        if name in names.values():
            raise DataError(f"{where}: two categories have the name {name!r}; rename one.")
        names[number] = name
    return tuple(Category(number, names[number]) for number in sorted(names)), tuple(unused)


def _sizes(items: list[dict[str, Any]], where: str) -> _Sizes:
    sizes: _Sizes = {}
    names: set[str] = set()
    for number, item in _numbered(items, f"{where}: image"):
        here = f"{where}: image {number}"
        if not isinstance(item.get("file_name"), str):
            raise DataError(f"{here} has no file_name.")
        name = check_name(item["file_name"], here)
        if name in names:
            raise DataError(f"{where}: two images have the file_name {name!r}; remove one.")
        names.add(name)
        height, width = whole(item.get("height")), whole(item.get("width"))
        if not _is_whole(height) or not _is_whole(width) or min(height, width) < 1:
            raise DataError(f"{here}: height {height!r} and width {width!r} must be integers, in pixels.")
        if height * width > MOST_PIXELS:
            raise DataError(
                f"{here}: height {height} and width {width} are more than {MOST_PIXELS:,} pixels; fix them."
            )
        sizes[number] = name, height, width
    return sizes


def _instances(
    items: list[dict[str, Any]], sizes: _Sizes, categories: set[int], counts: Counter[str], where: str, *, masks: bool
) -> dict[int, list[Instance]]:
    """The usable instances of every image, by its id; the others are counted."""
    instances: dict[int, list[Instance]] = defaultdict(list)
    for number, item in _numbered(items, f"{where}: annotation"):
        here = f"{where}: annotation {number}"
        image, category = whole(item.get("image_id")), whole(item.get("category_id"))
        if not _is_whole(image) or image not in sizes:
            raise DataError(f"{here}: image_id {image!r} is not among the {len(sizes)} images.")
        if not _is_whole(category) or category not in categories:
            raise DataError(f"{here}: category_id {category!r} is not among the {len(categories)} categories.")
        crowd = whole(item.get("iscrowd", 0))
        if crowd not in (0, 1):
            raise DataError(f"{here}: iscrowd {crowd!r} must be 0 or 1.")
        _, height, width = sizes[image]
        box = _box(item.get("bbox"), here)
        x0, y0, x1, y1 = box
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        shape: Shape | None = Polygons((clip_far(corners, height, width),))
        if masks:
            shape = _shape(item.get("segmentation"), height, width, counts, here)
        inside = min(min(x1, width) - max(x0, 0), min(y1, height) - max(y0, 0)) >= _SMALLEST
        if shape is None or not inside:
            counts["crowds_unusable" if crowd else "empty_masks" if inside else "degenerate_boxes"] += 1
            continue
        out = max(-x0, -y0, x1 - width, y1 - height) > _OUTSIDE
        counts["clipped_boxes"] += out and not crowd
        counts["rescaled_masks"] += is_rescaled(shape, height, width)
        counts["crowds" if crowd else "instances"] += 1
        area = shape.area() if item.get("area") is None else item["area"]
        if not _is_finite(area) or area < 0:
            raise DataError(f"{here}: area {area!r} is not a number of pixels; fix it or leave it out.")
        instances[image].append(Instance(number, category, box, float(area), shape, bool(crowd)))
    return instances


def _box(value: Any, where: str) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_finite, value)):
        raise DataError(f"{where}: bbox {value!r} must be four numbers, x, y, width and height.")
    x, y, width, height = map(float, value)
    box = x, y, x + width, y + height
    if not all(map(math.isfinite, box)):
        raise DataError(f"{where}: bbox {value!r} must be four numbers, x, y, width and height.")
    return box


def _shape(value: Any, height: int, width: int, counts: Counter[str], where: str) -> Shape | None:
    """The mask; None if there is none or it covers nothing."""
    if value is None:
        return None
    if isinstance(value, dict):
        runs = parse_run_lengths({key: _wholes(value.get(key)) for key in ("size", "counts")})
        return runs if runs is not None and runs.area() > 0 and runs.fits(height, width) else None
    if isinstance(value, list) and len(value) >= 6 and all(map(_is_finite, value)):
        value = [value]  # a single polygon without the list around it
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        raise DataError(
            f"{where}: segmentation must be a list of polygons or a run-length encoding with size and counts."
        )
    polygons: list[NDArray[np.float64]] = []
    for polygon in value:
        points = _points(polygon)
        if points is None:
            raise DataError(f"{where}: a polygon must be a list of numbers x, y, x, y and so on.")
        if len(points) < 3:
            counts["short_polygons"] += 1
        elif len(points := clip_far(points, height, width)) >= 3:
            polygons.append(points)
    shape = Polygons(tuple(polygons))
    return shape if shape.touches(height, width) else None


def _wholes(values: Any) -> Any:
    """Converts the integral values of a list to integers; anything else is returned unchanged."""
    return list(map(whole, values)) if isinstance(values, list) else values


def _points(numbers: list[Any]) -> NDArray[np.float64] | None:
    """Numbers x, y, x, y as (points, 2); checked as an array, since a large dataset has tens of millions of them."""
    try:
        values = np.array(numbers) if numbers else np.zeros(0)
    except ValueError:  # lists of different lengths
        return None
    if values.ndim != 1 or values.dtype.kind not in "iuf" or len(values) % 2 or not np.isfinite(values).all():
        return None
    return values.astype(np.float64).reshape(-1, 2)


def _numbered(items: list[dict[str, Any]], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Items with their ids, which must be distinct integers."""
    seen: set[int] = set()
    for place, item in enumerate(items):
        number = whole(item.get("id"))
        if not _is_whole(number):
            raise DataError(f"{what} number {place} of the list has the id {number!r}; expected an integer.")
        if number in seen:
            raise DataError(f"{what} id {number} is repeated; ids must differ.")
        seen.add(number)
        yield number, item


def whole(value: Any) -> Any:
    """Converts an integer written as 3.0 or "3" to an int; anything else is returned unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < _LONGEST:
        return int(value)
    return value


def _refuse_corners(every: list[Instance], sizes: _Sizes, instances: dict[int, list[Instance]], where: str) -> None:
    """Raises DataError if boxes seem to be corners x0, y0, x1, y1, or fractions of the image.

    Corners: more masks fill that box than the one by width and height, or every box has its corners in this order and
    most of many boxes, read by width and height, leave their image. Fractions: all boxes lie in an image's first pixel.
    """
    if not every:
        return

    largest = max(side for _, *sides in sizes.values() for side in sides)
    if largest > _MANY and all(max(map(abs, one.box)) <= 1 for one in every):
        raise DataError(
            f"{where}: bbox seems to hold parts of the image's sides (annotation {every[0].id}: {list(every[0].box)}, "
            "from corner to corner), but COCO's are pixels; multiply them by width and height."
        )

    def corners(one: Instance) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = one.box
        return x0, y0, x1 - x0, y1 - y0

    extents = [(one, one.shape.extent()) for one in every if isinstance(one.shape, Polygons)]
    as_corners = [_is_near(corners(one), extent) and not _is_near(one.box, extent) for one, extent in extents]
    ordered = all(a < c and b < d for a, b, c, d in map(corners, every))
    outside = [
        one.box[2] > sizes[image][2] + 1 or one.box[3] > sizes[image][1] + 1
        for image, several in instances.items()
        for one in several
    ]
    many_outside = ordered and len(every) >= _MANY and sum(outside) > len(every) / 2
    if sum(as_corners) > len(every) / 2 or many_outside:
        raise DataError(
            f"{where}: bbox seems to hold x0, y0, x1, y1 (annotation {every[0].id}: {list(corners(every[0]))}), but "
            "COCO's are x, y, width and height; convert them."
        )


def _is_near(box: tuple[float, ...], extent: tuple[float, ...]) -> bool:
    """Whether two boxes differ at every side by no more than rounding and drawing can explain."""
    most = max(2.0, 0.05 * max(extent[2] - extent[0], extent[3] - extent[1]))
    return all(abs(a - b) <= most for a, b in zip(box, extent, strict=True))


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
