"""Thumbnails of many images in few files: sheets of 16 by 16 squares."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matrix_ssl.config.untrusted import why
from matrix_ssl.errors import RunFolderError
from matrix_ssl.runs.files import cannot_write, write_atomically

FOLDER = "sheets"
ACROSS = 16  # thumbnails per row of a sheet, and number of rows
EACH = ACROSS**2
_QUALITY = 82  # of JPEG
_PLAIN = 48  # pixels; smaller thumbnails keep the resolution of their colours


class Sheets:
    """Writes thumbnails in the order of the images; a sheet written by an earlier process is kept.

    Args:
        folder: of the page.
        count: number of images.
        side: of a thumbnail, in pixels.

    Attributes:
        start: the first image that is not yet on a sheet.
        names: of all sheets, relative to the page.
    """

    def __init__(self, folder: Path, *, count: int, side: int):
        self._folder, self._count, self._side = folder, count, side
        self.names = [f"{FOLDER}/{number:04d}.jpg" for number in range(-(-count // EACH))]
        complete = next((i for i, name in enumerate(self.names) if not (folder / name).is_file()), len(self.names))
        self.start = min(complete * EACH, count)
        self._sheet = complete
        self._pixels = self._empty(complete)
        try:
            (folder / FOLDER).mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder / FOLDER, error) from error

    def add(self, images: NDArray[np.integer], squares: NDArray[np.uint8]) -> None:
        """Adds squares (m, side, side, 1 or 3) for images (m,), in ascending order; those left out stay blank."""
        for image, square in zip(images.tolist(), squares, strict=True):
            while image // EACH > self._sheet:
                self._write()
            down, across = divmod(image % EACH, ACROSS)
            top, left = down * self._side, across * self._side
            self._pixels[top : top + self._side, left : left + self._side] = square

    def read_luma(self) -> Iterator[NDArray[np.uint8]]:
        """The luma (m, side, side), by ITU-R BT.601, of the thumbnails of every sheet as they were written.

        Raises:
            RunFolderError: a sheet is damaged.
        """
        for number, name in enumerate(self.names):
            try:
                with Image.open(self._folder / name) as image:
                    image.draft("L", None)  # the colours of the JPEG file are not decoded
                    squares = np.asarray(image.convert("L")).reshape(-1, self._side, ACROSS, self._side).swapaxes(1, 2)
            except (OSError, ValueError) as error:
                raise RunFolderError(
                    f"{self._folder / name} cannot be read: {why(error)}; remove it and run the same command again."
                ) from error
            yield squares.reshape(-1, self._side, self._side)[: self._count - number * EACH]

    def finish(self) -> None:
        """Writes the remaining sheets."""
        while self._sheet < len(self.names):
            self._write()

    def _write(self) -> None:
        image, colours = Image.fromarray(self._pixels), 0 if self._side < _PLAIN else 2
        write_atomically(
            self._folder / self.names[self._sheet],
            lambda file: image.save(file, "JPEG", quality=_QUALITY, subsampling=colours),
        )
        self._sheet += 1
        self._pixels = self._empty(self._sheet)

    def _empty(self, sheet: int) -> NDArray[np.uint8]:
        rows = -(-min(EACH, max(self._count - sheet * EACH, 0)) // ACROSS)
        return np.full((rows * self._side, ACROSS * self._side, 3), 128, dtype=np.uint8)
