"""The random views of a batch on a GPU: few operators, constant shapes, and nothing that the host has to wait for.

The random numbers and the formulas are those of ``augment``. The difference is that every image goes through every
augmentation, with the numbers of the identity if it is not selected, and that all views of one size are a single batch.
The numbers of a step are sent together, in one copy from pinned memory; matrices for crops and blur are computed where
they are used. Results agree with ``augment`` to about 1e-6.

The colour jitter is a rotation of the hue, with two operations before and two after it, of which an image uses two.
Each is y = clamp(M x + B mean(x), 0, 1) with matrices of the channels: saturation has M = f I + (1 - f) 1 lᵀ, contrast
M = f I and B = (1 - f) 1 lᵀ, where l are the weights of grey. Brightness, y = clamp(b x, 0, 1), needs no operation of
its own except at the very beginning: because b ≥ 0,

    clamp(b clamp(y, 0, 1), 0, 1) = clamp(b y, 0, min(b, 1)),

and the rotation of the hue T satisfies T(b x) = b T(x), so that brightness after T is clamp(b y, 0, b) before it and an
upper bound of one after it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from matrix_ssl.config import ViewConfig
from matrix_ssl.data.views import augment
from matrix_ssl.data.views.augment import Array, Draws

_SLOTS = 2  # colour operations before the rotation of the hue, and after it


def _white(pixels: Tensor) -> float:
    """The highest value that a pixel can have."""
    return 1.0 if pixels.is_floating_point() else 255.0


class DeviceViews:
    """Makes the views of a run.

    Args:
        views: each of one view, with its size, as ``augment.each_view`` gives them.
        mean, std: per channel, of pixels in [0, 1].
    """

    def __init__(
        self,
        views: Sequence[ViewConfig],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype,
    ):
        self._device, self._dtype = device, dtype
        sizes = dict.fromkeys(view.image_size for view in views)
        self._groups = [
            _Group(size, tuple(number for number, view in enumerate(views) if view.image_size == size))
            for size in sizes
        ]
        self._views = tuple(views)
        scale = 1 / torch.tensor(std, dtype=torch.float32)
        shift = -torch.tensor(mean, dtype=torch.float32) * scale
        self._scale, self._shift = (t.view(1, -1, 1, 1).to(device) for t in (scale, shift))
        self._constants: dict[tuple[str, int], Tensor] = {}

    def of_images(self, images: Tensor, samples: Array, *, seed: int, epoch: int) -> tuple[Tensor, ...]:
        """The views of some images of a dataset (m, c, h, w), uint8 or float32 in [0, 1], that is on the device."""
        height, width = images.shape[-2:]
        table = _Table()
        drawn = self._draw(table, seed, epoch, samples, channels=images.shape[1], flips=False)
        for group, draws in zip(self._groups, drawn, strict=True):
            boxes = [augment.random_boxes(self._views[v], draws[v].keys, height, width) for v in group.views]
            flips = np.concatenate([draws[v].flip for v in group.views])
            table.add(f"samples {group.size}", np.tile(samples, len(boxes)).astype(np.int32))
            for name, value in _crop_numbers(np.concatenate(boxes), flips, group.size).items():
                table.add(f"{name} {group.size}", value)
        numbers = table.move(self._device)
        results: dict[int, Tensor] = {}
        for group, draws in zip(self._groups, drawn, strict=True):
            chosen = images.index_select(0, numbers[f"samples {group.size}"].view(torch.int32))
            pixels = self._crop(chosen, numbers, group.size)
            results |= self._finish(pixels, group, draws, numbers)
        return tuple(results[number] for number in range(len(self._views)))

    def of_crops(self, crops: Sequence[Tensor], samples: Array, *, seed: int, epoch: int) -> tuple[Tensor, ...]:
        """The views from the crops of each (n, c, s, s), uint8 or float32 in [0, 1], on the device, in their order."""
        table = _Table()
        drawn = self._draw(table, seed, epoch, samples, channels=crops[0].shape[1], flips=True)
        numbers = table.move(self._device)
        results: dict[int, Tensor] = {}
        for group, draws in zip(self._groups, drawn, strict=True):
            parts = [crops[v] for v in group.views]
            pixels = (parts[0] if len(parts) == 1 else torch.cat(parts)) / _white(parts[0])
            flip = numbers[f"flip {group.size}"].view(-1, 1, 1, 1) > 0
            results |= self._finish(torch.where(flip, pixels.flip(-1), pixels), group, draws, numbers)
        return tuple(results[number] for number in range(len(self._views)))

    def _draw(
        self, table: "_Table", seed: int, epoch: int, samples: Array, *, channels: int, flips: bool
    ) -> list[dict[int, Draws]]:
        """The random numbers of every group, added to the table."""
        drawn = []
        for group in self._groups:
            draws = {
                v: augment.draw_view(self._views[v], augment.Keys(seed, epoch, samples, v + 1), channels=channels)
                for v in group.views
            }
            if flips:
                table.add(f"flip {group.size}", np.concatenate([d.flip for d in draws.values()]))
            columns = [_numbers(self._views[v], draws[v], channels) for v in group.views]
            for name in columns[0] | dict.fromkeys(name for column in columns for name in column):
                parts = [column.get(name) for column in columns]
                like = next(part for part in parts if part is not None)
                values = [_identity(name, like) if part is None else part for part in parts]
                table.add(f"{name} {group.size}", np.concatenate(values))
            drawn.append(draws)
        return drawn

    def _crop(self, images: Tensor, numbers: dict[str, Tensor], size: int) -> Tensor:
        """Crops (n, c, size, size) in [0, 1] of images (n, c, h, w), flipped where that was drawn."""
        n, channels, height, width = images.shape
        columns = [numbers[f"{name} {size}"] for name in ("origin", "step", "slope", "middle", "half")]
        if height == width:
            vertical, horizontal = self._filters(columns, height, size).split(n)
        else:
            vertical = self._filters([column[:n] for column in columns], height, size)
            horizontal = self._filters([column[n:] for column in columns], width, size)
        # (n, h, c, w): one copy of bytes, and one of numbers that are float32 already
        rows = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format).contiguous()
        rows = torch.bmm(vertical, rows.view(n, height, channels * width)).view(n, size * channels, width)
        zero = self._constant("zero", 1).view(1, 1, 1)
        crops = torch.baddbmm(zero, rows, horizontal.mT, beta=0, alpha=1 / _white(images))
        return crops.view(n, size, channels, size).transpose(1, 2)

    def _filters(self, columns: list[Tensor], side: int, size: int) -> Tensor:
        """Rows of triangle filters (n, size, side) as ``augment`` has them."""
        origin, step, slope, middle, half = (column.view(-1, 1, 1) for column in columns)
        pixel = self._constant("centres", side).view(1, 1, side)
        centre = torch.addcmul(origin, step, self._constant("centres", size).view(1, size, 1))
        weights = torch.addcmul(self._constant("one", 1), (pixel - centre).abs_(), slope).clamp_min_(0)
        weights = weights * ((pixel - middle).abs_() < half)
        return weights / weights.sum(-1, keepdim=True)

    def _finish(
        self, pixels: Tensor, group: "_Group", draws: dict[int, Draws], numbers: dict[str, Tensor]
    ) -> dict[int, Tensor]:
        """All augmentations after crop and flip, and normalisation, by number of the view."""
        of = {name.rpartition(" ")[0]: t for name, t in numbers.items() if name.rpartition(" ")[2] == str(group.size)}
        views = [self._views[v] for v in group.views]
        n, channels, size, _ = pixels.shape
        for number in (1, 2, 3) if "quarters" in of else ():
            is_turned = of["quarters"].view(-1, 1, 1, 1) == number
            pixels = torch.where(is_turned, pixels.rot90(number, (-2, -1)), pixels)
        if "affine" in of:
            nodes = of["nodes"].view(n, 2, 4, 4) if "nodes" in of else None
            pixels = augment.warp(pixels, of["affine"].view(n, 2, 3), nodes, elastic=1.0)
        if "colours" in of:
            matrices = of["colours"].view(n, -1, 2, channels, channels)
            pixels = self._jitter(pixels, matrices, of["lights"].view(n, -1), of.get("turn"))
        if "channels" in of:
            pixels = augment.jitter_channels(pixels, of["channels"].view(n, 2, channels))
        if "grey" in of:
            flat = torch.bmm(of["grey"].view(n, channels, channels), pixels.reshape(n, channels, -1))
            pixels = flat.view(n, channels, size, size)
        if "filter" in of:
            pixels = self._blur(pixels, of["filter"].view(n, -1))
        if "white" in of:  # x from one half on becomes 1 - x
            pixels = torch.minimum(pixels, of["white"].view(-1, 1, 1, 1) - pixels)
        if "exponent" in of:
            pixels = pixels.clamp(0, 1) ** of["exponent"].view(-1, 1, 1, 1)
        if any(view.noise for view in views):
            parts = zip(views, draws.values(), pixels.chunk(len(views)), strict=True)
            pixels = torch.cat([part + view.noise * augment.noise(d.keys, part) for view, d, part in parts]).clamp(0, 1)
        pixels = torch.addcmul(self._shift, pixels, self._scale)
        pixels = pixels.to(self._dtype, memory_format=torch.channels_last)
        return dict(zip(group.views, pixels.chunk(len(views)), strict=True))

    def _jitter(self, pixels: Tensor, colours: Tensor, lights: Tensor, turn: Tensor | None) -> Tensor:
        """Colour operations with matrices (n, 1 or 4, 2, c, c), and between them rotations (n · 3,) of the hue.

        ``lights`` (n, 3 or 6) has the brightness at the beginning, then the bounds after it and after every operation.
        """
        n, channels, size, _ = pixels.shape
        zero = self._constant("zero", 1)
        first, bound, *bounds = lights.view(n, -1, 1, 1).unbind(1)
        flat = (pixels.reshape(n, channels, size * size) * first).clamp_(zero, bound)
        for slot, (pair, bound) in enumerate(zip(colours.unbind(1), bounds, strict=True)):
            if slot == _SLOTS:
                if turn is not None:
                    flat = _hue(flat, turn.view(n, 3, 1), self._constant("differences", 3).expand(n, 3, 3))
                flat = flat.clamp_max_(1)
            matrix, of_mean = pair.unbind(1)
            bias = torch.bmm(of_mean, flat.mean(-1, keepdim=True))
            flat = torch.baddbmm(bias, matrix, flat).clamp_(zero, bound)
        return flat.view(n, channels, size, size)

    def _blur(self, pixels: Tensor, filters: Tensor) -> Tensor:
        """Applies filters (n, size + 1) with mirrored borders, as matrices per image; their last number is zero."""
        n, channels, size, _ = pixels.shape
        weights = filters.index_select(1, self._constant("offsets", size)).view(n, 3, size, size).sum(1)
        rows = weights @ pixels.transpose(1, 2).reshape(n, size, channels * size)
        rows = rows.view(n, size * channels, size) @ weights.mT
        return rows.view(n, size, channels, size).transpose(1, 2)

    def _constant(self, name: str, size: int) -> Tensor:
        """A tensor that depends only on a size, made once."""
        if (name, size) not in self._constants:
            makers: dict[str, Callable[[int], Tensor]] = {
                "centres": _centres,
                "offsets": _offsets,
                "one": torch.ones,
                "zero": torch.zeros,
                "differences": _differences,
            }
            self._constants[name, size] = makers[name](size).to(self._device)
        return self._constants[name, size]


@dataclass(frozen=True)
class _Group:
    """Views of one size."""

    size: int
    views: tuple[int, ...]  # from 0


@dataclass
class _Table:
    """Arrays that are sent to a device as one tensor of float32, from pinned memory for a GPU."""

    columns: dict[str, Array] = field(default_factory=dict)

    def add(self, name: str, values: Array) -> None:
        """Adds an array; 32-bit integers keep their bits."""
        self.columns[name] = values.view(np.float32) if values.dtype == np.int32 else values.astype(np.float32)

    def move(self, device: torch.device) -> dict[str, Tensor]:
        """The arrays on the device, each as a vector."""
        sizes = [column.size for column in self.columns.values()]
        together = torch.empty(sum(sizes), pin_memory=device.type == "cuda")
        np.concatenate([column.ravel() for column in self.columns.values()], out=together.numpy())
        parts: Iterator[Tensor] = iter(together.to(device, non_blocking=True).split(sizes))
        return dict(zip(self.columns, parts, strict=True))


def _crop_numbers(boxes: Array, flips: Array, size: int) -> dict[str, Array]:
    """The numbers of the filters of all images, those along the height first: see ``augment._resize_matrices``.

    Row k has its centre at origin + step · (k + ½), and ``slope`` is that of its triangle. Only pixels whose centre is
    within ``half`` of the middle of the crop count.
    """
    start = np.concatenate([boxes[:, 0], boxes[:, 1]]).astype(np.float64)
    length = np.concatenate([boxes[:, 2], boxes[:, 3]])
    mirrored = np.concatenate([np.zeros_like(flips), flips])
    step = length / size
    return {
        "origin": np.where(mirrored, start + length, start),
        "step": np.where(mirrored, -step, step),
        "slope": -1 / np.maximum(step, 1),
        "middle": start + length / 2,
        "half": length / 2,
    }


def _numbers(view: ViewConfig, draws: Draws, channels: int) -> dict[str, Array]:
    """The columns of a view after crop and flip; an augmentation that is switched off has none."""
    columns: dict[str, Array] = {}
    if draws.turns is not None:
        columns["quarters"] = draws.turns.astype(np.float64)
    if draws.affine is not None:
        columns["affine"] = draws.affine
    if draws.nodes is not None:
        columns["nodes"] = view.elastic * augment.normal(draws.nodes).numpy()
    if view.jitter:
        columns["colours"], columns["lights"] = _colours(draws, channels)
        if channels == 3 and view.hue:
            turn = 6 * np.where(draws.jitter, draws.factors[:, 3], 0.0)
            columns["turn"] = turn[:, None] + np.array([5.0, 3.0, 1.0])  # of red, green and blue
    if draws.channel_factors is not None:
        columns["channels"] = np.where(draws.channel_jitter[:, None, None], draws.channel_factors, 1.0)
    if view.grayscale and channels == 3:
        columns["grey"] = np.where(draws.grayscale[:, None, None], _luma(channels), np.eye(channels))
    if view.blur:
        columns["filter"] = _blur_filters(draws, view.image_size)
    if view.solarize and channels == 3:
        columns["white"] = np.where(draws.solarize, 1.0, 3.0)
    if draws.exponent is not None:
        columns["exponent"] = draws.exponent
    return columns


def _colours(draws: Draws, channels: int) -> tuple[Array, Array]:
    """M and B of every colour operation, (n, 4, 2, c, c), and ``lights`` (n, 6): see ``DeviceViews._jitter``.

    If there are not three channels, only brightness and contrast change: (n, 1, 2, c, c) and (n, 3).
    """
    n, luma = len(draws.jitter), _luma(channels)
    changes, slots = ((1, 2), 2 * _SLOTS) if channels == 3 else ((1,), 1)
    factors = np.where(draws.jitter[:, None], draws.factors, 1.0)
    rank = np.argsort(draws.order, 1)  # at which position brightness, contrast, saturation and the hue come
    hue = rank[:, 3] if channels == 3 else np.full(n, 4)
    matrices = np.zeros((n, slots, 2, channels, channels))
    matrices[:, :, 0] = np.eye(channels)
    joined = np.zeros(n, dtype=np.int64)  # the operation, from 1, that brightness follows; 0: it is at the beginning
    for number in changes:
        factor, own = factors[:, number, None, None], rank[:, number]
        earlier = [(rank[:, other] < own) & ((rank[:, other] > hue) == (own > hue)) for other in changes]
        place = _SLOTS * (own > hue) + np.sum(earlier, 0)
        matrices[np.arange(n), place, 0] = factor * np.eye(channels) + (number == 2) * (1 - factor) * luma
        matrices[np.arange(n), place, 1] = (number == 1) * (1 - factor) * luma
        joined = np.where(own < rank[:, 0], np.maximum(joined, place + 1), joined)
    brightness, stages = factors[:, :1], np.arange(1 + slots)
    is_here = stages == joined[:, None]
    is_turned = ((hue < rank[:, 0]) & (joined <= _SLOTS))[:, None]  # the hue comes in between
    is_behind = (stages >= joined[:, None]) & (stages <= _SLOTS)
    bounds = np.where(is_here, np.minimum(brightness, 1.0), 1.0)
    bounds = np.where(is_turned & is_behind, brightness, bounds)
    factor = np.where(is_here, brightness, 1.0)
    return matrices * factor[:, 1:, None, None, None], np.concatenate([factor[:, :1], bounds], 1)


def _blur_filters(draws: Draws, size: int) -> Array:
    """(n, size + 1), the Gaussian's weights at distances from 0 as ``augment`` has them; the last number is zero."""
    sigma, distance = draws.sigma[:, None], np.arange(size + 1)
    reach = np.minimum(size - 1, np.maximum(1, np.ceil(4 * sigma)))
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= reach)
    weights /= 2 * weights.sum(1, keepdims=True) - weights[:, :1]  # both sides of the middle
    return np.where(draws.blur[:, None], weights, distance == 0)


