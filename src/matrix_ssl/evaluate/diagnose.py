"""How many directions an image encoder uses, block by block, without labels.

Every image is encoded three times: as in evaluation, and as two random views. The output of a block is averaged over
its positions to one vector per image; ranks and entropy are those of these vectors. Within an image, the token entropy
is that of the cosine kernel of its positions. LiDAR compares images with their views, on features scaled to a mean
variance of one, so that its constant means the same at every block. DiME compares Gaussian kernels of the views.
Memory holds a batch, d² numbers per block and the views of 256 images.

Reference for entropies, DiME and LiDAR by layer: Skean, Arefin, Zhao, Patel, Naghiyev, LeCun and Shwartz-Ziv,
"Layer by layer: uncovering hidden representations in language models", ICML 2025, https://arxiv.org/abs/2502.02013.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl.config import DataConfig, ViewConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.data.randomness import permutation
from matrix_ssl.data.views import augment
from matrix_ssl.data.views.augment import Keys
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.blocks import BlockOutputs
from matrix_ssl.matrix import Moments, RankStatistics, von_neumann_entropy
from matrix_ssl.matrix.comparison.dime import VIEWS, dime_of_views
from matrix_ssl.matrix.numerics.linalg import smaller_product
from matrix_ssl.matrix.ranks.measures import RIDGE, lidar_of

MEASURES = (
    "matrix_entropy", "normalised_matrix_entropy", "effective_rank", "participation_ratio", "rank_me", "token_entropy",
    "normalised_token_entropy", "lidar", "dime",
)  # fmt: skip
_POSITIONS = 64  # maximum number of an output's positions from which its entropy is computed
STREAM = 0xD1A6  # random stream that samples the images

Progress = Callable[[int, int], None]  # images done, number of images


class _Block:
    """The statistics accumulated at one block."""

    def __init__(self, width: int, positions: int):
        self.positions, self.tokens = positions, 0.0  # tokens: sum of the images' token entropies
        self.ranks = RankStatistics(width, groups=0)
        self.images = Moments(width)  # means of two views
        self.within = torch.zeros(width, width, dtype=torch.float64)
        self.views: list[tuple[Tensor, Tensor]] = []  # views of the first images

    def add(self, plain: tuple[Tensor, Tensor, int], first: Tensor, second: Tensor) -> None:
        self.ranks.add(plain[0])
        self.tokens += plain[1].sum().item()
        half = (first.double() - second.double()) / 2
        self.images.add((first.double() + second.double()) / 2)
        self.within += half.mT @ half
        if sum(len(one) for one, _ in self.views) < VIEWS:
            self.views.append((first, second))

    def measures(self) -> dict[str, Any]:
        report, n = self.ranks.report(), self.ranks.count
        between, within = self.images.covariance(), self.within / n
        scale = (between.trace() + within.trace()) / len(within)
        lidar = lidar_of(between / scale, within / scale, RIDGE).item() if scale > 0 else 1.0
        entropy, tokens = math.log(report.effective_rank), self.tokens / n if self.positions > 1 else None
        return {
            "width": report.width, "positions": self.positions, "matrix_entropy": entropy,
            "normalised_matrix_entropy": _over_bound(entropy, n - 1, report.width),
            "effective_rank": report.effective_rank, "participation_ratio": report.participation_ratio,
            "rank_me": report.rank_me, "token_entropy": tokens,
            "normalised_token_entropy": _over_bound(tokens, _looked_at(self.positions), report.width),
            "lidar": lidar, "dime": dime_of_views(*map(torch.cat, zip(*self.views, strict=True))),
        }  # fmt: skip


@torch.no_grad()
def diagnose_blocks(
    encoder: nn.Module, source: Source, data: DataConfig, views: tuple[ViewConfig, ViewConfig], *, images: int,
    device: torch.device, on_progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures every block of an encoder, in the order of the forward pass.

    Args:
        encoder: maps normalised images (n, c, s, s) to features (n, k); in evaluation mode.
        source: the images.
        data: their size and normalisation.
        views: the augmentations of the two views.
        images: maximum number of images; they are a random sample, but always the same one.
        device: device for the encoder.
        on_progress: called with (images done, number of images).

    Returns:
        ``images``, the number that could be read; ``unreadable``, path and reason of the others; and ``rows``, which
        hold ``MEASURES``, ``width`` and ``positions`` for every block.

    Raises:
        DataError: fewer than two images can be read.
        NotFiniteError: an output is not finite; the error names the block.
    """
    chosen = source.subset(np.sort(permutation(len(source), 0, STREAM)[:images]))
    encoder = encoder.eval().to(device)
    dtype = next((parameter.dtype for parameter in encoder.parameters()), torch.float32)
    blocks: dict[str, _Block] = {}
    done, unreadable = 0, []
    with BlockOutputs(encoder, _plain) as plain:
        for indices, pixels, problems in evaluation_batches(chosen, data, device=device, batch_size=64):
            done += len(indices) + len(problems)
            unreadable += problems
            if len(indices):
                passes = []
                for batch in (pixels, *_two_views(pixels, views, indices)):
                    encoder(augment.normalise(batch, data.mean, data.std).to(dtype))
                    passes.append(dict(plain.outputs))
                for name, output in passes[0].items():
                    block = blocks.setdefault(name, _Block(output[0].shape[1], output[2]))
                    block.add(output, passes[1][name][0], passes[2][name][0])
            if on_progress:
                on_progress(done, len(chosen))
    count = next((block.ranks.count for block in blocks.values()), 0)
    if count < 2:
        raise DataError(f"{count} of {len(chosen)} images of {source.name!r} can be read: two are needed.")
    rows = [{"block": name, **block.measures()} for name, block in blocks.items()]
    return {"images": count, "unreadable": unreadable, "rows": rows}


def _plain(output: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean over positions (n, k), entropy of the kernel of positions (n,), and the number of positions."""
    output = output.float().cpu()
    count = output.shape[1]
    some = output[:, :: _step(count)]
    unit = F.normalize(some.double(), dim=-1)
    entropies = von_neumann_entropy(smaller_product(unit), validate=False) if count > 1 else torch.zeros(len(output))
    return output.mean(1), entropies, count


def _step(positions: int) -> int:
    return -(-positions // _POSITIONS)


def _looked_at(positions: int) -> int:
    """How many of an output's positions the token entropy is computed from."""
    return -(-positions // _step(positions))


def _over_bound(entropy: float | None, rows: int, width: int) -> float | None:
    """An entropy divided by the logarithm of the largest possible number of directions; None if that number is one."""
    directions = min(rows, width)
    return entropy / math.log(directions) if entropy is not None and directions > 1 else None


def _two_views(pixels: Tensor, views: tuple[ViewConfig, ViewConfig], indices: NDArray[np.int64]) -> Iterator[Tensor]:
    """Two random views of pixels (n, c, s, s), of the same size."""
    side = pixels.shape[-1]
    for number, view in enumerate(views, start=1):
        keys = Keys(0, 0, indices, number)
        boxes = augment.random_boxes(view, keys, side, side)
        yield augment.random_view(augment.crop_batch(pixels, boxes, side), view, keys)
