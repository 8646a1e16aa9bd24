"""Masks of annotated objects (polygons or run lengths) drawn at any size, and predicted masks pasted into images.

COCO's run lengths count pixels down the columns, starting with the background and alternating between object and
background (pycocotools, maskApi). Drawing uses pycocotools, so masks are the same as in scoring.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from matrix_ssl.errors import import_extra

_MOST_DIGITS = 7  # five bits each, since counts are 32-bit numbers
_FARTHEST = 1e9  # pixels; coordinates beyond this are clipped to it
MOST_PIXELS = 2**28  # of an annotated image or mask
_SAME_RATIO = 0.02  # relative difference of two aspect ratios that rounding to whole pixels can explain


@dataclass(frozen=True)
class Polygons:
    """A mask as the union of polygons."""

    polygons: tuple[NDArray[np.float64], ...]  # (points, 2) each: x and y in pixels

    def area(self) -> float:
        """Sum of the polygons' areas, in pixels."""
        return sum(_area(polygon) for polygon in self.polygons)

    def extent(self) -> tuple[float, float, float, float]:
        """The smallest box around all points: x0, y0, x1, y1."""
        points = np.concatenate(self.polygons)
        (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
        return x0, y0, x1, y1

    def touches(self, height: int, width: int) -> bool:
        """Whether a polygon with non-zero area overlaps an image of this size."""
        return any(
            _area(p) > 0 and p.max(0).min() > 0 and p[:, 0].min() < width and p[:, 1].min() < height
            for p in self.polygons
        )


@dataclass(frozen=True)
class RunLengths:
    """A mask as run lengths down the columns, at its own size."""

    height: int
    width: int
    counts: NDArray[np.int64]

    def area(self) -> float:
        """Number of pixels."""
        return float(self.counts[1::2].sum())

    def fits(self, height: int, width: int) -> bool:
        """Whether it has the aspect ratio of an image of this size, so that it can be rescaled to it."""
        ratio = (self.height * width) / (self.width * height)
        return abs(ratio - 1) <= _SAME_RATIO + 1 / min(height, width)


Shape = Polygons | RunLengths


def is_rescaled(shape: Shape, height: int, width: int) -> bool:
    """Whether a mask is stored at a size other than the image's."""
    return isinstance(shape, RunLengths) and (shape.height, shape.width) != (height, width)


def parse_run_lengths(value: Mapping[str, Any]) -> RunLengths | None:
    """Reads COCO's ``{"size": [height, width], "counts": ...}``, with counts as a list or a compressed string.

    None if the counts do not cover the size exactly, since such a mask is meaningless.
    """
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        return None
    if size[0] * size[1] > MOST_PIXELS:
        return None
    if isinstance(counts, str):
        numbers = _decompress(counts.encode(errors="replace"))
    elif isinstance(counts, list) and all(isinstance(n, int) and 0 <= n <= size[0] * size[1] for n in counts):
        numbers = np.array(counts, dtype=np.int64)
    else:
        numbers = None
    if numbers is None or not len(numbers) or numbers.min() < 0 or numbers.sum() != size[0] * size[1]:
        return None
    return RunLengths(size[0], size[1], numbers)


def encode(shape: Shape, height: int, width: int, *, scale: float | tuple[float, float] = 1.0) -> dict[str, Any]:
    """Draws the mask at an image's size, as run lengths; ``scale`` is that of x and y from polygons to this size."""
    coco = coco_masks()
    if isinstance(shape, Polygons):
        lists = [(polygon * scale).ravel().tolist() for polygon in shape.polygons]
        return coco.merge(coco.frPyObjects(lists, height, width))
    runs = coco.frPyObjects({"size": [shape.height, shape.width], "counts": shape.counts.tolist()}, 0, 0)
    if (shape.height, shape.width) == (height, width):
        return runs
    image = Image.fromarray(_fill(shape.counts, shape.height, shape.width))
    return coco.encode(np.asfortranarray(image.resize((width, height), Image.Resampling.NEAREST)))


def decode(runs: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Decodes run lengths from ``encode`` or ``encode_pixels`` to (height, width) of 0 and 1.

    pycocotools' own function emits warnings with recent NumPy releases.
    """
    counts = runs["counts"]
    numbers = _decompress(counts.encode() if isinstance(counts, str) else counts)
    assert numbers is not None
    return _fill(numbers, *runs["size"])


def paste(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """Pastes probabilities (m, m) over a box (4,), x0, y0, x1, y1 in pixels, into an image (height, width), bool.

    They are interpolated bilinearly between cell centres, and a pixel is true if its value is at least 1/2.
    """
    x0, y0, x1, y1 = box.tolist()
    left, top = max(int(x0), 0), max(int(y0), 0)
    right, bottom = min(int(np.ceil(x1)), width), min(int(np.ceil(y1)), height)
    whole = torch.zeros(height, width, dtype=torch.bool, device=mask.device)
    if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
        return whole
    # a pixel takes the value at its centre; -1 and 1 are the borders of the box
    x = (torch.arange(left, right, device=mask.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(top, bottom, device=mask.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=-1)[None].to(mask.dtype)
    values = F.grid_sample(mask[None, None], grid, align_corners=False, padding_mode="zeros")
    whole[top:bottom, left:right] = values[0, 0] >= 0.5
    return whole


def encode_pixels(mask: Tensor) -> dict[str, Any]:
    """Encodes a mask (height, width) as pycocotools' run lengths, with a string for the counts, ready for JSON."""
    runs = coco_masks().encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}


def coco_masks() -> Any:
    """The module ``pycocotools.mask``."""
    import_extra("pycocotools", extra="detection")
    from pycocotools import mask

    return mask


def clip_far(polygon: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Clips a polygon to within one image size around the image, if a point lies beyond; else returns it unchanged.

    pycocotools allocates memory for every pixel of an outline, inside the image or not. The polygon is clipped at the
    four sides in turn: Sutherland and Hodgman, "Reentrant Polygon Clipping", Communications of the ACM 1974.
    """
    size = np.array([width, height], dtype=np.float64)
    if (polygon >= -size).all() and (polygon <= 2 * size).all():
        return polygon
    points = np.clip(polygon, -_FARTHEST, _FARTHEST)
    for axis, limit, sign in ((0, -width, 1), (0, 2 * width, -1), (1, -height, 1), (1, 2 * height, -1)):
        inside = sign * (points[:, axis] - limit) >= 0
        kept = []
        for a, b, a_in, b_in in zip(points, np.roll(points, -1, 0), inside, np.roll(inside, -1), strict=True):
            if a_in:
                kept.append(a)
            if a_in != b_in:
                kept.append(a + (b - a) * ((limit - a[axis]) / (b[axis] - a[axis])))
        if not kept:
            return np.zeros((0, 2))
        points = np.array(kept)
    return points


def _area(polygon: NDArray[np.float64]) -> float:
    """Shoelace formula."""
    x, y = polygon.T
    return abs(float(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0])) / 2


def _fill(counts: NDArray[np.int64], height: int, width: int) -> NDArray[np.uint8]:
    values = np.arange(len(counts), dtype=np.uint8) & 1
    return np.repeat(values, counts).reshape(width, height).T


def _decompress(text: bytes) -> NDArray[np.int64] | None:
    """Decodes counts from COCO's string: digits of five bits, the lowest first, from the character '0' upwards.

    A sixth bit is set if more digits follow; the highest bit of the last digit is the sign. From the fourth count on,
    each is stored as the difference from the count two places before. None for a string not in this form.
    """
    letters = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(letters) or letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        return None
    ends = np.flatnonzero(letters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_DIGITS:
        return None
    place = np.arange(len(letters)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((letters & 31) << 5 * place, starts)
    counts -= (letters[ends] >> 4 & 1) << 5 * lengths
    counts[1::2], counts[2::2] = counts[1::2].cumsum(), counts[2::2].cumsum()
    return counts
