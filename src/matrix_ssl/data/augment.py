"""Random views of whole batches, with random numbers of its own for every image.

All random numbers come from ``data.randomness`` at (seed, epoch, sample, view, purpose): a view does not depend on the
batch it is computed in, on workers or on processes. They are drawn on the host, where the few numbers an image
needs cost nothing, so the pixel work runs on any device without a synchronisation.

Cropping with antialiased resizing and blurring are linear and separable: A_y X A_xᵀ with one small matrix a side for
each image, which is a batched matrix product. The filters are those of Pillow and torchvision.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TV

from matrix_ssl.config import ViewConfig
from matrix_ssl.data.randomness import uniform

Array = NDArray[Any]

# purposes: the last coordinate of the random numbers, so that adding a change to a view moves no other number
_CROP, _FLIP, _JITTER, _GRAYSCALE, _BLUR, _SOLARIZE, _AFFINE, _ELASTIC, _GAMMA, _NOISE, _TURN, _CHANNELS = range(12)
_CROP_ATTEMPTS = 10
_LUMA = (0.299, 0.587, 0.114)
_ELASTIC_GRID = 4


@dataclass(frozen=True)
class Keys:
    """The random coordinates of one view of a batch of images."""

    seed: int
    epoch: int
    samples: Array  # (n,), index of each image in its dataset
    view: int  # number of the view, from 1

    def draw(self, purpose: int, draws: int) -> NDArray[np.float64]:
        """(n, draws) uniform numbers in [0, 1)."""
        return uniform(self.seed, self.epoch, self.samples, self.view, purpose, draws=draws)


def each_view(groups: tuple[ViewConfig, ...], image_size: int) -> tuple[ViewConfig, ...]:
    """The settings of every single view of an image, in order, with its side in pixels."""
    return tuple(
        dataclasses.replace(group, count=1, image_size=group.image_size or image_size)
        for group in groups
        for _ in range(group.count)
    )


def random_boxes(view: ViewConfig, keys: Keys, height: int | Array, width: int | Array) -> NDArray[np.int64]:
    """Crops (n, 4) as top, left, height, width in pixels.

    Area and aspect ratio (log-uniform) are drawn until the crop fits, ten times at most, after which the largest
    central crop of an allowed ratio is taken: the distribution of torchvision's ``RandomResizedCrop``.

    Args:
        height, width: of the images in pixels: of all of them, or of each, (n,).
    """
    u = keys.draw(_CROP, 2 * _CROP_ATTEMPTS + 2)
    height, width = (np.broadcast_to(side, len(u)) for side in (height, width))
    scale, ratio = np.asarray(view.crop_scale), np.log(view.crop_ratio)
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * u[:, :_CROP_ATTEMPTS])
    aspect = np.exp(ratio[0] + (ratio[1] - ratio[0]) * u[:, _CROP_ATTEMPTS:-2])
    w, h = np.rint(np.sqrt(area * aspect)).astype(np.int64), np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= width[:, None]) & (h <= height[:, None])
    first = fits.argmax(1)[:, None]
    w, h = np.take_along_axis(w, first, 1)[:, 0], np.take_along_axis(h, first, 1)[:, 0]
    top = np.floor(u[:, -2] * (height - h + 1)).astype(np.int64)
    left = np.floor(u[:, -1] * (width - w + 1)).astype(np.int64)
    boxes = np.stack([top, left, h, w], 1)
    for row in np.flatnonzero(~fits.any(1)):
        boxes[row] = _central_crop(int(height[row]), int(width[row]), view.crop_ratio)
    return boxes


def _central_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def centre_box(fraction: float, height: int, width: int) -> tuple[int, int, int, int]:
    """The central square that evaluation uses, with ``fraction`` of the shorter side, as top, left, height, width."""
    side = max(1, round(fraction * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


def crop(image: Tensor, box: tuple[int, int, int, int] | Array, size: int) -> Tensor:
    """The crop of one image, resized with antialiasing: uint8 (c, h, w) to uint8 (c, size, size)."""
    top, left, height, width = (int(v) for v in box)
    return TV.resized_crop(image, top, left, height, width, [size, size], antialias=True)


def crop_batch(images: Tensor, boxes: Array, size: int) -> Tensor:
    """Crops of images (n, c, h, w) by boxes (n, 4), resized with antialiasing: floating point (n, c, size, size)."""
    height, width = images.shape[-2:]
    if size == height == width and (boxes == (0, 0, height, width)).all():
        return images.float()
    vertical = torch.from_numpy(_resize_matrices(boxes[:, 0], boxes[:, 2], height, size)).to(images.device)
    horizontal = torch.from_numpy(_resize_matrices(boxes[:, 1], boxes[:, 3], width, size)).to(images.device)
    return vertical[:, None] @ images.float() @ horizontal[:, None].mT


def random_view(pixels: Tensor, view: ViewConfig, keys: Keys) -> Tensor:
    """Applies every change of a view but the crop to pixels (n, c, s, s), floating point in [0, 1].

    Saturation, hue, grey and solarisation change colours: they are for three channels, and others stay without them.
    """
    pixels = _masked(pixels, keys.draw(_FLIP, 1)[:, 0] < view.flip, lambda x, _: x.flip(-1))
    if view.quarter_turns:
        pixels = _turn(pixels, view, keys)
    if view.rotation or view.zoom or view.shear or view.translation or view.elastic:
        pixels = _warp(pixels, view, keys)
    if view.jitter:
        pixels = _jitter(pixels, view, keys)
    if view.channel_jitter:
        pixels = _channel_jitter(pixels, view, keys)
    if pixels.shape[1] == 3:
        pixels = _masked(pixels, keys.draw(_GRAYSCALE, 1)[:, 0] < view.grayscale, lambda x, _: _gray(x).expand_as(x))
    if view.blur:
        pixels = _blur(pixels, view, keys)
    if pixels.shape[1] == 3:
        solarize = keys.draw(_SOLARIZE, 1)[:, 0] < view.solarize
        pixels = _masked(pixels, solarize, lambda x, _: torch.where(x >= 0.5, 1 - x, x))
    if view.gamma:
        exponent = np.exp(view.gamma * (2 * keys.draw(_GAMMA, 1)[:, 0] - 1))
        pixels = pixels.clamp(0, 1) ** _column(exponent, pixels)
    if view.noise:
        pixels = pixels + view.noise * _normal(keys, _NOISE, pixels)
    return pixels.clamp(0, 1)


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtracts ``mean`` and divides by ``std`` per channel; pixels (n, c, h, w) in [0, 1]."""
    m, s = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device).view(1, -1, 1, 1) for v in (mean, std))
    return (pixels - m) / s


