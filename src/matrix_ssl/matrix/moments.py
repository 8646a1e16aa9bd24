"""Mean and covariance of features in one pass, in memory that does not grow with the number of samples.

A state holds n, the mean and the scatter Σ (x - mean)(x - mean)ᵀ in float64, (d + 1) d numbers. Batches and states are
merged about their own means,

    scatter = scatter_a + scatter_b + δδᵀ n_a n_b / (n_a + n_b),    δ = mean_b - mean_a,

not as E[xxᵀ] - E[x]E[x]ᵀ, which suffers from cancellation where the mean is large. Order and grouping affect only
rounding.

Reference: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
COMPSTAT 1982.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from matrix_ssl.errors import MatrixError, MatrixShapeError
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.numerics.validation import check_tensor, checked_matrix


class Moments:
    """Count, mean and scatter of rows of width d.

    Attributes:
        count: number of rows.
        mean: (d,) in float64.
        scatter: (d, d) in float64, Σ (x - mean)(x - mean)ᵀ.
    """

    def __init__(self, width: int, *, device: torch.device | str | None = None):
        if width < 1:
            raise MatrixShapeError(f"width={width}: features have at least one column.")
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, features: Tensor, *, validate: bool | None = None) -> None:
        """Adds rows (n, d), n ≥ 0, without gradient.

        Raises:
            MatrixError: the width differs, or an element is not finite; in that case nothing is added.
        """
        rows = checked_rows(features, len(self.mean), validate).to(self.mean.device)
        if len(rows):
            rows = rows.double()
            mean = rows.mean(0)
            rows = rows - mean
            with without_autocast(rows):
                self._add(len(rows), mean, rows.mT @ rows)

    def merge(self, other: "Moments") -> None:
        """Adds the rows of another state, which is left unchanged.

        Raises:
            MatrixShapeError: the widths differ.
        """
        if len(other.mean) != len(self.mean):
            raise MatrixShapeError(f"States of the widths {len(self.mean)} and {len(other.mean)} cannot be merged.")
        if other.count:
            self._add(other.count, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))

    def covariance(self) -> Tensor:
        """Covariance (d, d) in float64, as ``matrix_ssl.matrix.covariance`` defines it; MatrixError without rows."""
        return self.scatter / self._any()

    def second_moment(self) -> Tensor:
        """XᵀX / n (d, d) in float64, not centred; MatrixError without rows."""
        return (self.scatter / self._any()).addr_(self.mean, self.mean)

    def packed(self) -> Tensor:
        """The state as one tensor (1 + d + d²,) in float64, for exchange between processes and for checkpoints."""
        count = torch.tensor([self.count], dtype=torch.float64, device=self.mean.device)
        return torch.cat([count, self.mean, self.scatter.flatten()])

    def empty(self) -> "Moments":
        """A state of the same width without rows."""
        return Moments(len(self.mean), device=self.mean.device)

    def merge_packed(self, packed: Tensor) -> None:
        """``merge`` with a state of the same width that was ``packed``."""
        self.merge(Moments.unpacked(packed))

    @classmethod
    def unpacked(cls, packed: Tensor) -> "Moments":
        """The state of ``packed``, whose memory it shares."""
        width = int((4 * len(packed) - 3) ** 0.5 - 1) // 2
        state = cls(width, device="meta")
        state.count = int(packed[0])
        state.mean, state.scatter = packed[1 : 1 + width], packed[1 + width :].view(width, width)
        return state

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + n
        shift = mean - self.mean
        self.scatter.add_(scatter).addr_(shift, shift, alpha=self.count * n / total)
        self.mean = self.mean + shift * (n / total)
        self.count = total

    def _any(self) -> int:
        if not self.count:
            raise MatrixError("No features were added: there is nothing to measure.")
        return self.count


def checked_rows(features: Tensor, width: int, validate: bool | None) -> Tensor:
    """Finite features (n, width), n ≥ 0, in full precision without gradient."""
    check_tensor(features, "features")
    if features.ndim != 2 or features.shape[1] != width:
        raise MatrixShapeError(f"Argument 'features' has the shape {tuple(features.shape)}: expected (n, {width}).")
    return checked_matrix(features.detach(), "features", validate) if len(features) else features.detach()


def merged(states: Sequence[Moments]) -> Moments:
    """A new state with the rows of all states, at least one."""
    result = Moments(len(states[0].mean), device=states[0].mean.device)
    for state in states:
        result.merge(state)
    return result
