"""Pixels of arrays, tensors and Pillow images as uint8 tensors with the channels first."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from matrix_ssl.data.files.images import to_tensor
from matrix_ssl.errors import DataError

_CHANNELS = (1, 3)
_ROWS = 1024  # images that are converted at once


def as_images(images: NDArray[Any] | Tensor, what: str) -> Tensor:
    """Images of one shape, uint8 (n, c, h, w) with 1 or 3 channels.

    Args:
        images: (n, h, w), or (n, c, h, w) or (n, h, w, c) with c of 1 or 3, uint8 or floating point in [0, 1].
        what: its name at the beginning of a message.

    Raises:
        DataError: type, shape or values are not as described.
    """
    pixels = _as_tensor(images)
    if pixels is None or pixels.ndim not in (3, 4) or not pixels.numel() or not _is_known(pixels.dtype):
        raise _refused(images, what)
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS:  # else it is probably a single image
        pixels = pixels[:, None]
    elif pixels.ndim == 3:
        raise _refused(images, what)
    else:
        first, last = pixels.shape[1] in _CHANNELS, pixels.shape[3] in _CHANNELS
        if first == last:  # neither, or not known which
            raise _refused(images, what)
        pixels = pixels.permute(0, 3, 1, 2) if last else pixels
    if pixels.dtype == torch.uint8:
        return pixels.contiguous()
    result = torch.empty(pixels.shape, dtype=torch.uint8)
    for rows, target in zip(pixels.split(_ROWS), result.split(_ROWS), strict=True):
        low, high = rows.aminmax()
        if not (low >= 0 and high <= 1):  # also for NaN
            raise _refused(images, what, f", with values from {float(low):g} to {float(high):g}")
        target.copy_((rows.float() * 255).round())
    return result


def as_image(image: Any, what: str, *, white_level: int = 0) -> Tensor:
    """One image, uint8 (c, h, w), from Pillow or from an array (h, w), (c, h, w) or (h, w, c) as in ``as_images``.

    ``white_level`` is the level of white in Pillow's images of 16 bits; 0: that of the format.
    """
    if isinstance(image, Image.Image):
        return to_tensor(image, what, white_level=white_level)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise DataError(f"{what}: expected an image of Pillow, an array or a tensor, not {type(image).__name__}.")
    return as_images(image[None], what)[0]


def viewable(pixels: Tensor) -> Tensor:
    """An image of a dataset, (c, h, w), as a person sees it: uint8 with 1 or 3 channels.

    Of more than three channels, the first three are red, green and blue; two are red and green. If an image keeps all
    of its bits, its own highest value is white.
    """
    channels = len(pixels)
    if channels == 2:
        pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])
    pixels = pixels[:3] if channels > 1 else pixels
    if pixels.dtype == torch.uint8:
        return pixels
    return (pixels * (255 / pixels.max().clamp_min(1e-6))).round().to(torch.uint8)


def _as_tensor(images: NDArray[Any] | Tensor) -> Tensor | None:
    if isinstance(images, Tensor):
        return None if images.is_meta or images.layout != torch.strided else images.detach().cpu()
    if images.dtype.kind not in "uf" or images.dtype.itemsize > 8:
        return None
    usable = images.flags.writeable and images.dtype.isnative and min(images.strides, default=0) >= 0
    return torch.from_numpy(images if usable else np.array(images, dtype=images.dtype.newbyteorder("="), order="C"))


def _is_known(dtype: torch.dtype) -> bool:
    return dtype == torch.uint8 or dtype.is_floating_point


def _refused(images: NDArray[Any] | Tensor, what: str, values: str = "") -> DataError:
    return DataError(
        f"{what} is {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}{values}: expected images "
        "(n, h, w), (n, h, w, 3) or (n, 3, h, w), uint8 or floating point in [0, 1]. With 2 to 16 other channels "
        "both sides must be above 16 pixels; 16 bits are kept, too."
    )