def _resize_matrices(start: Array, length: Array, size_in: int, size_out: int) -> NDArray[np.float32]:
    """Rows of triangle filters (n, size_out, size_in), widened when shrinking, confined to the crop."""
    scale = length / size_out
    support = np.maximum(scale, 1.0)[:, None, None]
    centre = (start[:, None] + (np.arange(size_out) + 0.5) * scale[:, None])[:, :, None]
    pixel = np.arange(size_in)[None, None, :]
    inside = (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weights = np.maximum(0.0, 1 - np.abs(pixel + 0.5 - centre) / support) * inside
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def _masked(pixels: Tensor, mask: Array, change: Any) -> Tensor:
    """Applies ``change(pixels, positions)`` to the masked images only; the mask lives on the host."""
    if not mask.any():
        return pixels
    if mask.all():
        return change(pixels, slice(None))
    positions = torch.from_numpy(np.flatnonzero(mask)).to(pixels.device)
    return pixels.index_copy(0, positions, change(pixels[positions], positions).to(pixels.dtype))


def _column(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device, like.dtype).view(-1, 1, 1, 1)


def _normal(keys: Keys, purpose: int, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape of ``like``, each from one uniform number by the inverse distribution."""
    u = torch.from_numpy(keys.draw(purpose, like[0].numel()))  # float64, which not every device has
    return torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12)).to(like.device, like.dtype).view_as(like)


def _turn(pixels: Tensor, view: ViewConfig, keys: Keys) -> Tensor:
    """Turns an image by one, two or three right angles, each as likely; together with a flip, all eight positions."""
    u = keys.draw(_TURN, 2)
    turns = np.where(u[:, 0] < view.quarter_turns, 1 + np.floor(3 * u[:, 1]).astype(np.int64), 0)
    for number in (1, 2, 3):
        pixels = _masked(pixels, turns == number, lambda x, _, number=number: x.rot90(number, (-2, -1)))
    return pixels


def _gray(x: Tensor) -> Tensor:
    """The luma of colours, the mean of any other number of channels."""
    if x.shape[1] == 1:
        return x
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor(_LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _jitter(pixels: Tensor, view: ViewConfig, keys: Keys) -> Tensor:
    """Brightness, contrast, saturation and hue in each image's own random order, as torchvision's ``ColorJitter``."""
    u = keys.draw(_JITTER, 9)
    strength = np.array([view.brightness, view.contrast, view.saturation, view.hue])
    factors = np.maximum(0.0, 1 - strength) + u[:, :4] * (1 + strength - np.maximum(0.0, 1 - strength))
    factors[:, 3] = view.hue * (2 * u[:, 3] - 1)
    order = np.argsort(u[:, 4:8], 1)
    applied = u[:, 8] < view.jitter
    changes = (_brightness, _contrast, _saturation, _hue) if pixels.shape[1] == 3 else (_brightness, _contrast)
    for position in range(4):
        for number, change in enumerate(changes):
            if strength[number]:
                mask = applied & (order[:, position] == number)
                factor = _column(factors[mask, number], pixels)
                pixels = _masked(pixels, mask, lambda x, _, change=change, factor=factor: change(x, factor))
    return pixels


def _channel_jitter(pixels: Tensor, view: ViewConfig, keys: Keys) -> Tensor:
    """Contrast and then brightness of every channel on its own: x -> clamp(b · clamp(c · (x - m) + m)), m its mean."""
    channels = pixels.shape[1]
    u = keys.draw(_CHANNELS, 1 + 2 * channels)
    strength = np.repeat([view.channel_brightness, view.channel_contrast], channels)
    lowest = np.maximum(0.0, 1 - strength)
    factors = torch.from_numpy(lowest + u[:, 1:] * (1 + strength - lowest)).to(pixels.device, pixels.dtype)
    brightness, contrast = factors[:, :, None, None].split(channels, 1)

    def change(x: Tensor, rows: Any) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return (brightness[rows] * (mean + contrast[rows] * (x - mean)).clamp(0, 1)).clamp(0, 1)

    return _masked(pixels, u[:, 0] < view.channel_jitter, change)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + _gray(x).mean((1, 2, 3), keepdim=True) * (1 - factor)).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + _gray(x) * (1 - factor)).clamp(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of HSV by ``shift`` of a full circle.

    With value v and chroma c, the channel at offset o (5, 3, 1 for red, green, blue) of hue h (in sixths) is
    v - c · clamp(min(k, 4 - k), 0, 1), k = (o + h) mod 6.
    """
    value, brightest = x.max(1, keepdim=True)
    chroma = value - x.min(1, keepdim=True).values
    red, green, blue = x.split(1, 1)
    sector = torch.where(brightest == 0, green - blue, torch.where(brightest == 1, blue - red, red - green))
    hue = 2.0 * brightest + sector / torch.where(chroma == 0, 1.0, chroma) + 6 * shift
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    k = (offsets + hue).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(pixels: Tensor, view: ViewConfig, keys: Keys) -> Tensor:
    u = keys.draw(_BLUR, 2)
    mask = u[:, 0] < view.blur
    sigma = (view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * u[:, 1])[mask]
    if not mask.any():
        return pixels
    matrices = torch.from_numpy(_blur_matrices(sigma, pixels.shape[-1])).to(pixels.device, pixels.dtype)[:, None]
    return _masked(pixels, mask, lambda x, _: matrices @ x @ matrices.mT)


def _blur_matrices(sigma: Array, size: int) -> NDArray[np.float64]:
    """(n, size, size) Gaussian filters, cut at four standard deviations; borders are mirrored, without repetition."""
    reach = max(1, min(size - 1, int(np.ceil(4 * sigma.max()))))
    offset = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offset / sigma[:, None]) ** 2) * (np.abs(offset) <= np.ceil(4 * sigma[:, None]))
    weights /= weights.sum(1, keepdims=True)
    source = np.abs(np.arange(size)[:, None] + offset)
    source = np.where(source >= size, 2 * (size - 1) - source, source)
    matrices = np.zeros((len(sigma), size, size))
    for column, weight in zip(source.T, weights.T, strict=True):
        matrices[:, np.arange(size), column] += weight[:, None]
    return matrices


