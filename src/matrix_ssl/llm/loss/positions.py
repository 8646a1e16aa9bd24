"""Which positions of a batch count, according to its labels, and what is to be predicted there.

On the CPU, where reading the labels is free, the other positions are skipped. On other devices that would force a
synchronisation, so they are computed there and count as zero.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.errors import DataError, MatrixShapeError, MatrixTypeError
from matrix_ssl.matrix.numerics.validation import looks_at_values


class Positions(NamedTuple):
    """The n positions of a (batch, length) that are computed."""

    rows: Tensor  # (n,), indices into the flattened (batch, length)
    targets: Tensor  # (n,), tokens
    counted: Tensor | None  # (n,), boolean; None if all count
    length: int

    def split(self, size: int) -> Iterator["Positions"]:
        """Parts of at most ``size`` positions."""
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            counted = None if self.counted is None else self.counted[part]
            yield Positions(self.rows[part], self.targets[part], counted, self.length)

    def reorder(self, order: Tensor) -> "Positions":
        """The same positions in another order (n,)."""
        counted = None if self.counted is None else self.counted[order]
        return Positions(self.rows[order], self.targets[order], counted, self.length)

    def take(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of the positions' rows of x (batch · length, k); zero where they do not count."""
        return self.mask(x[self.rows].to(dtype))

    def mask(self, x: Tensor) -> Tensor:
        """x (n, ...), overwritten with zero where the position does not count, whatever the value there."""
        if self.counted is None:
            return x
        return x.masked_fill_(~self.counted.view(-1, *[1] * (x.ndim - 1)), 0)

    def total(self) -> Tensor | int:
        """The number of positions that count."""
        return len(self.rows) if self.counted is None else self.counted.sum()


def find_positions(labels: Tensor, *, shape: torch.Size, vocabulary: int, ignore_index: int) -> Positions:
    """The positions of unshifted labels (batch, length): t predicts label t + 1, and the last one predicts nothing."""
    if labels.shape != shape:
        raise MatrixShapeError(
            f"The labels have the shape {tuple(labels.shape)}, but the outputs {tuple(shape)} (batch, positions): "
            f"pass the labels unshifted, one for each position."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise MatrixTypeError(f"The labels have the type {labels.dtype}: pass token ids, which are integers.")
    following = F.pad(labels[:, 1:], (0, 1), value=ignore_index).flatten().long()
    counted = following != ignore_index
    if looks_at_values(labels, None):
        rows = counted.nonzero().squeeze(1)
        targets = following[rows]
        _check_range(targets, vocabulary, ignore_index)
        return Positions(rows, targets, None, labels.shape[1])
    rows = torch.arange(len(following), device=labels.device)
    return Positions(rows, following.masked_fill(~counted, 0), counted, labels.shape[1])


def _check_range(targets: Tensor, vocabulary: int, ignore_index: int) -> None:
    least, largest = (x.item() for x in targets.aminmax()) if len(targets) else (0, 0)
    if least < 0:
        raise DataError(f"A label is {least}: token ids begin at 0, and only ignore_index={ignore_index} is skipped.")
    if largest >= vocabulary:
        raise DataError(
            f"The largest label is {largest}, but the head has a vocabulary of {vocabulary} (0 to {vocabulary - 1}): "
            f"pass the tokenizer that belongs to the model, or resize its embeddings."
        )
