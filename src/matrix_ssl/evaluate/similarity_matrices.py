"""Compares every block of an encoder with every block of another, and every checkpoint of a run with every other.

Linear CKA is the unbiased estimator, so that blocks of different widths can be compared. For blocks it uses all images,
in random batches whose kernels are discarded afterwards; RSA and matrix KL use only the first batch. For checkpoints,
all measures use one random sample.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.data.loading import evaluation_batches
from matrix_ssl.data.randomness import permutation
from matrix_ssl.data.views import augment
from matrix_ssl.errors import DataError
from matrix_ssl.evaluate.blocks import BlockOutputs
from matrix_ssl.evaluate.diagnose import STREAM, Progress
from matrix_ssl.evaluate.feature_rows import FeatureRows
from matrix_ssl.matrix import CKAStatistics, linear_cka_matrix, of_features, rsa_matrix

MATRICES = {
    "linear_cka": "unbiased linear CKA: 1 where the two are equal up to rotation and scale, 0 on average where "
    "they are unrelated (Kornblith et al., ICML 2019; Nguyen et al., ICLR 2021)",
    "rsa": "Spearman's correlation of the dissimilarities, one less Pearson's correlation, of all pairs of images "
    "(Kriegeskorte et al., 2008)",
    "matrix_kl": "matrix KL divergence of the Gram matrices of rows of length one, with a ridge of one over the number "
    "of images: 0 where they are equal; how much of what the row tells apart the column does not (Zhang et al., ICML "
    "2024)",
}
BATCH = 256  # images whose kernels are held in memory
SAMPLE = 1000  # images on which checkpoints are compared


class Network(NamedTuple):
    """An encoder with its name, and the images in the form that it expects."""

    name: str
    encoder: nn.Module
    source: Source
    data: DataConfig


@torch.no_grad()
def compare_blocks(
    first: Network, second: Network | None, *, images: int, device: torch.device, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Similarity matrices between the blocks of one or two encoders on the same images.

    Args:
        first: an encoder.
        second: a different encoder for the same images; None: the first is compared only with itself.
        images: maximum number of images; they are a random sample, but always the same one.
        device: device for the encoders.
        on_progress: called with (images done, number of images).

    Returns:
        ``images`` and ``sample``, the numbers of images used for CKA and for the rest, and ``tables``: for the first
        against the second, and for each against itself, the names ``rows`` and ``columns``, ``row_blocks`` and
        ``column_blocks``, and ``MATRICES``; None if a measure is not defined.

    Raises:
        DataError: fewer than four images can be read.
        NotFiniteError: an output is not finite; the error names the block.
    """
    order = permutation(len(first.source), 0, STREAM)[:images]
    networks = [first] if second is None else [first, second]
    streams = [_outputs(network, order, device) for network in networks]
    names: list[tuple[int, str]] = []
    state, sample, pending = None, None, []
    done = 0
    for batch in zip(*streams, strict=True):
        readable = functools.reduce(np.intersect1d, (indices for indices, _ in batch))
        done += len(readable)
        if len(readable):
            names = [(i, name) for i, (_, outputs) in enumerate(batch) for name in outputs]
            pending.append([x[np.isin(indices, readable)] for indices, outputs in batch for x in outputs.values()])
        if pending and sum(len(one[0]) for one in pending) >= 2 * BATCH:
            state, sample, pending = _add(state, sample, pending)
        if on_progress:
            on_progress(done, len(order))
    if done < 4:
        raise DataError(f"{done} of {len(order)} images of {first.source.name!r} can be read: four are needed.")
    while pending:
        state, sample, pending = _add(state, sample, pending)
    assert state is not None and sample is not None
    values = {"linear_cka": _listed(state.matrix()), **matrices_of_sample(sample)}
    return {"images": done, "sample": len(sample[0]), "tables": _tables(networks, names, values)}