def _warp(pixels: Tensor, view: ViewConfig, keys: Keys) -> Tensor:
    """Rotation, zoom, shear and shift about the centre, plus a smooth random displacement; borders repeat."""
    n, _, height, width = pixels.shape
    u = 2 * keys.draw(_AFFINE, 6) - 1
    angle = np.deg2rad(view.rotation) * u[:, 0]
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    stretch = np.tile(np.eye(2), (n, 1, 1))
    stretch[:, 0, 0], stretch[:, 1, 1] = np.exp(view.zoom * u[:, 1]), np.exp(view.zoom * u[:, 2])
    stretch[:, 0, 1] = view.shear * u[:, 3]
    shift = 2 * view.translation * u[:, 4:, None]  # grid_sample's coordinates run from -1 to 1
    matrices = torch.from_numpy(np.concatenate([turn @ stretch, shift], 2)).to(pixels.device, pixels.dtype)
    grid = F.affine_grid(matrices, [n, 1, height, width], align_corners=False)
    if view.elastic:
        nodes = _normal(keys, _ELASTIC, pixels.new_empty(n, 2, _ELASTIC_GRID, _ELASTIC_GRID))
        field = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        grid = grid + field * pixels.new_tensor([2 * view.elastic / width, 2 * view.elastic / height])
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
