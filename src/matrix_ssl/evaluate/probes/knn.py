"""Weighted nearest-neighbour classification and the exact search behind it.

Wu, Xiong, Yu and Lin, "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, section
3.4: the k training images of highest cosine similarity vote for their label with the weight exp(similarity / T).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.probes.inputs import ROWS, check_inputs

_PAIRS = 2**18  # pairs of neighbours compared at a time: 2 MiB of float64, which fits in a cache


def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    k: int,
    temperature: float = 0.07,
    chunk: int = 2048,
    device: torch.device | None = None,
) -> Tensor:
    """Predicts labels for ``test`` by the weighted vote of the ``k`` nearest training images.

    If labels tie, the one with the nearer image wins. A vector of zeros has similarity 0 with everything.

    Args:
        train: (n, d), any floating-point type; need not be normalised.
        train_labels: integers (n,) from 0, not necessarily contiguous.
        test: (m, d).
        temperature: T > 0; the smaller it is, the more weight the nearest images get.
        chunk, device: as in ``nearest``.

    Returns:
        int64 (m,) on the device of ``test``.

    Raises:
        ConfigError: ``k`` or ``temperature`` is not positive.
        DataError: there are fewer than ``k`` training images, or the features or labels are invalid.
    """
    check_inputs(train, train_labels, test)
    indices, similarities = nearest(train, test, k=k, chunk=chunk, device=device)
    return vote(train_labels.to(indices.device, torch.int64)[indices], similarities, temperature=temperature)


def vote(labels: Tensor, similarities: Tensor, *, temperature: float = 0.07) -> Tensor:
    """The label with the largest sum of exp(similarity / T) among the neighbours of each test image.

    Args:
        labels, similarities: (m, k) of the neighbours, most similar first.
        temperature: T > 0.

    Returns:
        int64 (m,). If labels tie, the one of the nearest neighbour among them.

    Raises:
        ConfigError: ``temperature`` is not positive.
    """
    if temperature <= 0:
        raise ConfigError(f"kNN temperature {temperature}: expected a positive number, for example 0.07.")
    k = labels.shape[1]
    nearness = (similarities.double() - similarities[:, :1].double()) / temperature
    weights = nearness.exp()  # relative to the nearest, so that the sum neither overflows nor vanishes
    rows = max(1, _PAIRS // (k * k))  # the comparison in _vote is (rows, k, k)
    return torch.cat([_vote(*pair) for pair in zip(labels.split(rows), weights.split(rows), strict=True)])


@torch.no_grad()
def nearest(
    train: Tensor, test: Tensor, *, k: int, chunk: int = 2048, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``train`` with the highest cosine similarity to each row of ``test``, by exhaustive search.

    Similarities are float32; for equal ones the lower index comes first, whatever the chunk size and the device. The
    features are not checked: a feature that is not finite makes its similarities meaningless.

    Args:
        train: (n, d), floating point, n < 2**32.
        test: (m, d), likewise.
        chunk: rows of either matrix that are compared at a time; temporaries take about 8 * chunk**2 bytes, and besides
            the features float32 (m, d) and two int64 (m, k) are kept.
        device: device for the comparison, which must support float64 (not MPS); None: that of ``test``. The training
            features may be on another device or in a memory-mapped file; they pass through the device once, in chunks.

    Returns:
        Indices int64 (m, k) into ``train`` and similarities float32 (m, k) in [-1, 1], most similar first, on the
        device of ``test``.

    Raises:
        ConfigError: ``k`` is not positive.
        DataError: ``train`` has fewer than ``k`` rows.
    """
    if k < 1:
        raise ConfigError(f"k={k}: expected at least 1 neighbour.")
    if k > len(train):
        raise DataError(f"k={k} neighbours need {k} training images, there are {len(train)}: lower k.")
    device = test.device if device is None else device
    queries = torch.cat([_normalise(rows.to(device)) for rows in test.split(ROWS)]).split(chunk)
    best = [(block[:, :0], torch.empty(len(block), 0, dtype=torch.int64, device=device)) for block in queries]
    for start in range(0, len(train), chunk):
        rows = _normalise(train[start : start + chunk].to(device))
        for i, block in enumerate(queries):
            products = (block @ rows.T).add_(0.0)  # -0.0 + 0.0 = 0.0: the two zeros tie on every device
            similarities, columns = _largest(products, k)
            values, order = _largest(torch.cat([best[i][0], similarities], dim=1), k)
            best[i] = values, torch.cat([best[i][1], columns + start], dim=1).gather(1, order)
    similarities, indices = (torch.cat(parts).to(test.device) for parts in zip(*best, strict=True))
    return indices, similarities.clamp(-1.0, 1.0)


def _normalise(features: Tensor) -> Tensor:
    # Squares of float32 values can overflow in float32, but not in float64.
    return F.normalize(features.double(), dim=1).float()


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest values of every row (or all) and their columns, descending; of equal ones, the first."""
    if values.shape[1] <= 2 * k:
        ordered, columns = values.sort(dim=1, descending=True, stable=True)
        return ordered[:, :k], columns[:, :k]
    largest, columns = values.topk(k + 1, dim=1)  # the choice and order of equal values are not defined
    columns = columns[:, :k].sort(dim=1).values
    ambiguous = largest[:, k - 1] == largest[:, k]
    if ambiguous.any():
        columns[ambiguous] = values[ambiguous].sort(dim=1, descending=True, stable=True).indices[:, :k]
    ordered, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return ordered, columns.gather(1, order)


def _vote(labels: Tensor, weights: Tensor) -> Tensor:
    """(m, k) labels and weights, nearest first -> (m,). Sums over pairs of neighbours, so needs no list of classes."""
    same = labels[:, :, None] == labels[:, None, :]
    votes = (same * weights[:, None, :]).sum(dim=2)
    winner = votes.argmax(dim=1, keepdim=True)  # the first of equal maxima, that is, the nearest
    return labels.gather(1, winner).squeeze(1)
