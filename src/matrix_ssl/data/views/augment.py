"""Random views of whole batches, with separate random numbers for every image.

All random numbers come from ``data.randomness`` at (seed, epoch, sample, view, purpose), so a view does not depend on
the batch it is computed in, on workers or on processes. They are drawn on the host, where the few numbers an image
needs cost nothing, so the pixel work runs on any device without a synchronisation.

Cropping with antialiased resizing and blurring are linear and separable: A_y X A_xᵀ with one small matrix per side of
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

# purposes: the last coordinate of the random numbers, so that a new augmentation leaves all other numbers as they are
_CROP, _FLIP, _JITTER, _GRAYSCALE, _BLUR, _SOLARIZE, _AFFINE, _ELASTIC, _GAMMA, _NOISE, _TURN, _CHANNELS = range(12)
_CROP_ATTEMPTS = 10
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey
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

    Area and aspect ratio (log-uniform) are drawn until the crop fits, at most ten times, after which the largest
    central crop with an allowed ratio is taken: the distribution of torchvision's ``RandomResizedCrop``.

    Args:
        height, width: of the images in pixels, one for all of them or one for each, (n,).
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


@dataclass(frozen=True)
class Draws:
    """What happens to every image of a batch in one view, with noise yet to be drawn; None: an augmentation is off."""

    flip: Array  # (n,), bool, like every field that says whether an augmentation is applied
    turns: Array | None  # (n,), number of right angles
    affine: Array | None  # (n, 2, 3), for coordinates from -1 to 1
    nodes: Array | None  # (n, 2, 4, 4), uniform numbers for the elastic displacement
    jitter: Array  # (n,)
    factors: Array  # (n, 4), of brightness, contrast and saturation, and the shift of the hue
    order: Array  # (n, 4), the numbers of these four in the order in which they are applied
    channel_jitter: Array  # (n,)
    channel_factors: Array | None  # (n, 2, c), of brightness and contrast of every channel
    grayscale: Array  # (n,)
    blur: Array  # (n,)
    sigma: Array  # (n,), pixels
    solarize: Array  # (n,)
    exponent: Array | None  # (n,), gamma
    keys: Keys

    def image(self, row: int) -> "Draws":
        """The draws for one image."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "keys"}
        keys = dataclasses.replace(self.keys, samples=self.keys.samples[row : row + 1])
        rows: dict[str, Any] = {n: None if value is None else value[row : row + 1] for n, value in values.items()}
        return Draws(**rows, keys=keys)


def draw_view(view: ViewConfig, keys: Keys, *, channels: int) -> Draws:
    """The random numbers for a view of a batch."""
    is_warped = bool(view.rotation or view.zoom or view.shear or view.translation or view.elastic)
    jitter, blur = keys.draw(_JITTER, 9), keys.draw(_BLUR, 2)
    strength = np.array([view.brightness, view.contrast, view.saturation, view.hue])
    factors = np.maximum(0.0, 1 - strength) + jitter[:, :4] * (1 + strength - np.maximum(0.0, 1 - strength))
    factors[:, 3] = view.hue * (2 * jitter[:, 3] - 1)
    turn, channel = keys.draw(_TURN, 2), keys.draw(_CHANNELS, 1 + 2 * channels)
    return Draws(
        flip=keys.draw(_FLIP, 1)[:, 0] < view.flip,
        turns=np.where(turn[:, 0] < view.quarter_turns, 1 + np.floor(3 * turn[:, 1]).astype(np.int64), 0)
        if view.quarter_turns else None,
        affine=_affine(view, keys) if is_warped else None,
        nodes=keys.draw(_ELASTIC, 2 * _ELASTIC_GRID**2).reshape(-1, 2, _ELASTIC_GRID, _ELASTIC_GRID)
        if view.elastic else None,
        jitter=jitter[:, 8] < view.jitter,
        factors=factors,
        order=np.argsort(jitter[:, 4:8], 1),
        channel_jitter=channel[:, 0] < view.channel_jitter,
        channel_factors=_channel_factors(view, channel[:, 1:]) if view.channel_jitter else None,
        grayscale=keys.draw(_GRAYSCALE, 1)[:, 0] < view.grayscale,
        blur=blur[:, 0] < view.blur,
        sigma=view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * blur[:, 1],
        solarize=keys.draw(_SOLARIZE, 1)[:, 0] < view.solarize,
        exponent=np.exp(view.gamma * (2 * keys.draw(_GAMMA, 1)[:, 0] - 1)) if view.gamma else None,
        keys=keys,
    )  # fmt: skip


