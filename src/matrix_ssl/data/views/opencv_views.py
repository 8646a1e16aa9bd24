"""Random views made by OpenCV in 8 bits: those of ``augment``, from the same random numbers, except for rounding.

Every augmentation rounds its result to a level, as Pillow does. Hues have 256 steps, and blur filters have 8-bit
coefficients. OpenCV gets one thread: batches are spread over workers, and its threads do not survive a fork.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl.config import ViewConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.views import augment
from matrix_ssl.data.views.augment import Draws
from matrix_ssl.errors import ConfigError, import_extra

Levels = NDArray[np.uint8]  # (s, s, 3), or (s, s) for one channel

_LEVELS = np.arange(256)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)  # as ``augment.Draws.order`` numbers them


@functools.cache
def library() -> Any:
    """OpenCV with one thread; MissingExtra if it is not installed."""
    cv2 = import_extra("cv2", extra="opencv")
    cv2.setNumThreads(0)
    return cv2


def check(source: Source, device: torch.device) -> None:
    """Raises ConfigError if views are not made on a CPU in 8 bits, MissingExtra if OpenCV is not installed."""
    if device.type != "cpu":
        raise ConfigError(
            f"data.view_backend=opencv makes views on a CPU, but this training is on {device.type}: use --set "
            "data.view_backend=torch, which makes them there."
        )
    if source.dtype != torch.uint8 or source.channels not in (1, 3):
        kind = f"{source.channels} of {str(source.dtype).removeprefix('torch.')}"
        raise ConfigError(
            f"data.view_backend=opencv is for images of 1 or 3 channels of 8 bits, and {source.name!r} has {kind}: use "
            "--set data.view_backend=torch."
        )
    library()


def write_views(
    images: Iterable[Tensor], boxes: NDArray[np.int64], view: ViewConfig, draws: Draws, places: Levels
) -> None:
    """Writes a view of every image, uint8 (c, h, w) with c of 1 or 3, to ``places``, (n, s, s, c)."""
    for row, (image, box) in enumerate(zip(images, boxes, strict=True)):
        pixels = change(crop(image, box, view.image_size), view, draws, row)
        places[row] = pixels.reshape(places.shape[1:])


def normalise(levels: Levels, mean: tuple[float, ...], std: tuple[float, ...], *, dtype: torch.dtype) -> Tensor:
    """``augment.normalise`` of levels (n, s, s, c), by a lookup table: floating point (n, c, s, s), channels last."""
    n, side, _, channels = levels.shape
    units = torch.arange(256, dtype=dtype).view(256, 1, 1, 1).expand(-1, channels, -1, -1) / 255
    table = augment.normalise(units, mean, std).view(1, 256, channels).numpy()
    result = torch.empty((n * side, side, channels), dtype=dtype)
    library().LUT(levels.reshape(n * side, side, channels), table, result.numpy())
    return result.view(n, side, side, channels).permute(0, 3, 1, 2)


def crop(image: Tensor, box: NDArray[np.int64], size: int) -> Levels:
    """The crop of one image, resized: by OpenCV if it grows, else with antialiasing as in ``augment.crop``."""
    cv2 = library()
    top, left, height, width = box.tolist()
    if max(height, width) > size:
        return _channels_last(augment.crop(image, box, size))
    pixels = _channels_last(image[:, top : top + height, left : left + width])
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


def change(pixels: Levels, view: ViewConfig, draws: Draws, row: int) -> Levels:
    """Applies all augmentations except the crop, with the random numbers of one row, as in ``augment.change``."""
    cv2 = library()
    if draws.flip[row]:
        pixels = cv2.flip(pixels, 1)
    if draws.turns is not None and draws.turns[row]:
        pixels = np.ascontiguousarray(np.rot90(pixels, draws.turns[row]))
    if draws.affine is not None:
        nodes = None if draws.nodes is None else draws.nodes[row : row + 1]
        pixels = _warp(pixels, draws.affine[row : row + 1], nodes, elastic=view.elastic)
    if draws.jitter[row]:
        pixels = _jitter(pixels, view, draws, row)
    if draws.channel_factors is not None and draws.channel_jitter[row]:
        pixels = _channel_jitter(pixels, draws.channel_factors[row])
    if pixels.ndim == 3 and draws.grayscale[row]:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if draws.blur[row]:
        pixels = _blur(pixels, float(draws.sigma[row]))
    if pixels.ndim == 3 and draws.solarize[row]:
        pixels = cv2.min(pixels, cv2.bitwise_not(pixels))  # a level below 128 itself, else its inverse
    if draws.exponent is not None:
        pixels = cv2.LUT(pixels, _rounded(255 * (_LEVELS / 255) ** draws.exponent[row]))
    if view.noise:
        channels_first = torch.empty(1, pixels.size // len(pixels) ** 2, *pixels.shape[:2])
        numbers = augment.noise(draws.image(row).keys, channels_first)[0].permute(1, 2, 0).numpy()
        pixels = _rounded(pixels + 255 * view.noise * numbers.reshape(pixels.shape))
    return pixels


def _channels_last(image: Tensor) -> Levels:
    """An image (c, h, w) in OpenCV's layout, without a copy if the channels are last in memory."""
    if len(image) == 3 and image.stride(0) == 1:
        return image.permute(1, 2, 0).numpy()
    return library().merge(list(image.numpy()))


