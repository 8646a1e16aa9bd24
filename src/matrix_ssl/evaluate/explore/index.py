"""An exact index for repeated searches in the same features: half precision finds candidates, float64 decides."""

import torch
from torch import Tensor

from matrix_ssl.evaluate.explore.inputs import Matrix, unit_rows
from matrix_ssl.evaluate.explore.neighbours import Neighbours, unit_queries

_ROUNDING = 2.0**-11  # relative rounding error in half precision
_SMALLEST = 2.0**-25  # absolute rounding error of half precision's subnormal numbers


class ExactIndex:
    """Features of length one, kept in half precision for a first pass over all of them and in float32 for the answer.

    A product of two rounded rows of length one, rounded itself, differs from the exact one by at most
    3 · 2⁻¹¹ + √d · 2⁻²⁴ plus the rounding error of its sum, which d · 2⁻²⁴ bounds. All neighbours are therefore among
    the rows whose rounded product is at most twice this below the k-th largest; these are compared again in float64.

    Args:
        features: (n, d), finite.

    Attributes:
        nbytes: bytes of the two copies, 6 n d.

    Raises:
        DataError: the features are not such a matrix.
    """

    def __init__(self, features: Matrix):
        self._rows = unit_rows(features)
        self._half = self._rows.half()
        width = self._rows.shape[1]
        self._bound = 3.1 * _ROUNDING + 2 * width**0.5 * _SMALLEST + width * 2.0**-24

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        return self._rows.nbytes + self._half.nbytes

    def nearest(self, queries: Matrix, *, k: int) -> Neighbours:
        """The k rows with the highest cosine similarity to each query (m, d); of equal ones, the lower index first.

        Raises:
            ConfigError: ``k`` is not between 1 and the number of images.
            DataError: the widths differ, or a value is not finite.
        """
        answers = [self._search(unit, k) for unit in unit_queries(queries, self._rows, k=k)]
        indices, similarities = (torch.stack(parts).numpy() for parts in zip(*answers, strict=True))
        return Neighbours(indices, similarities)

    def _search(self, unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
        products = (self._half @ unit.half()).float()
        least = products.topk(k).values[-1] - 2 * self._bound
        candidates = (products >= least).nonzero()[:, 0]
        exact = (self._rows[candidates].double() @ unit.double()).float().clamp(-1.0, 1.0)
        similarities, order = exact.sort(descending=True, stable=True)
        return candidates[order[:k]], similarities[:k]