def crop_exactly(image: Tensor, box: Array, size: int) -> Tensor:
    """``crop_batch`` of one image (c, h, w), up to a few units in the last place, in cache: (1, c, size, size)."""
    top, left, height, width = box.tolist()
    part = image[None, :, top : top + height, left : left + width].float()
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)


def random_view(pixels: Tensor, view: ViewConfig, keys: Keys) -> Tensor:
    """Applies every augmentation of a view except the crop to pixels (n, c, s, s), floating point in [0, 1].

    Saturation, hue, grey and solarisation change colours: they are applied only to images with three channels.
    """
    return change(pixels, view, draw_view(view, keys, channels=pixels.shape[1]))


def change(pixels: Tensor, view: ViewConfig, draws: Draws) -> Tensor:
    """``random_view``, given its random numbers."""
    pixels = _masked(pixels, draws.flip, lambda x, _: x.flip(-1))
    if draws.turns is not None:
        for number in (1, 2, 3):
            turned = np.equal(draws.turns, number)
            pixels = _masked(pixels, turned, lambda x, _, number=number: x.rot90(number, (-2, -1)))
    if draws.affine is not None:
        pixels = _warp(pixels, view, draws)
    if view.jitter:
        pixels = _jitter(pixels, view, draws)
    if draws.channel_factors is not None:
        pixels = _channel_jitter(pixels, draws)
    if pixels.shape[1] == 3:
        pixels = _masked(pixels, draws.grayscale, lambda x, _: _gray(x).expand_as(x))
    if view.blur:
        pixels = _blur(pixels, draws)
    if pixels.shape[1] == 3:
        pixels = _masked(pixels, draws.solarize, lambda x, _: torch.where(x >= 0.5, 1 - x, x))
    if draws.exponent is not None:
        pixels = pixels.clamp(0, 1) ** _column(draws.exponent, pixels)
    if view.noise:
        pixels = pixels + view.noise * noise(draws.keys, pixels)
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


def normal(uniform: Array) -> Tensor:
    """Standard normal numbers, float64, each from one uniform number by the inverse distribution function."""
    return torch.special.ndtri(torch.from_numpy(uniform).clamp(1e-12, 1 - 1e-12))


