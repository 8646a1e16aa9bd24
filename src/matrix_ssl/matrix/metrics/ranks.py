"""Metric objects of ranks: functions of states that hold d² numbers, however many samples there are."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from matrix_ssl.errors import MatrixShapeError
from matrix_ssl.matrix.moments import Moments, checked_rows
from matrix_ssl.matrix.numerics.linalg import eigenvalues
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.numerics.scaling import rescaled, unit_length
from matrix_ssl.matrix.numerics.validation import check_positive, check_tensor
from matrix_ssl.matrix.ranks import formulas, measures
from matrix_ssl.matrix.spectra import spectral_entropies
from matrix_ssl.matrix.spectra.zero_eigenvalues import zero_level

if TYPE_CHECKING:
    from matrix_ssl.matrix.metrics.without_torchmetrics import Metric
else:
    try:
        from torchmetrics import Metric
    except ImportError:
        from matrix_ssl.matrix.metrics.without_torchmetrics import Metric


class _Stream(Metric):
    width: int
    is_differentiable = False
    full_state_update = False

    def merge_state(self, incoming_state: Any) -> None:
        """Adds the samples of another metric of the same class and width, which is left unchanged."""
        if isinstance(incoming_state, type(self)) and incoming_state.width != self.width:
            raise MatrixShapeError(f"Metrics of the widths {self.width} and {incoming_state.width} cannot be merged.")
        super().merge_state(incoming_state)
        self._computed = None  # or torchmetrics' ``compute`` would return the old value


class _OfMoments(_Stream):
    """A function of the mean and covariance of features of width d.

    Args:
        width: d.
        options: options of torchmetrics' ``Metric``, such as ``sync_on_compute``; none without torchmetrics.
    """

    higher_is_better = None
    moments: Tensor

    def __init__(self, width: int, **options: Any):
        super().__init__(**options)
        self.width = width
        self.add_state("moments", Moments(width).packed(), dist_reduce_fx=_merge)

    def update(self, features: Tensor) -> None:
        """Adds features (n, d); MatrixError if the width differs or an element is not finite."""
        state = Moments.unpacked(self.moments.clone())
        state.add(features)
        self.moments = state.packed()

    def compute(self) -> Tensor:
        """The measure of all features since the last ``reset``; MatrixError without any."""
        return self._measure(Moments.unpacked(self.moments)).float()

    def _measure(self, moments: Moments) -> Tensor:
        raise NotImplementedError


class RankMe(_OfMoments):
    """``rank_me`` of a stream of features; singular values below 1e-7 of the largest are lost."""

    def _measure(self, moments: Moments) -> Tensor:
        squares = eigenvalues(moments.second_moment())
        squares = torch.where(squares > zero_level(squares), squares, 0.0)
        return spectral_entropies.shannon_entropy(squares.sqrt()).exp()


class EffectiveRank(_OfMoments):
    """``of_features.effective_rank``, the effective rank of the covariance, of a stream of features."""

    def _measure(self, moments: Moments) -> Tensor:
        return spectral_entropies.shannon_entropy(_eigenvalues_of(moments)).exp()


class MatrixEntropy(_OfMoments):
    """``of_features.von_neumann_entropy``, that of the covariance in nats, of a stream of features."""

    def _measure(self, moments: Moments) -> Tensor:
        return spectral_entropies.shannon_entropy(_eigenvalues_of(moments))


class ParticipationRatio(_OfMoments):
    """``participation_ratio`` of a stream of features."""

    def _measure(self, moments: Moments) -> Tensor:
        covariance = rescaled(moments.covariance())
        return formulas.ratio(covariance.trace().square(), covariance.square().sum())


class StableRank(_OfMoments):
    """``stable_rank`` of a stream of features."""

    def _measure(self, moments: Moments) -> Tensor:
        return formulas.stable_rank(eigenvalues(moments.second_moment()))


class PCARank(_OfMoments):
    """``pca_rank`` of a stream of features: components that explain 95 % of the variance."""

    def _measure(self, moments: Moments) -> Tensor:
        return formulas.count_of_share(_eigenvalues_of(moments), measures.SHARE)


class AlphaReQ(_OfMoments):
    """``alpha_req`` of a stream of float32 features, of the ranks 4 to 100; NaN with fewer than two eigenvalues to fit.

    Other dtypes are treated as float32, too: in half precision, zero eigenvalues that rounding has raised are fitted.
    """

    def _measure(self, moments: Moments) -> Tensor:
        values, mean = _eigenvalues_of(moments), moments.second_moment().trace() / min(moments.count, self.width)
        zero = torch.maximum(zero_level(values), measures.rounding_level(mean, torch.finfo(torch.float32).eps))
        return formulas.power_law(values, zero, first=measures.FIRST, last=measures.LAST)[0]


class SelfCluster(_Stream):
    """``self_cluster`` of a stream of features; arguments as for ``RankMe``."""

    higher_is_better = False
    cosines: Tensor
    counts: Tensor

    def __init__(self, width: int, **options: Any):
        super().__init__(**options)
        self.width = width
        self.add_state("cosines", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx=_sum)
        self.add_state("counts", torch.zeros(2, dtype=torch.float64), dist_reduce_fx=_sum)  # rows, Σ ‖z‖⁴

    def update(self, features: Tensor) -> None:
        """Adds features (n, d); MatrixError if the width differs or an element is not finite."""
        rows = checked_rows(features, self.width, None).to(self.cosines.device).double()
        unit = unit_length(rows) if len(rows) else rows
        with without_autocast(unit):
            self.cosines = self.cosines + unit.mT @ unit
        ones = unit.square().sum(1).square().sum()
        self.counts = self.counts + torch.stack([ones.new_tensor(float(len(rows))), ones])

    def compute(self) -> Tensor:
        """The score of all features since the last ``reset``; MatrixError with fewer than two."""
        n, ones = int(self.counts[0]), self.counts[1]
        if min(n, self.width) < 2:
            raise MatrixShapeError(
                f"{n} samples of width {self.width} were added: the score needs at least two of each."
            )
        return measures.mean_cosine_score(self.cosines.square().sum() - ones, n, self.width).float()


class LiDAR(_Stream):
    """``lidar`` of a stream of features of several views of each image; arguments as for ``RankMe``."""

    higher_is_better = True
    images: Tensor
    within: Tensor
    views: Tensor

    def __init__(self, width: int, *, ridge: float = measures.RIDGE, **options: Any):
        super().__init__(**options)
        check_positive(ridge=ridge)
        self.width, self.ridge = width, ridge
        self.add_state("images", Moments(width).packed(), dist_reduce_fx=_merge)
        self.add_state("within", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx=_sum)
        self.add_state("views", torch.zeros((), dtype=torch.float64), dist_reduce_fx=_sum)

    def update(self, features: Tensor) -> None:
        """Adds features (n, v, d) of v ≥ 2 views of each image; MatrixError if they are not that, or not finite."""
        check_tensor(features, "features")
        if features.ndim != 3 or features.shape[1] < 2:
            raise MatrixShapeError(
                f"Argument 'features' has the shape {tuple(features.shape)}: expected (n, v, {self.width}) with v ≥ 2."
            )
        rows = checked_rows(features.flatten(0, 1), self.width, None).to(self.within.device).double()
        x = rows.view(features.shape)
        state = Moments.unpacked(self.images.clone())
        state.add(x.mean(1))
        away = (x - x.mean(1, keepdim=True)).flatten(0, 1)
        with without_autocast(away):
            self.images, self.within = state.packed(), self.within + away.mT @ away
        self.views = self.views + len(away)

    def compute(self) -> Tensor:
        """LiDAR of all images since the last ``reset``; MatrixError with fewer than two."""
        images = Moments.unpacked(self.images)
        if images.count < 2:
            raise MatrixShapeError(f"{images.count} images were added: LiDAR needs at least two.")
        return measures.lidar_of(images.covariance(), self.within / self.views, self.ridge).float()


def _eigenvalues_of(moments: Moments) -> Tensor:
    return eigenvalues(moments.covariance()).clamp_min(0)


def _merge(stack: Tensor) -> Tensor:
    """The state that results from several packed ones."""
    result = Moments.unpacked(torch.zeros_like(stack[0]))
    for packed in stack:
        result.merge(Moments.unpacked(packed))
    return result.packed()


def _sum(stack: Tensor) -> Tensor:
    return stack.sum(0)
