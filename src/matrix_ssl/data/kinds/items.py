"""PyTorch map-style datasets and sequences: every item is an image, a pair (image, label) or a dictionary."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from matrix_ssl.config.reading import Reading
from matrix_ssl.data.base import (
    MEMORY_LIMIT,
    Classes,
    Labels,
    MemorySource,
    PlacedSource,
    Places,
    Source,
    as_labels,
    check_range,
)
from matrix_ssl.data.files.images import is_deep, level_of
from matrix_ssl.data.files.pixels import as_image
from matrix_ssl.errors import DataError, MatrixSSLError, UnreadableImage, is_out_of_memory

_IMAGE_KEYS = ("image", "img", "pixel_values", "images")  # of dictionaries, in order of preference
_LABEL_KEYS = ("label", "labels", "target", "fine_label")


class ItemSource(PlacedSource):
    """Items that are fetched again whenever their image is read."""

    def __init__(
        self, name: str, items: Any, sizes: NDArray[np.int64], *, channels: int, labels: Labels, classes: Classes
    ):
        places = Places.whole([name], [len(sizes)])
        super().__init__(name, places, channels=channels, labels=labels, classes=classes)
        self._items, self._sizes = items, sizes

    def read(self, index: int) -> torch.Tensor:
        place, level = int(self.places.entry[index]), self.reading.white_level
        image = read_item(self._items, place, self.where(index), white_level=level)[0]
        return image.expand(self.channels, -1, -1) if len(image) == 1 else image

    def highest_level(self, index: int) -> int:
        image, _ = fetch_item(self._items, int(self.places.entry[index]), self.where(index))
        return level_of(image) if isinstance(image, Image.Image) else 0

    def with_reading(self, reading: Reading) -> "ItemSource":
        """The same items with another level of white; nothing else changes how they become pixels of 8 bits."""
        check_range(reading, self.name)
        if reading.white_level == self.reading.white_level:
            return self
        other = self.copy()
        other.reading = Reading(white_level=reading.white_level)
        return other

    def copies(self) -> list[tuple[int, int]]:
        return []

    def _stored(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        return [], self._sizes[self.places.entry]


class _DeepItems(MemorySource):
    """Items with Pillow images of more than 8 bits in memory, which are fetched again for another level of white."""

    origin: ItemSource  # narrower: always there

    def with_reading(self, reading: Reading) -> Source:
        changed = self.origin.with_reading(reading)
        return self if changed is self.origin else changed


def open_items(items: Any) -> PlacedSource:
    """Reads a dataset once from the first item to the last; in memory if all have one shape and there is room.

    It is labelled if every item has an integer, or every item a text; ``items.classes`` names the integers.

    Raises:
        DataError: it is empty, an item is not an image or cannot be read, or the first is a different image each time.
    """
    name = type(items).__name__
    count = _count(items, name)
    sizes = np.empty(count, dtype=np.int64)
    labels: list[Any] = []
    together: torch.Tensor | None = None
    modes, channels = set[str](), 1
    for index in range(count):
        try:
            image, label, mode = read_item(items, index, f"{name}[{index}]")
        except UnreadableImage as error:
            raise DataError(f"{error.where} cannot be read ({error.reason}); remove it from the dataset.") from error
        if index == 0 and count * image.numel() <= MEMORY_LIMIT:
            together = torch.empty((count, *image.shape), dtype=torch.uint8)
        if together is not None and image.shape == together.shape[1:]:
            together[index] = image
        else:
            together = None
        sizes[index] = image.numel()
        labels.append(label)
        modes.add(mode)
        channels = max(channels, len(image))
    _check_repeats(items, name)
    values, classes = _labels(labels, items, name)
    fetched = ItemSource(name, items, sizes, channels=channels, labels=values, classes=classes)
    fetched.unlabelled_because = "make every item a pair (image, label)"
    remarks: tuple[str, ...] = ()
    if values is None and (why := _why_unlabelled(labels, name)):
        fetched.unlabelled_because = why
        remarks = (f"{name} is taken without labels: {why}.",)
    source: PlacedSource = fetched
    if together is not None:
        kind = _DeepItems if any(map(is_deep, modes)) else MemorySource
        source = memory = kind(name, together, Places.whole([name], [count]), labels=values, classes=classes)
        memory.crops_are_rounded = bool(modes - {""})
        memory.origin = fetched if isinstance(memory, _DeepItems) else None
        memory.unlabelled_because = fetched.unlabelled_because
    source.remarks = fetched.remarks = remarks
    return source


def _count(items: Any, name: str) -> int:
    """The number of items; memory must have room for at least one number for each."""
    try:
        count = len(items)
        np.empty(count, dtype=np.int64)
    except Exception as error:  # of the user's code
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: its __len__ is not the number of its images ({reason}).") from error
    if not count:
        raise DataError(f"{name} contains no images; choose a dataset that does.")
    return count


def read_item(items: Any, index: int, where: str, *, white_level: int = 0) -> tuple[torch.Tensor, Any, str]:
    """The pixels uint8 (c, h, w) and the label of an item, and the mode of a Pillow image; empty for any other.

    Raises:
        UnreadableImage: it cannot be opened, or the dataset raises an error.
        DataError: it is not an image.
    """
    with _reported(where):
        image, label = _split(items[index], where)
        mode = image.mode if isinstance(image, Image.Image) else ""
        return as_image(image, where, white_level=white_level), label, mode


def fetch_item(items: Any, index: int, where: str) -> tuple[Any, Any]:
    """The image and the label of an item as the dataset has them; errors as in ``read_item``."""
    with _reported(where):
        return _split(items[index], where)


@contextlib.contextmanager
def _reported(where: str) -> Iterator[None]:
    """Turns what a dataset of the user raises in the block into UnreadableImage, at ``where``."""
    try:
        yield
    except (MatrixSSLError, MemoryError):
        raise
    except (OSError, UnidentifiedImageError) as error:
        raise UnreadableImage(where, str(error) or type(error).__name__) from error
    except Exception as error:  # of the user's code
        if is_out_of_memory(error):
            raise
        raise UnreadableImage(where, f"{type(error).__name__}: {error}") from error


def _split(item: Any, where: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        key = next((key for key in _IMAGE_KEYS if key in item), None)
        if key is None:
            raise DataError(
                f"{where} has the keys {', '.join(map(str, item))}: expected one of {', '.join(_IMAGE_KEYS)}."
            )
        return item[key], next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, (tuple, list)):
        if not item:
            raise DataError(f"{where} is empty: expected an image or a pair of image and label.")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def _check_repeats(items: Any, name: str) -> None:
    first, second = (read_item(items, 0, f"{name}[0]")[0] for _ in range(2))
    if first.shape != second.shape or not torch.equal(first, second):
        raise DataError(
            f"{name}[0] is a different image each time: remove its random transforms, the views are made here."
        )


def _labels(labels: Sequence[Any], items: Any, name: str) -> tuple[Labels, Classes]:
    values = [_plain(label) for label in labels]
    if all(isinstance(value, str) for value in values):
        classes = sorted(set(values))
        number = {name: k for k, name in enumerate(classes)}
        return np.array([number[value] for value in values], dtype=np.int64), classes
    if not all(map(_is_number, values)):
        return None, None
    known = getattr(items, "classes", None) or getattr(getattr(items, "dataset", None), "classes", None)
    named = isinstance(known, Sequence) and not isinstance(known, str) and len(known) > max(values)
    return as_labels(np.array(values, dtype=np.int64), known if named else None, len(values), where=name)


def _is_number(label: Any) -> bool:
    return isinstance(label, int) and 0 <= label < 2**63


def _why_unlabelled(labels: Sequence[Any], name: str) -> str:
    """The first label that makes a dataset unlabelled; empty if no item has a label."""
    values = [_plain(label) for label in labels]
    if all(label is None for label in labels):
        return ""
    usable = _is_number if _is_number(values[0]) else lambda value: isinstance(value, str)
    place = next(index for index, value in enumerate(values) if not usable(value))
    return (
        f"the label of {name}[{place}] is {labels[place]!r:.60}, and all have to be whole numbers from 0 on, or all "
        "texts"
    )


def _plain(label: Any) -> Any:
    """A single number or text as such; None for any other label."""
    if isinstance(label, (np.ndarray, np.generic, torch.Tensor)):
        return label.tolist() if label.ndim == 0 else None
    return label
