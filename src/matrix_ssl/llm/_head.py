"""The head of a language model: its rows as they are for the logits, and of length one for the matrix term."""

from typing import NamedTuple

import torch
from torch import Tensor

_SHORTEST = 1e-12  # rows below this length have no direction, as in losses


class Head(NamedTuple):
    """Rows in float32 or better. Unit rows are never stored: a product with the rows is divided by their lengths."""

    weight: Tensor  # (vocabulary, d)
    inverse_lengths: Tensor  # (vocabulary,), zero for a row without direction

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> "Head":
        """The head in a dtype: half precision is copied, once for all chunks."""
        full = weight.detach().to(dtype)
        lengths = torch.linalg.vector_norm(full, dim=1)
        return cls(full, torch.where(lengths > _SHORTEST, 1 / lengths.clamp_min(_SHORTEST), 0.0))

    def unit_rows(self, tokens: Tensor) -> Tensor:
        """y of the tokens (...): (..., d); zero for a row without direction."""
        return self.weight[tokens] * self.inverse_lengths[tokens].unsqueeze(-1)

    def has_direction(self, tokens: Tensor) -> Tensor:
        """The length of y of the tokens (...), 1 or 0."""
        return (self.inverse_lengths[tokens] > 0).to(self.weight.dtype)

    def products(self, directions: Tensor) -> Tensor:
        """<y_i, v> of every token i and direction v (n, d): (n, vocabulary)."""
        return (directions @ self.weight.mT).mul_(self.inverse_lengths)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Σ_i c_i y_i for coefficients (n, vocabulary): (n, d)."""
        return (coefficients * self.inverse_lengths) @ self.weight
