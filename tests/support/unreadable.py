"""Images in memory that pretend to be files, some of which cannot be read."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from matrix_ssl.data.base import Source
from matrix_ssl.errors import UnreadableImage


class PartlyUnreadable(Source):
    """A source of images of which those of the indices ``bad`` cannot be read; the places are ``NAME/INDEX``.

    Args:
        name: of the source.
        pixels: (n, c, h, w).
        bad: indices.
        labels: (n,); None: the images have none.
        classes: names of the labels.
    """

    def __init__(
        self, name: str, pixels: Tensor, *, bad: Iterable[int] = (), labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ):  # fmt: skip
        super().__init__(name, channels=pixels.shape[1], labels=labels, classes=classes)
        self.pixels, self.bad = pixels, frozenset(bad)

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Tensor:
        """The pixels (c, h, w); raises UnreadableImage for those of ``bad``."""
        if index in self.bad:
            raise UnreadableImage(self.where(index), "cut short")
        return self.pixels[index]

    def where(self, index: int) -> str:
        """The place of an image."""
        return f"{self.name}/{index}"

    def subset(self, indices: np.ndarray) -> Source:
        """Is not needed."""
        raise NotImplementedError