def noise(keys: Keys, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape of ``like``."""
    return normal(keys.draw(_NOISE, like[0].numel())).to(like.device, like.dtype).view_as(like)


def _gray(x: Tensor) -> Tensor:
    """The luma of three colours, or the mean of any other number of channels."""
    if x.shape[1] == 1:
        return x
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor(LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _jitter(pixels: Tensor, view: ViewConfig, draws: Draws) -> Tensor:
    """Brightness, contrast, saturation and hue in a random order per image, as in torchvision's ``ColorJitter``."""
    strength = (view.brightness, view.contrast, view.saturation, view.hue)
    changes = (_brightness, _contrast, _saturation, _hue) if pixels.shape[1] == 3 else (_brightness, _contrast)
    for position in range(4):
        for number, change in enumerate(changes):
            if strength[number]:
                mask = draws.jitter & (draws.order[:, position] == number)
                factor = _column(draws.factors[mask, number], pixels)
                pixels = _masked(pixels, mask, lambda x, _, change=change, factor=factor: change(x, factor))
    return pixels


def _channel_factors(view: ViewConfig, u: Array) -> Array:
    """(n, 2, c), of brightness and contrast, each from one uniform number."""
    strength = np.repeat([view.channel_brightness, view.channel_contrast], u.shape[1] // 2)
    lowest = np.maximum(0.0, 1 - strength)
    return (lowest + u * (1 + strength - lowest)).reshape(len(u), 2, -1)


def _channel_jitter(pixels: Tensor, draws: Draws) -> Tensor:
    factors = torch.from_numpy(draws.channel_factors).to(pixels.device, pixels.dtype)
    return _masked(pixels, draws.channel_jitter, lambda x, rows: jitter_channels(x, factors[rows]))


def jitter_channels(x: Tensor, factors: Tensor) -> Tensor:
    """Contrast and then brightness of every channel on its own: x -> clamp(b · clamp(c · (x - m) + m)), m its mean."""
    brightness, contrast = factors[..., None, None].unbind(1)
    mean = x.mean((2, 3), keepdim=True)
    return (brightness * (mean + contrast * (x - mean)).clamp(0, 1)).clamp(0, 1)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + _gray(x).mean((1, 2, 3), keepdim=True) * (1 - factor)).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + _gray(x) * (1 - factor)).clamp(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotates the hue of HSV by ``shift`` of a full circle, at most half of one.

    With the largest value v, chroma c and a hue h in sixths, the channels are v - c + c · clamp(2 - |h|, 0, 1) for red,
    clamp(2 - |h - 2|, 0, 1) for green and clamp(2 - |h - 4|, 0, 1) for blue, distances taken around the circle of six.
    Comparisons and selections are written with signs, minima and maxima: on a CPU these are many times as fast as
    ``where``, ``remainder`` and an extremum with its index.
    """
    red, green, blue = x.split(1, 1)
    difference = blue - green
    is_blue = difference.sign().clamp_min_(0)  # 1 where blue exceeds green
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    is_high = torch.sub(high, red, out=difference).sign_().clamp_min_(0)  # 1 where red is not the largest
    middle = torch.minimum(red, high)
    value, least = torch.maximum(red, high), torch.minimum(middle, low)
    chroma = value.sub_(least)
    # |offset + (middle - low) / chroma|, offset by the two largest: 0 red and green, -6 red and blue, -2 green, 4 blue
    hue = middle.sub_(low).div_(chroma.clamp_min(1e-20))
    hue.add_(is_blue.mul(12).sub_(2).mul_(is_high)).sub_(is_blue, alpha=6).abs_().add_(6 * shift)
    turned = torch.empty_like(x)
    for channel, place in ((1, 2.0), (2, 4.0)):
        torch.sub(hue, place, out=turned[:, channel : channel + 1]).abs_().sub_(3).abs_().sub_(1)
    torch.sub(hue, 3, out=turned[:, :1]).abs_().sub_(3).abs_().neg_().add_(2)
    return turned.clamp_(0, 1).mul_(chroma).add_(least)


def _blur(pixels: Tensor, draws: Draws) -> Tensor:
    if not draws.blur.any():
        return pixels
    filters = _blur_matrices(draws.sigma[draws.blur], pixels.shape[-1])
    matrices = torch.from_numpy(filters).to(pixels.device, pixels.dtype)[:, None]
    return _masked(pixels, draws.blur, lambda x, _: matrices @ x @ matrices.mT)


def _blur_matrices(sigma: Array, size: int) -> NDArray[np.float64]:
    """(n, size, size) Gaussian filters, cut at four standard deviations; borders are mirrored without repetition."""
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


def _affine(view: ViewConfig, keys: Keys) -> Array:
    """(n, 2, 3): rotation, zoom, shear and shift about the centre, for coordinates from -1 to 1."""
    u = 2 * keys.draw(_AFFINE, 6) - 1
    angle = np.deg2rad(view.rotation) * u[:, 0]
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    stretch = np.tile(np.eye(2), (len(u), 1, 1))
    stretch[:, 0, 0], stretch[:, 1, 1] = np.exp(view.zoom * u[:, 1]), np.exp(view.zoom * u[:, 2])
    stretch[:, 0, 1] = view.shear * u[:, 3]
    shift = 2 * view.translation * u[:, 4:, None]
    return np.concatenate([turn @ stretch, shift], 2)


def _warp(pixels: Tensor, view: ViewConfig, draws: Draws) -> Tensor:
    """The affine transform, plus a smooth random displacement; borders are repeated."""
    matrices = torch.from_numpy(draws.affine).to(pixels.device, pixels.dtype)
    nodes = None if draws.nodes is None else normal(draws.nodes).to(pixels.device, pixels.dtype)
    return warp(pixels, matrices, nodes, elastic=view.elastic)


def warp(pixels: Tensor, matrices: Tensor, nodes: Tensor | None, *, elastic: float) -> Tensor:
    """Pixels (n, c, h, w) at coordinates transformed by matrices (n, 2, 3) and displaced by nodes (n, 2, 4, 4)."""
    grid = warped_grid(matrices, nodes, *pixels.shape[-2:], elastic=elastic)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def warped_grid(matrices: Tensor, nodes: Tensor | None, height: int, width: int, *, elastic: float) -> Tensor:
    """Where the pixels of ``warp`` come from, (n, h, w, 2), as coordinates from -1 to 1."""
    grid = F.affine_grid(matrices, [len(matrices), 1, height, width], align_corners=False)
    if nodes is None:
        return grid
    field = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True)
    return grid + torch.stack([field[:, 0] * (2 * elastic / width), field[:, 1] * (2 * elastic / height)], -1)
