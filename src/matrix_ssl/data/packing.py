"""Encodes the images of a dataset once, into the files that ``packed`` reads."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torchvision.transforms.v2 import functional as TV

from matrix_ssl.config import NonNegativeInt, PositiveInt
from matrix_ssl.config.reading import MOST_CHANNELS, Pages
from matrix_ssl.config.validation import settings
from matrix_ssl.data.base import Source
from matrix_ssl.data.files.images import Unreadable
from matrix_ssl.data.workers import Reader, read_batches
from matrix_ssl.errors import ConfigError, UnreadableImage

_IMAGES = 32  # images that a worker encodes at a time


@settings
class PackSettings:
    """How images are stored.

    Attributes:
        short_side: images whose shorter side has more pixels are reduced to this size; 0: none is.
        quality: of JPEG, for images that are reduced; 95 keeps more, 75 less.
        shard_mib: mebibytes of images in one file, unless a single image is larger.
        channels: 1 to 16, which images keep with all of their bits; -1: those of the first image; 0: colours.
        pages: which pages or frames of a file are images, as ``data.pages``.
    """

    short_side: NonNegativeInt = 0
    quality: Annotated[int, Ge(1), Le(100)] = 90
    shard_mib: PositiveInt = 256
    channels: Annotated[int, Ge(-1), Le(MOST_CHANNELS)] = 0
    pages: Pages = "first"

    def __post_init__(self) -> None:
        """Raises ConfigError for pages as channels without a number of channels."""
        if self.pages == "channels" and not self.channels:
            raise ConfigError("--pages channels needs the number of channels: add --channels -1.")


@dataclass
class Shard:
    """The images of one packed file, in the order of the dataset, from ``start`` up to but not including ``stop``."""

    start: int
    stop: int
    images: list[bytes] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    size: int = 0

    def write(self, file: IO[bytes], source: Source) -> None:
        """Writes the arrays that ``packed`` reads; the same images always give the same bytes."""
        arrays: dict[str, Any] = {
            "jpeg": np.frombuffer(b"".join(self.images), np.uint8),
            "offs": np.cumsum([0, *map(len, self.images)], dtype=np.int64),
        }
        if source.labels is not None and source.classes is not None:
            arrays |= {"y": source.labels[self.indices], "classes": np.array(source.classes)}
        np.savez(file, allow_pickle=False, **arrays)  # not compressed, so that it can be mapped


def encode(source: Source, index: int, how: PackSettings) -> bytes:
    """One image as it is stored, or UnreadableImage.

    An image that is in a file and small enough keeps the bytes of its file. One that is larger becomes a JPEG with the
    short side of the settings, reduced with antialiasing. One that is not in a file, or whose levels are changed by a
    white level, becomes a PNG.

    If images keep all of their channels and bits, one that is larger, or that is not a whole file, becomes a NumPy
    array, with numbers of the same type.
    """
    if source.reading.channels:
        return _encode_values(source, index, how)
    pixels = source.read(index)
    if how.short_side and min(pixels.shape[-2:]) > how.short_side:
        reduced = TV.resize(pixels, [how.short_side], antialias=True)
        return _file(reduced, "JPEG", quality=how.quality)
    levels_change = source.reading.white_level and source.highest_level(index)
    content = None if levels_change else source.encoded(index)
    return _file(pixels, "PNG") if content is None else content


def _encode_values(source: Source, index: int, how: PackSettings) -> bytes:
    source.read(index)  # so that what cannot be read later is not stored
    values, content = source.values(index), source.encoded(index)
    is_large = bool(how.short_side) and min(values.shape[:2]) > how.short_side
    if not is_large and content is not None and source.reading.pages != "channels":
        return content
    if is_large:
        exact = torch.from_numpy(values.transpose(2, 0, 1).astype(np.float64))
        reduced = TV.resize(exact, [how.short_side], antialias=True).numpy().transpose(1, 2, 0)
        values = (np.rint(reduced) if values.dtype.kind in "iu" else reduced).astype(values.dtype)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def shards(source: Source, how: PackSettings, *, start: int = 0, workers: int = -1) -> Iterator[Shard]:
    """The files of a dataset from image ``start`` on, divided by size alone; errors as in ``read_batches``."""
    keys = (range(i, min(i + _IMAGES, len(source))) for i in range(start, len(source), _IMAGES))
    shard = Shard(start, start)
    for batch in read_batches(_Encoder(source, how), keys, workers=workers):
        for index, content in batch:
            if isinstance(content, bytes):
                if shard.images and shard.size + len(content) > how.shard_mib * 2**20:
                    yield shard
                    shard = Shard(index, index)
                shard.images.append(content)
                shard.indices.append(index)
                shard.size += len(content)
            else:
                shard.unreadable.append(content)
            shard.stop = index + 1
    if shard.stop > shard.start:
        yield shard


class _Encoder(Reader[Sequence[tuple[int, bytes | Unreadable]]]):
    """Encodes the images of a range; one that cannot be read becomes its place and the reason."""

    def __init__(self, source: Source, how: PackSettings):
        super().__init__(source)
        self._how = how

    def batch(self, key: range) -> list[tuple[int, bytes | Unreadable]]:
        results: list[tuple[int, bytes | Unreadable]] = []
        for index in key:
            try:
                results.append((index, encode(self._source, index, self._how)))
            except UnreadableImage as error:
                results.append((index, (error.where, error.reason)))
        return results


def _file(pixels: torch.Tensor, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, kind, **options)
    return buffer.getvalue()
