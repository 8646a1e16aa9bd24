"""Prepares images for an encoder exactly as evaluation does."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from matrix_ssl.config import DataConfig
from matrix_ssl.config.reading import COLOURS, Reading
from matrix_ssl.config.untrusted import expanded
from matrix_ssl.data import Source
from matrix_ssl.data.base import MemorySource, Places, check_range
from matrix_ssl.data.files.images import read_image
from matrix_ssl.data.files.pixels import as_image, as_images
from matrix_ssl.data.files.values import picture_values
from matrix_ssl.data.kinds.array_source import ArraySource, channels_last
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.data.objects import in_colour
from matrix_ssl.data.views.augment import normalise
from matrix_ssl.errors import DataError, UnreadableImage


class Preprocess:
    """Reads images, crops their central squares, resizes and normalises them.

    Args:
        data: the image size, central crop and normalisation of an encoder.
    """

    def __init__(self, data: DataConfig):
        self.data = dataclasses.replace(data, workers=0)

    def __call__(self, images: Any) -> Tensor:
        """Returns a batch (n, c, s, s) on the CPU; n is 1 for a single image.

        Args:
            images: a Pillow image or the path of a file, or a list of them; or images as an array or tensor, (n, h, w),
                (n, h, w, 3) or (n, 3, h, w), uint8, uint16 or floating point in [0, 1], or a list of such images. For
                an encoder that keeps all channels and bits, arrays have its channels in place of the 3, and any
                numbers that its range turns into pixels.

        Raises:
            DataError: something is not an image, cannot be read, or has a number of channels that the encoder does not
                take.
        """
        source = in_colour(_open(images, self.data.reading), len(self.data.mean))
        if source.channels != len(self.data.mean):
            raise DataError(
                f"These are {source.channels}-channel images, but the encoder takes images with {len(self.data.mean)}."
            )
        batches = []
        for _, pixels, problems in evaluation_batches(source, self.data, device=torch.device("cpu")):
            if problems:
                raise UnreadableImage(*problems[0])
            batches.append(pixels)
        return normalise(torch.cat(batches), self.data.mean, self.data.std)

    def __repr__(self) -> str:
        data = self.data
        sides = "the shorter side" if data.crop_mode == "centre" else "both sides, squeezed into a square"
        return (
            f"Preprocess(central {data.crop_fraction:g} of {sides}, {data.image_size} pixels, "
            f"mean {data.mean}, std {data.std})"
        )


class _Images(Source):
    """A few images that have already been read."""

    crops_are_rounded = True

    def __init__(self, images: Sequence[Tensor], reading: Reading):
        super().__init__("images", channels=max(map(len, images)), labels=None, classes=None)
        self._images, self.reading = images, reading

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Tensor:
        return self._images[index].expand(self.channels, -1, -1)

    def where(self, index: int) -> str:
        return f"image {index}"

    def subset(self, indices: Any) -> "_Images":
        return _Images([self._images[int(index)] for index in indices], self.reading)


def _open(images: Any, reading: Reading = COLOURS) -> Source:
    if isinstance(images, (np.ndarray, Tensor)):
        if (array := channels_last(images)) is not None:
            source = ArraySource(array, labels=None, classes=None).with_reading(reading)
            return source if reading.channels else source.loaded()
        pixels = as_images(images, "The array")
        check_range(reading, "The array")
        return MemorySource("images", pixels, Places.whole(["array"], [len(pixels)]), labels=None, classes=None)
    several = images if isinstance(images, (list, tuple)) else [images]
    if not several:
        raise DataError("There are no images.")
    read = [_read(image, f"Image {number}", reading) for number, image in enumerate(several)]
    together = isinstance(several[0], (np.ndarray, Tensor)) and len({image.shape for image in read}) == 1
    return _open(torch.stack(read)) if together and not reading.channels else _Images(read, reading)


def _read(image: Any, what: str, reading: Reading) -> Tensor:
    """An image (c, h, w): uint8, or float32 in [0, 1] if all channels and bits are kept."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(expanded(os.fspath(image)), reading=reading)
    if reading.channels and isinstance(image, Image.Image):
        return torch.from_numpy(picture_values(image, what).to_unit(what, reading))
    if isinstance(image, (np.ndarray, Tensor)) and (reading.channels or channels_last(image[None]) is not None):
        source = _open(image[None], reading)
        return source.read(0) / source.white if reading.channels else source.read(0)
    return as_image(image, what, white_level=reading.white_level)
