"""What the service needs from an encoder: the central square of an encoded image, and the features of a batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matrix_ssl.config.reading import COLOURS, CropMode, Reading
from matrix_ssl.errors import ConfigError

_COLOURS = 3


@dataclass(frozen=True)
class Preparation:
    """How images are prepared for an encoder.

    Attributes:
        image_size: side in pixels.
        crop_fraction: side of the central crop as a fraction of the shorter side, or of both sides.
        mean, std: of pixels in [0, 1], one number per channel.
        reading: how files are converted to pixels.
        crop_mode: as for ``data.files.squares.centre_box``.
    """

    image_size: int
    crop_fraction: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reading: Reading = COLOURS
    crop_mode: CropMode = "centre"

    def __post_init__(self) -> None:
        if self.reading.channels in (0, -1) and len(self.mean) != _COLOURS:
            raise ConfigError(
                f"The encoder takes images of {len(self.mean)} channel{'s' * (len(self.mean) > 1)}, and files are read "
                f"in {_COLOURS} colours: serve an encoder that was trained on files, in colour or with data.channels."
            )


class ServedEncoder(ABC):
    """An encoder that is ready for requests; any thread may call its methods, but ``features`` only one at a time.

    Attributes:
        name: the architecture.
        weights: ``student`` or ``teacher``.
        width: number of features.
        preparation: how images are prepared.
        runtime: the library that runs the encoder, with its version, and the device.
        sha256: SHA-256 of the file that the weights come from; None: they do not come from a file.
        digest: identifies the encoder, as computed by ``encoder.identity``; empty: not known.
        identity: stands for everything that determines an image's features; features are kept under it.
    """

    name: str
    weights: str
    width: int
    preparation: Preparation
    runtime: str
    sha256: str | None
    digest: str
    identity: str

    @abstractmethod
    def square(self, content: bytes, where: str) -> NDArray[Any]:
        """The central square (c, s, s) of an encoded image, uint8 or float32; UnreadableImage names ``where``."""

    @abstractmethod
    def features(self, squares: NDArray[Any]) -> NDArray[np.float32]:
        """The features (n, k) of squares (n, c, s, s)."""

    def zeros(self, count: int) -> NDArray[Any]:
        """Black squares (n, c, s, s) of the dtype that ``square`` returns."""
        size = self.preparation.image_size
        kind = np.float32 if self.preparation.reading.channels else np.uint8
        return np.zeros((count, len(self.preparation.mean), size, size), dtype=kind)
