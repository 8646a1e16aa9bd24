"""How many directions a language model's token representations use, how straight their path is, and what they share.

A window is what the model sees at once: n tokens, which a layer turns into n rows x_i of width d. Two published
measures treat windows one by one:

    z_i = (x_i - mean x) / ‖x_i - mean x‖        Z = (z_1, ..., z_n)ᵀ        A = ZᵀZ / n
    erank = exp(H(A)), H(A) = -tr(A log A)       matrix nuclear norm = Σ of the min(n, d) largest ‖column of Z‖ / n

A text of several windows has exp(mean H) and the mean nuclear norm. Mean and lengths are those of ONE window, as in the
published code of both measures, so one pass over a text is exact. Centring by the mean of all tokens would be a
different measure and would take two passes.

Curvature is the mean angle between successive steps x_{i+1} - x_i of a window. DiME and LiDAR compare views: those of a
window are the means of its first and second halves, just as contrastive learning on text crops documents (Izacard et
al.). Unlike the perturbed prompts of Skean et al., they need no further pass; a causal model has read the first half
when it reads the second.

Matrix entropy and effective rank of the whole text are those of the covariance of all tokens, with unscaled rows, as
``training.diagnostics`` reports them for encoders.

Everything is computed in float64. A row that equals its window's mean up to rounding has no direction and adds nothing
to A, which is scaled to trace one; a window without any direction is an error.

References:
    Wei, Tan, Li, Wang and Huang, "Diff-eRank: A Novel Rank-Based Metric for Evaluating Large Language Models",
    NeurIPS 2024. Formula and average follow its published code; of its two averages this is algorithm (a), the other
    being the mean of eranks. Equation numbers: not verified.
    Hosseini and Fedorenko, "Large language models implicitly learn to straighten neural sentence trajectories to
    construct a predictive representation of natural language", NeurIPS 2023: curvature.
    Skean, Arefin, Zhao, Patel, Naghiyev, LeCun and Shwartz-Ziv, "Layer by layer: uncovering hidden representations in
    language models", ICML 2025: curvature, DiME, LiDAR and entropies over log of their bound, by layer.
    Izacard, Caron, Hosseini, Riedel, Bojanowski, Joulin and Grave, "Unsupervised dense information retrieval with
    contrastive learning", TMLR 2022: cropping.
    Li, Xia, Chang and Wu, "Large Language Model Evaluation via Matrix Nuclear-Norm", Findings of EMNLP 2025. Formula,
    division by n and average follow its published code; equation numbers: not verified.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from matrix_ssl.errors import MatrixError, MatrixShapeError
from matrix_ssl.matrix import lidar, von_neumann_entropy
from matrix_ssl.matrix.comparison.dime import VIEWS, dime_of_views
from matrix_ssl.matrix.numerics.linalg import product, smaller_product
from matrix_ssl.matrix.numerics.precision import full_precision
from matrix_ssl.matrix.numerics.validation import checked_matrix, looks_at_values, tolerance


def erank(representations: Tensor, *, validate: bool | None = None) -> Tensor:
    """eRank exp(H(A)) of the tokens of each window; compare only windows of the same length.

    Rotations, shifts and a common scale do not change it. It is not the effective rank of the covariance, for which
    rows keep their length.

    Args:
        representations: (..., n, d), one row per token, n ≥ 2, without padding.
        validate: whether to check values; by default on the CPU and outside ``torch.compile``.

    Returns:
        (...), 1 to min(n - 1, d): centred rows add up to zero, which costs a direction. Low if tokens share few
        directions; n orthogonal rows of equal length give n - 1.

    Raises:
        MatrixError: not a matrix, fewer than two rows, not finite, or all rows equal.

    Reference: Wei et al., NeurIPS 2024.
    """
    return _entropy(_Window.of(representations, validate).unit).exp().to(full_precision(representations).dtype)


def diff_erank(untrained: Tensor, trained: Tensor, *, validate: bool | None = None) -> Tensor:
    """Diff-eRank: ``erank`` of an untrained model's representations minus that of the trained model's.

    Comparable between models of one family on one text. For several windows, subtract the ``Measures.erank`` of both.

    Args:
        untrained: (..., n, d), from the architecture with random weights.
        trained: (..., n, d), of the same tokens.
        validate: as in ``erank``.

    Returns:
        (...), -r to r, r = min(n - 1, d) - 1; above zero if training has removed directions.

    Raises:
        MatrixError: as in ``erank``, or the shapes differ.

    Reference: Wei et al., NeurIPS 2024.
    """
    if untrained.shape != trained.shape:
        raise MatrixShapeError(
            f"Arguments 'untrained' and 'trained' have the shapes {tuple(untrained.shape)} and {tuple(trained.shape)}: "
            f"pass the representations of the same tokens by one architecture."
        )
    return erank(untrained, validate=validate) - erank(trained, validate=validate)


def matrix_nuclear_norm(representations: Tensor, *, validate: bool | None = None) -> Tensor:
    """Matrix nuclear norm of each window: the sum of the min(n, d) largest column lengths of Z, divided by n.

    If d ≤ n, it is at least the nuclear norm of Z over n, which it approximates without a decomposition. A rotation
    changes it; permuting columns, changing their signs, a shift and a common scale do not. Arguments and errors are
    those of ``erank``.

    Returns:
        (...), above 0 and up to √(min(n, d) / n) ≤ 1, which is reached by columns of equal length.

    Reference: Li et al., Findings of EMNLP 2025.
    """
    return _nuclear_norm(_Window.of(representations, validate).unit).to(full_precision(representations).dtype)


def curvature(representations: Tensor, *, validate: bool | None = None) -> Tensor:
    """Mean angle arccos(⟨v_i, v_{i+1}⟩ / (‖v_i‖ ‖v_{i+1}‖)) between successive steps v_i = x_{i+1} - x_i, in radians.

    It is 0 if the tokens of a window lie on a line in their order, π/2 if steps are orthogonal, and 2π/3 in expectation
    for independent rows of many columns. A step of length zero has no direction: its two angles count as π/2. Shifts,
    rotations and a common scale do not change it.

    Args:
        representations: (..., n, d), one row per token in their order, n ≥ 3, without padding.
        validate: as in ``erank``.

    Returns:
        (...), 0 to π.

    Raises:
        MatrixError: not a matrix, fewer than three rows, or not finite.

    References: Hosseini and Fedorenko, NeurIPS 2023; Skean et al., ICML 2025.
    """
    rows = checked_matrix(representations, "representations", validate).double()
    if rows.shape[-2] < 3:
        raise MatrixShapeError(
            f"Argument 'representations' (shape {tuple(representations.shape)}): an angle needs three tokens."
        )
    steps = F.normalize(rows.diff(dim=-2), dim=-1, eps=torch.finfo(torch.float64).tiny)
    cosines = (steps[..., 1:, :] * steps[..., :-1, :]).sum(-1).clamp(-1, 1)
    return cosines.acos().mean(-1).to(full_precision(representations).dtype)


@dataclass(frozen=True)
class Measures:
    """Measures of the tokens of a text at one layer."""

    windows: int
    tokens: int
    matrix_entropy: float  # nats, 0 to log d, of the covariance of all tokens, scaled to trace one
    effective_rank: float  # exp of it, 1 to d
    erank: float  # exp of the mean over windows of H(A), 1 to min(n - 1, d)
    matrix_nuclear_norm: float  # mean over windows, 0 to 1
    normalised_matrix_entropy: float  # matrix_entropy over log min(tokens - 1, d), 0 to 1
    token_entropy: float  # nats, mean over windows of H(A)
    # None where undefined, for windows of two tokens or fewer than three windows
    normalised_token_entropy: float | None  # mean over windows of H(A) / log min(n - 1, d), 0 to 1
    curvature: float | None  # radians, mean over windows
    dime: float | None  # nats, of the halves of windows
    lidar: float | None  # of the halves of windows, 1 to min(windows - 1, d)


class TokenStatistics:
    """``Measures`` of a stream of windows, in memory that does not grow with it: (d, d) and (d,) in float64.

    The order and grouping of windows affect only rounding, and the order also the permutations of DiME. For the first
    windows, the means of their halves are kept as well. The covariance is merged window by window about the running
    mean, not as E[xxᵀ] - E[x]E[x]ᵀ, which suffers from cancellation if the mean is large, as in language models.

    Reference for the merging: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", COMPSTAT 1982.
    """

    def __init__(self) -> None:
        self.windows = self.tokens = 0
        self._entropy = self._nuclear_norm = self._normalised = self._curvature = 0.0  # sums over windows
        self._short = False  # whether a window had two tokens
        self._halves = torch.zeros(())  # (VIEWS, 2, d) of the first windows
        self._mean = self._scatter = torch.zeros(())  # of all tokens; the shapes follow from the first window

    def add(self, representations: Tensor, *, mask: Tensor | None = None) -> None:
        """Adds the windows of a batch, each on its own.

        Args:
            representations: (batch, n, d), one row per token.
            mask: (batch, n), true where there is a token; None where there is no padding.

        Raises:
            MatrixError: a window has fewer than two tokens, is not finite or has equal rows; those before it are kept.
        """
        if representations.device.type == "mps":
            representations = representations.cpu()  # MPS has no float64
        for i, rows in enumerate(representations):
            self._add(rows if mask is None else rows[mask[i].to(rows.device, torch.bool)])

    def _add(self, rows: Tensor) -> None:
        window = _Window.of(rows, True)
        n, total = len(rows), self.tokens + len(rows)
        shift = window.mean.squeeze(0) - self._mean.to(window.mean)
        outer = shift.outer(shift) * (n * self.tokens / total)  # zero for the first window
        self._scatter = self._scatter.to(outer) + product(window.centred) + outer
        self._mean = self._mean.to(shift) + shift * (n / total)
        entropy, directions = _entropy(window.unit).item(), min(n - 1, rows.shape[1])
        self._entropy += entropy
        self._normalised += entropy / math.log(directions) if directions > 1 else 0.0
        self._nuclear_norm += _nuclear_norm(window.unit).item()
        self._short |= n < 3
        if n > 2:
            self._curvature += curvature(rows, validate=False).item()
        if self.windows < VIEWS:
            if not self.windows:
                dtype = full_precision(rows).dtype
                self._halves = torch.zeros(VIEWS, 2, rows.shape[1], dtype=dtype, device=rows.device)
            for half, part in zip(self._halves[self.windows], rows.detach().tensor_split(2), strict=True):
                half.copy_(part.mean(0))
        self.windows, self.tokens = self.windows + 1, total

    def measures(self) -> Measures:
        """The measures of all windows so far.

        Raises:
            MatrixError: no window was added.
        """
        if not self.windows:
            raise MatrixError("No window was added: there are no representations to measure.")
        entropy = von_neumann_entropy(self._scatter, validate=False)
        halves = self._halves[: self.windows].double()
        directions = min(self.tokens - 1, len(self._mean))
        return Measures(
            windows=self.windows,
            tokens=self.tokens,
            matrix_entropy=entropy.item(),
            effective_rank=entropy.exp().item(),
            erank=math.exp(self._entropy / self.windows),
            matrix_nuclear_norm=self._nuclear_norm / self.windows,
            normalised_matrix_entropy=entropy.item() / math.log(directions) if directions > 1 else 0.0,
            token_entropy=self._entropy / self.windows,
            normalised_token_entropy=None if self._short else self._normalised / self.windows,
            curvature=None if self._short else self._curvature / self.windows,
            dime=dime_of_views(*halves.unbind(1)),
            lidar=_lidar(halves),
        )


class _Window(NamedTuple):
    """Rows (..., n, d) in float64: their mean (..., 1, d), the rows minus it, and these scaled to length one."""

    mean: Tensor
    centred: Tensor
    unit: Tensor

    @classmethod
    def of(cls, representations: Tensor, validate: bool | None) -> "_Window":
        rows = checked_matrix(representations, "representations", validate).double()
        n = rows.shape[-2]
        where = f"Argument 'representations' (shape {tuple(representations.shape)})"
        if n < 2:
            raise MatrixShapeError(f"{where}: {n} token has no spread; pass two tokens or more.")
        mean = rows.mean(-2, keepdim=True)
        centred = rows - mean
        length = centred.norm(dim=-1, keepdim=True)
        away = length > tolerance(representations.dtype, 1) * mean.norm(dim=-1, keepdim=True)
        if looks_at_values(representations, validate) and not away.any(-2).all():
            raise MatrixError(
                f"{where}: all {n} rows are equal up to rounding, so none has a direction once their mean is "
                f"subtracted. Pass more varied tokens."
            )
        return cls(mean, centred, torch.where(away, centred / torch.where(away, length, 1.0), 0.0))


def _entropy(unit: Tensor) -> Tensor:
    """H of the trace-one ZᵀZ, from the smaller Gram matrix."""
    return von_neumann_entropy(smaller_product(unit), validate=False)


def _lidar(halves: Tensor) -> float | None:
    """LiDAR of views (n, 2, d), scaled to a mean variance of one as its ridge requires."""
    if len(halves) < 3:
        return None
    scale = halves.flatten(0, 1).var(0, correction=0).mean().sqrt()
    return lidar(halves / scale).item() if scale > 0 else 1.0


def _nuclear_norm(unit: Tensor) -> Tensor:
    n, d = unit.shape[-2:]
    return unit.norm(dim=-2).topk(min(n, d)).values.sum(-1) / n
