"""The dataset whose images are encoded files, wherever their bytes are stored."""

import numpy as np
import torch
from numpy.typing import NDArray

from matrix_ssl.config.reading import Reading
from matrix_ssl.data.base import MemorySource, PlacedSource, Source, in_memory
from matrix_ssl.data.files.decoding import decode_values
from matrix_ssl.data.files.images import decode_image, highest_level
from matrix_ssl.data.files.values import pages_of
from matrix_ssl.errors import ConfigError

_COLOURS = 3


class EncodedSource(PlacedSource):
    """Image files at places in larger files, decoded when they are read, or all at once by ``loaded``.

    A subclass provides ``encoded``, the bytes of an image.
    """

    _kind: type[MemorySource] = MemorySource  # of the dataset in memory
    _memory: PlacedSource | None = None  # the dataset in memory, or itself if it does not fit; None: not tried

    def read(self, index: int) -> torch.Tensor:
        content, where = self._content(index)
        return decode_image(content, where, reading=self.reading)

    def values(self, index: int) -> NDArray[np.generic]:
        content, where = self._content(index)
        return decode_values(content, where, reading=self.reading).array

    def highest_level(self, index: int) -> int:
        return highest_level(self._content(index)[0])

    def has_pages(self, index: int) -> bool:
        return len(pages_of(self._content(index)[0], most=2)) > 1

    def _content(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image, empty if there is no image, and its place."""
        return self.encoded(index) or b"", self.where(index)

    def with_reading(self, reading: Reading) -> Source:
        if reading == self.reading:
            return self
        if reading.pages == "all":
            raise ConfigError(
                "data.pages=all is for folders of image files; use data.pages=first, or unpack the images."
            )
        other = self.copy()
        other.reading, other.channels = reading, reading.channels or _COLOURS
        return other

    def loaded(self, *, most: int | None = None) -> Source:
        if self._memory is None:
            memory = in_memory(self, most=most, kind=self._kind)
            if memory is self and most is not None:  # perhaps for want of room, and later there may be more
                return self
            self._memory = memory
        return self._memory
