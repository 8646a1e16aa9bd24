"""All ranks of features that do not fit in memory, in one pass, with intervals.

While features are added, this takes (groups + 1) d² numbers in float64: 300 MB for width 2048 and eight groups.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from matrix_ssl.errors import MatrixShapeError
from matrix_ssl.matrix.moments import Moments, checked_rows, merged
from matrix_ssl.matrix.numerics.linalg import eigenvalues
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.numerics.scaling import unit_length
from matrix_ssl.matrix.ranks import measures
from matrix_ssl.matrix.ranks.decomposition import Spectra
from matrix_ssl.matrix.ranks.intervals import GROUPS, LEVEL, Estimate, check_groups, combine
from matrix_ssl.matrix.ranks.report import MEANINGS, RankReport, report_of_spectra
from matrix_ssl.matrix.spectra.zero_eigenvalues import zero_level


class RankStatistics:
    """The ``rank_report`` of a stream of features, mergeable across processes.

    Singular values come from the eigenvalues of the second moment, so those below about 1e-7 of the largest are lost
    (√(2 ε √d) in float64) and count as zero; float32 rounding is of the same size. Order and grouping of the features
    affect only rounding, and the division into groups only the intervals.

    Args:
        width: d.
        groups: number of groups of samples for the intervals: 4, 8, 12, ...; 0 for no intervals.
        seed: random seed of the division into groups.
        device: device of the state.
    """

    def __init__(self, width: int, *, groups: int = GROUPS, seed: int = 0, device: torch.device | str | None = None):
        if groups:
            check_groups(groups)
        self.width = width
        self._groups = [Moments(width, device=device) for _ in range(groups or 1)]
        self._cosines = torch.zeros(width, width, dtype=torch.float64, device=device)  # ZᵀZ, rows of length one
        self._ones = 0.0  # Σ ‖z‖⁴: the number of non-zero rows
        self._random = torch.Generator().manual_seed(seed)
        self._threshold = 0.0

    @property
    def count(self) -> int:
        """Number of samples so far."""
        return sum(group.count for group in self._groups)

    def add(self, features: Tensor, *, validate: bool | None = None) -> None:
        """Adds samples (n, d), n ≥ 0, without gradient.

        Raises:
            MatrixError: the width differs, or an element is not finite; in that case nothing is added.
        """
        rows = checked_rows(features, self.width, validate).to(self._cosines.device)
        start, groups = self.count, len(self._groups)
        order = torch.randperm(len(rows), generator=self._random).to(rows.device)
        for i, part in enumerate(rows[order].tensor_split(groups)):  # rotating: the first parts are larger
            self._groups[(start + i) % groups].add(part, validate=False)
        unit = unit_length(rows.double()) if len(rows) else rows.double()
        with without_autocast(unit):
            self._cosines.addmm_(unit.mT, unit)
        self._ones += unit.square().sum(1).square().sum().item()
        if len(rows):
            self._threshold = max(self._threshold, measures.default_threshold(features[:1].expand(self.width, -1)))

    def merge(self, other: "RankStatistics") -> None:
        """Adds the samples of another state, which is left unchanged.

        Raises:
            MatrixShapeError: the widths or the numbers of groups differ.
        """
        if (other.width, len(other._groups)) != (self.width, len(self._groups)):
            raise MatrixShapeError(
                f"States of the widths {self.width} and {other.width} with {len(self._groups)} and "
                f"{len(other._groups)} groups cannot be merged."
            )
        for own, theirs in zip(self._groups, other._groups, strict=True):
            own.merge(theirs)
        self._cosines += other._cosines.to(self._cosines.device)
        self._ones += other._ones
        self._threshold = max(self._threshold, other._threshold)

    def packed(self) -> Tensor:
        """The state as one float64 tensor that can be sent, saved and passed to ``merge_packed``."""
        ends = torch.tensor([self._ones, self._threshold], dtype=torch.float64, device=self._cosines.device)
        return torch.cat([*(group.packed() for group in self._groups), self._cosines.flatten(), ends])

    def merge_packed(self, packed: Tensor) -> None:
        """``merge`` with a state of the same width and number of groups that was ``packed``."""
        d, groups = self.width, len(self._groups)
        other, size = RankStatistics(d, groups=0, device=packed.device), 1 + d + d * d
        other._groups = [Moments.unpacked(packed[i * size : (i + 1) * size]) for i in range(groups)]
        other._cosines = packed[groups * size : -2].reshape(d, d)
        other._ones, other._threshold = packed[-2:].tolist()
        self.merge(other)

    def empty(self) -> "RankStatistics":
        """A state of the same width and number of groups without samples."""
        groups = len(self._groups)
        return RankStatistics(self.width, groups=groups if groups > 1 else 0, device=self._cosines.device)

    def moments(self) -> Moments:
        """Number, mean and covariance of all samples; MatrixError without any."""
        return merged(self._groups)

    def spectra(self) -> Spectra:
        """Both spectra of all samples, with d values each; MatrixError without any."""
        return self._spectra(range(len(self._groups)))

    def report(self, *, spectra: Spectra | None = None) -> RankReport:
        """All ranks of all samples, from their spectra if these are known; MatrixError without samples."""
        return self._report(spectra or self.spectra(), self.count, everything=True)

    def estimates(
        self, *, population: int | None = None, level: float = LEVEL, report: RankReport | None = None
    ) -> dict[str, Estimate]:
        """The ranks with intervals, values at fewer samples and expectations at ``population``, by name.

        Leaves out ``self_cluster``, a mean over pairs that has no bias, and whatever is not defined for so few samples.

        Args:
            population: a larger number of samples, for the expectations.
            level: level of the intervals, in (0, 1).
            report: the report of all samples, if it is known; saves one decomposition of each matrix.

        Raises:
            MatrixError: there are fewer than two samples per group, or no groups.
            ValueError: the population is smaller than the number of samples, or the level is out of range.
        """
        groups = len(self._groups)
        if groups == 1 or self.count < 2 * groups:
            raise MatrixShapeError(
                f"{self.count} samples in {groups} groups are too few for an interval: add at least two a group."
            )
        reports = {tuple(range(groups)): (report or self.report()).values()}

        def of(name: str, chosen: Sequence[int]) -> float:
            key = tuple(chosen)
            if key not in reports:
                count = sum(self._groups[i].count for i in key)
                reports[key] = self._report(self._spectra(key), count, everything=False).values()
            return reports[key].get(name, float("nan"))

        result = {}
        for name in MEANINGS:
            one = combine(
                functools.partial(of, name), [group.count for group in self._groups], population=population,
                level=level, directions=None if name in ("alpha_req", "self_cluster") else self.width,
            )  # fmt: skip
            if name != "self_cluster" and one.low == one.low and one.quarter == one.quarter:  # not NaN
                result[name] = one
        return result

    def _spectra(self, chosen: Sequence[int]) -> Spectra:
        moments = merged([self._groups[i] for i in chosen])
        squares = eigenvalues(moments.second_moment()).clamp_min(0)
        squares = torch.where(squares > zero_level(squares), squares, 0.0)
        return Spectra(eigenvalues(moments.covariance()).clamp_min(0), squares.sqrt())

    def _report(self, spectra: Spectra, samples: int, *, everything: bool) -> RankReport:
        cosines = everything and min(samples, self.width) > 1
        return report_of_spectra(
            *spectra, samples=samples, width=self.width, threshold=self._threshold,
            eps=self._threshold / (2 * self.width**0.5),
            self_cluster=self._self_cluster() if cosines else None,
        )  # fmt: skip

    def _self_cluster(self) -> float:
        return measures.mean_cosine_score(self._cosines.square().sum() - self._ones, self.count, self.width).item()