def _rounded(levels: NDArray[np.floating]) -> Levels:
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def _warp(pixels: Levels, affine: augment.Array, nodes: augment.Array | None, *, elastic: float) -> Levels:
    cv2, (height, width) = library(), pixels.shape[:2]
    moves = None if nodes is None else augment.normal(nodes).float()
    grid = augment.warped_grid(torch.from_numpy(affine).float(), moves, height, width, elastic=elastic)[0].numpy()
    x, y = ((grid[..., axis] + 1) * (side / 2) - 0.5 for axis, side in ((0, width), (1, height)))
    return cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _jitter(pixels: Levels, view: ViewConfig, draws: Draws, row: int) -> Levels:
    strength = (view.brightness, view.contrast, view.saturation, view.hue)
    for number in draws.order[row].tolist():
        factor = float(draws.factors[row, number])
        if not strength[number] or (number in (_SATURATION, _HUE) and pixels.ndim == 2):
            continue
        pixels = _turn_hue(pixels, factor) if number == _HUE else _mix(pixels, number, factor)
    return pixels


def _mix(pixels: Levels, number: int, factor: float) -> Levels:
    """Brightness, contrast or saturation: a matrix of the channels, and a constant."""
    cv2 = library()
    luma = np.array(augment.LUMA) if pixels.ndim == 3 else np.ones(1)
    matrix = np.zeros((len(luma), len(luma) + 1))
    matrix[:, :-1] = factor * np.eye(len(luma))
    if number == _CONTRAST:
        matrix[:, -1] = (1 - factor) * luma @ cv2.mean(pixels)[: len(luma)]
    elif number == _SATURATION:
        matrix[:, :-1] += (1 - factor) * luma
    return cv2.transform(pixels, matrix)


def _turn_hue(pixels: Levels, shift: float) -> Levels:
    cv2 = library()
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(256 * shift) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _channel_jitter(pixels: Levels, factors: NDArray[np.float64]) -> Levels:
    cv2 = library()
    mean = np.array(cv2.mean(pixels)[: factors.shape[1]])
    brightness, contrast = factors
    table = _rounded(brightness * np.clip(mean + contrast * (_LEVELS[:, None] - mean), 0, 255))
    return cv2.LUT(pixels, table.reshape(1, 256, -1))


def _blur(pixels: Levels, sigma: float) -> Levels:
    """A Gaussian filter, cut off at four standard deviations; its 8-bit coefficients sum to exactly 1."""
    cv2 = library()
    reach = max(1, min(len(pixels) - 1, int(np.ceil(4 * sigma))))
    weights = np.rint(256 * cv2.getGaussianKernel(2 * reach + 1, sigma))
    weights[reach] += 256 - weights.sum()
    return cv2.sepFilter2D(pixels, -1, weights / 256, weights / 256, borderType=cv2.BORDER_REFLECT_101)
