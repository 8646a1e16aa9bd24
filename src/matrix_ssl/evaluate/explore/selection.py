"""Diverse subsets of images to label or to keep, selected by greedy rules with a known bound.

All rules work on features normalised to length one. Images that are already selected, such as labelled ones, are taken
into account.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from matrix_ssl.errors import ConfigError, check_known, check_whole
from matrix_ssl.evaluate.explore.inputs import Matrix, as_indices, unit_rows

Rule = Literal["k-centre", "facility-location", "log-determinant"]
DISTORTION = 0.5  # ε², the squared error of the code in ``log-determinant``
_BATCH = 64  # facility-location candidates evaluated together

Pick = tuple[int, float]  # an image and its gain


class Selection(NamedTuple):
    """Selected images in the order of selection, without those of ``start``.

    Attributes:
        indices: int64 (count,).
        gains: float64 (count,), the gain of each when it was selected; non-increasing.
    """

    indices: NDArray[np.int64]
    gains: NDArray[np.float64]


def select(
    features: Matrix, *, count: int, rule: Rule = "log-determinant", start: Sequence[int] | ArrayLike = ()
) -> Selection:
    """Selects ``count`` images that differ from each other and from those of ``start``.

    The rules:

    - ``k-centre``: picks the image farthest from all selected ones, in Euclidean distance. The largest distance of an
      image to its nearest selected one is at most twice the smallest possible. Gains are these distances. Without
      ``start``, the first pick is the most central image, with gain 2. Prefers unusual images.
    - ``facility-location``: maximises mean_i max_{j in S} (1 + cos_ij) / 2, how well every image is represented.
      Prefers typical images.
    - ``log-determinant``: maximises log det(I + λ G_S) / 2 with the Gram matrix G_S of the selected rows and
      λ = d / (m ε²), ε² = 0.5, the coding length in nats of all m images, those of ``start`` included. Without
      ``start``, where all images have the same gain, the first pick is the most central one. Prefers new directions.

    The last two objectives are monotone and submodular, so greedy selection reaches at least 1 - 1/e (63 %) of the
    optimum; with ``start`` this holds for the increase. All distances are computed on the fly: memory is one copy of
    the features in float32 and, for ``log-determinant``, float64 (m, d).

    Args:
        features: (n, d), finite.
        count: number of images to select, from 1 to n - len(start).
        rule: see above.
        start: distinct indices of images that are already selected.

    Raises:
        ConfigError: the count, the rule or an index of ``start`` is invalid.
        DataError: a value is not finite.

    Reference: Gonzalez, Theoretical Computer Science 1985, and Sener and Savarese, ICLR 2018 (k-centre); Nemhauser,
    Wolsey and Fisher, Mathematical Programming 1978 (the bound); Minoux, 1978 (lazy evaluation); Chen, Zhang and Zhou,
    "Fast greedy MAP inference for determinantal point process", NeurIPS 2018, algorithm 1 (incremental Cholesky); Ma,
    Derksen, Hong and Wright, TPAMI 2007 (coding length).
    """
    rows = unit_rows(features)
    check_known("rule", rule, RULES)
    chosen = as_indices(start, len(rows), "start")
    check_choice(count, len(rows), chosen=len(chosen))
    picks = list(RULES[rule](rows, chosen.tolist(), count))
    indices, gains = zip(*picks, strict=True)
    return Selection(np.array(indices, dtype=np.int64), np.array(gains, dtype=np.float64))


def check_choice(count: int, images: int, *, chosen: int) -> None:
    """Raises ConfigError unless ``count`` images can be selected in addition to those already selected."""
    check_whole("count", count)
    if not 1 <= count <= images - chosen:
        already = f", {chosen} of them chosen already" if chosen else ""
        raise ConfigError(f"count={count}: there are {images} images{already}; choose 1 to {images - chosen}.")


def _k_centre(rows: Tensor, start: list[int], count: int) -> Iterator[Pick]:
    squared = torch.full((len(rows),), 4.0)
    for index in start:
        squared = torch.minimum(squared, _squared_distances(rows, index))
    squared[start] = -1.0
    for number in range(count):
        first = number == 0 and not start
        pick = _most_central(rows) if first else int(squared.argmax())
        yield pick, float(squared[pick].clamp(min=0.0).sqrt())
        squared = torch.minimum(squared, _squared_distances(rows, pick))
        squared[pick] = -1.0


def _most_central(rows: Tensor) -> int:
    return int((rows @ rows.mean(dim=0)).argmax())


def _squared_distances(rows: Tensor, index: int) -> Tensor:
    return (2.0 - 2.0 * (rows @ rows[index])).clamp_(min=0.0)


def _facility_location(rows: Tensor, start: list[int], count: int) -> Iterator[Pick]:
    best = torch.zeros(len(rows))  # for every image, its similarity to the nearest selected image
    for index in start:
        best = torch.maximum(best, (1.0 + rows @ rows[index]) / 2.0)
    # an upper bound on every gain: first its value for an empty selection, in closed form, later the last one computed
    bounds = (1.0 + rows.double() @ rows.double().mean(dim=0)) / 2.0
    bounds[start] = -1.0
    for _ in range(count):
        fresh = torch.zeros(len(rows), dtype=torch.bool)
        while True:
            top = int(bounds.argmax())
            if fresh[top]:
                break
            stale = bounds.masked_fill(fresh, -2.0).topk(min(_BATCH, int((~fresh).sum()))).indices
            gains = (
                ((1.0 + rows @ rows[stale].T) / 2.0 - best[:, None]).clamp_(min=0.0).mean(dim=0, dtype=torch.float64)
            )
            bounds[stale] = torch.where(bounds[stale] < 0, bounds[stale], gains)
            fresh[stale] = True
        yield top, float(bounds[top])
        best = torch.maximum(best, (1.0 + rows @ rows[top]) / 2.0)
        bounds[top] = -1.0


def _log_determinant(rows: Tensor, start: list[int], count: int) -> Iterator[Pick]:
    """Chen et al.'s Cholesky of M = I + λ G, with its columns as products of the rows with vectors ``basis``.

    The pivots of the unselected images, d_i² = 1 + λ r_i, shrink by e_i² with every selected j; e = √λ X u for the
    vector u = √λ (x_j - Uᵀ U x_j) / d_j. So no column of length n is kept.
    """
    scale = rows.shape[1] / ((len(start) + count) * DISTORTION)
    basis = torch.zeros(len(start) + count, rows.shape[1], dtype=torch.float64)
    pivots = 1.0 + scale * rows.double().square().sum(dim=1)
    left = torch.ones(len(rows), dtype=torch.bool)
    for number in range(len(start) + count):
        if number < len(start):
            pick = start[number]
        else:
            pick = int(pivots.masked_fill(~left, 0.0).argmax()) if number else _most_central(rows)
        if number >= len(start):
            yield pick, float(pivots[pick].log() / 2.0)
        row = rows[pick].double()
        seen = basis[:number]
        basis[number] = scale**0.5 * (row - seen.T @ (seen @ row)) / pivots[pick].sqrt()
        pivots = (pivots - scale * (rows @ basis[number].float()).double().square()).clamp_(min=1.0)
        left[pick] = False


RULES: dict[str, Callable[[Tensor, list[int], int], Iterator[Pick]]] = {
    "k-centre": _k_centre,
    "facility-location": _facility_location,
    "log-determinant": _log_determinant,
}
