"""How similar two representations of the same images are, from the covariance of both side by side.

With C the covariance of rows (x, y), and C_xx = V Λ Vᵀ, canonical correlations are the singular values of
Λ_x^-½ V_xᵀ C_xy V_y Λ_y^-½. This uses all rows, whatever their number, in the memory of one (d + e) square matrix. It
has the squares of singular values: those of a representation below 2 ε √d times the largest, with the ε of float32, are
treated as zero. ``matrix_ssl.matrix.comparison`` computes the same from features, with more digits and gradients.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from matrix_ssl.matrix import rsa

VARIANCE = 0.99  # share of the variance that SVCCA keeps
SIMILARITIES = {
    "linear_cka": "squared inner product of the two centred linear kernels over their norms: 1 where they are equal up "
    "to rotation and scale, 0 where no direction of one predicts one of the other (Kornblith et al., ICML 2019)",
    "cca": "mean squared canonical correlation: 1 where all that one represents is a linear map of the other, every "
    "direction counting alike (Kornblith et al., ICML 2019); absent unless images outnumber the directions of both",
    "svcca": "mean canonical correlation of the directions that have 99 % of the variance of each (Raghu et al., "
    "NeurIPS 2017); absent unless images outnumber these",
    "pwcca": "mean canonical correlation, weighted by how much of the first representation its direction accounts for; "
    "not symmetric (Morcos et al., NeurIPS 2018)",
    "procrustes": "orthogonal Procrustes distance of the centred representations, each of norm one: 0 where one is a "
    "rotated and scaled copy of the other, 2 where they share nothing (Ding et al., NeurIPS 2021)",
    "rsa": "Spearman's correlation of the dissimilarities, one less Pearson's correlation, of all pairs of images of a "
    "sample (Kriegeskorte et al., 2008)",
}


class _Directions(NamedTuple):
    """The non-zero directions of one representation: variances (r,), in descending order, and axes (d, r)."""

    variances: Tensor
    axes: Tensor

    def first(self, count: int) -> "_Directions":
        return _Directions(self.variances[:count], self.axes[:, :count])


def similarities(covariance: Tensor, width: int, *, samples: int) -> dict[str, float]:
    """CKA, CCA, SVCCA, PWCCA and Procrustes; measures that are meaningless for so few samples are omitted.

    Args:
        covariance: (d + e, d + e) in float64, of x and y side by side, about the mean.
        width: d.
        samples: number of samples behind the covariance.

    Returns:
        Values by the names in ``SIMILARITIES``; for a constant representation only CKA, 0, and Procrustes, 2.
    """
    own, cross, other = covariance[:width, :width], covariance[:width, width:], covariance[width:, width:]
    norms, traces = own.norm() * other.norm(), own.trace() * other.trace()
    shared = torch.linalg.svdvals(cross).sum() / traces.sqrt() if traces > 0 else torch.zeros(())
    values = {
        "linear_cka": (cross.square().sum() / norms).item() if norms > 0 else 0.0,
        "procrustes": max(0.0, 2 - 2 * shared.item()),
    }
    x, y = _directions(own), _directions(other)
    if _outnumber(samples, x, y):
        correlations, left = _correlations(x, y, cross)
        values["cca"] = correlations.square().mean().item()
        weights = (left.mT @ (x.variances.sqrt() * x.axes).mT).abs().sum(1)
        values["pwcca"] = ((weights * correlations).sum() / weights.sum()).item()
    x, y = (z.first(_count_of_share(z.variances)) for z in (x, y))
    if _outnumber(samples, x, y):
        values["svcca"] = _correlations(x, y, cross)[0].mean().item()
    return values


def rank_correlation(x: Tensor, y: Tensor) -> dict[str, float]:
    """RSA of rows (n, d) and (n, e); empty if a row is constant, without correlation, or there are fewer than three."""
    constant = [(rows == rows[:, :1]).all(1).any().item() for rows in (x, y)]
    return {} if any(constant) or len(x) < 3 else {"rsa": rsa(x, y).item()}


def _directions(covariance: Tensor) -> _Directions:
    variances, axes = torch.linalg.eigh(covariance)
    level = (2 * torch.finfo(torch.float32).eps) ** 2 * len(variances) * variances[-1]
    kept = (variances > level).flip(0)
    return _Directions(variances.flip(0)[kept], axes.flip(1)[:, kept])


def _outnumber(samples: int, x: _Directions, y: _Directions) -> bool:
    """Whether correlations can be below one, and both sides have at least one direction."""
    return min(len(x.variances), len(y.variances)) > 0 and samples - 1 > len(x.variances) + len(y.variances)


def _correlations(x: _Directions, y: _Directions, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical correlations in descending order, and their directions among those of x."""
    white = (x.axes / x.variances.sqrt()).mT @ cross @ (y.axes / y.variances.sqrt())
    left, values, _ = torch.linalg.svd(white, full_matrices=False)
    return values.clamp_max(1), left


def _count_of_share(variances: Tensor) -> int:
    """How many leading directions it takes to reach the share ``VARIANCE`` of the variance."""
    before = variances.cumsum(0) - variances
    return int((before < VARIANCE * variances.sum()).sum())