@torch.no_grad()
def compare_checkpoints(subjects: Sequence[FeatureRows]) -> dict[str, Any]:
    """``MATRICES`` between all pairs of feature sets of the same images, on a random sample.

    Returns:
        ``names``; ``sample``, the number of images; and the matrices, with None where a measure is not defined.
    """
    chosen, _ = torch.from_numpy(permutation(subjects[0].count, 0, STREAM)[:SAMPLE]).sort()
    sample = [_rows(one, chosen) for one in subjects]
    cka = {"linear_cka": _listed(linear_cka_matrix(sample, estimator="unbiased"))} if len(chosen) >= 4 else {}
    return {"names": [one.name for one in subjects], "sample": len(chosen), **cka, **matrices_of_sample(sample)}


def matrices_of_sample(rows: Sequence[Tensor]) -> dict[str, list[list[float | None]]]:
    """RSA and matrix KL between representations (n, dᵢ) of one sample; RSA is None if a row is constant."""
    constant = torch.tensor([bool((one == one[:, :1]).all(1).any()) for one in rows])
    values = {"matrix_kl": _listed(of_features.gram_kl_matrix(rows, ridge=1 / len(rows[0])))}
    if len(rows[0]) < 3:
        return values
    rsa = rsa_matrix([one.double() for one in rows], validate=False)
    return {"rsa": _listed(rsa, undefined=constant.unsqueeze(1) | constant), **values}


def _outputs(
    network: Network, order: NDArray[np.int64], device: torch.device
) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]]:
    """Batches of the readable images' indices, with the outputs of all blocks averaged over positions."""
    source = network.source.subset(order)
    encoder, data = network.encoder.eval().to(device), network.data
    dtype = next((parameter.dtype for parameter in encoder.parameters()), torch.float32)
    with BlockOutputs(encoder, lambda output: output.float().mean(1).cpu()) as blocks:
        for indices, pixels, _ in evaluation_batches(source, data, device=device, batch_size=64):
            if len(indices):
                encoder(augment.normalise(pixels, data.mean, data.std).to(dtype))
            yield indices, dict(blocks.outputs)


def _add(
    state: CKAStatistics | None, sample: list[Tensor] | None, pending: list[list[Tensor]]
) -> tuple[CKAStatistics, list[Tensor], list[list[Tensor]]]:
    """Adds a batch of the pending images, or all of them if too few would be left."""
    rows = [torch.cat(one) for one in zip(*pending, strict=True)]
    count = BATCH if len(rows[0]) >= 2 * BATCH else len(rows[0])
    state = state or CKAStatistics(len(rows))
    state.add([one[:count] for one in rows])
    rest = [[one[count:] for one in rows]] if count < len(rows[0]) else []
    return state, sample or [one[:BATCH] for one in rows], rest


def _tables(
    networks: Sequence[Network], names: Sequence[tuple[int, str]], values: Mapping[str, list[list[float | None]]]
) -> list[dict[str, Any]]:
    """Cuts matrices over all blocks into tables: the first network against the second, and each against itself."""
    owned = [[place for place, (i, _) in enumerate(names) if i == network] for network in range(len(networks))]
    pairs = [(0, 0)] if len(networks) == 1 else [(0, 1), (0, 0), (1, 1)]
    return [
        {
            "rows": networks[a].name, "columns": networks[b].name,
            "row_blocks": [names[i][1] for i in owned[a]], "column_blocks": [names[j][1] for j in owned[b]],
            **{key: [[matrix[i][j] for j in owned[b]] for i in owned[a]] for key, matrix in values.items()},
        }
        for a, b in pairs
    ]  # fmt: skip


def _rows(subject: FeatureRows, chosen: Tensor) -> Tensor:
    """The rows at these ascending indices, in float64."""
    parts, start = [], 0
    for batch in subject.batches():
        inside = chosen[(chosen >= start) & (chosen < start + len(batch))] - start
        parts.append(batch[inside].double())
        start += len(batch)
    return torch.cat(parts)


def _listed(matrix: Tensor, *, undefined: Tensor | None = None) -> list[list[float | None]]:
    """The matrix as lists for JSON, with None where it is not defined."""
    rows: list[list[float | None]] = matrix.tolist()
    if undefined is not None:
        rows = [
            [None if lost else x for x, lost in zip(*pair, strict=True)] for pair in zip(rows, undefined, strict=True)
        ]
    return rows