def _luma(channels: int) -> Array:
    """(c, c), a matrix that makes every channel grey: by weights of three colours, else by the mean."""
    return np.tile(np.array(augment.LUMA) if channels == 3 else np.full(channels, 1 / channels), (channels, 1))


def _identity(name: str, like: Array) -> Array:
    """The column of a view without an augmentation that other views of its size have."""
    if name == "turn":
        return np.broadcast_to(np.array([5.0, 3.0, 1.0]), like.shape)
    if name == "affine":
        return np.broadcast_to(np.eye(2, 3), like.shape)
    if name == "grey":
        return np.broadcast_to(np.eye(like.shape[-1]), like.shape)
    if name == "filter":
        return np.broadcast_to(np.eye(like.shape[-1])[0], like.shape)
    if name == "colours":
        identity = np.zeros_like(like)
        identity[:, :, 0] = np.eye(like.shape[-1])
        return identity
    values = {
        "nodes": 0.0,
        "lights": 1.0,
        "white": 3.0,
        "exponent": 1.0,
        "quarters": 0.0,
        "channels": 1.0,
    }
    return np.full_like(like, values[name])


def _hue(x: Tensor, turn: Tensor, differences: Tensor) -> Tensor:
    """The channels (n, 3, p) with a rotated hue; ``turn`` has the places of the channels, moved by the rotation, in
    sixths; ``differences`` (n, 3, 3) gives green - blue, blue - red and red - green.

    With value v, chroma c and hue h in sixths, a channel is v - c · clamp(min(k, 4 - k), 0, 1), k = (turn + h) mod 6.
    """
    value, brightest = x.max(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    sector = torch.bmm(differences, x).gather(1, brightest)
    k = torch.addcdiv(turn, sector, chroma.clamp_min(1e-20)).add_(brightest, alpha=2).remainder_(6)
    return torch.addcmul(value, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1)


def _centres(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float32) + 0.5


def _differences(size: int) -> Tensor:
    """(s, s), each row of which subtracts from the next channel the one after it."""
    identity = torch.eye(size)
    return identity.roll(1, 1) - identity.roll(2, 1)


def _offsets(size: int) -> Tensor:
    """(3 · s · s,), distances of a pixel from another one and its two mirror images; s: too far, or no mirror image."""
    to, by = torch.arange(size).view(-1, 1), torch.arange(size)
    before = torch.where(by > 0, to + by, size)
    behind = torch.where(by < size - 1, 2 * (size - 1) - to - by, size)
    return torch.stack([(to - by).abs(), before, behind]).clamp_max(size).flatten()
