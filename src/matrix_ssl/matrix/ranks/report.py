"""All ranks of features at once, and how they differ."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from matrix_ssl.errors import MatrixShapeError
from matrix_ssl.matrix.numerics.scaling import rescaled
from matrix_ssl.matrix.numerics.validation import check_tensor, checked_matrix
from matrix_ssl.matrix.ranks import formulas, measures
from matrix_ssl.matrix.ranks.decomposition import both_spectra
from matrix_ssl.matrix.spectra import spectral_entropies
from matrix_ssl.matrix.spectra.zero_eigenvalues import zero_level


class Meaning(NamedTuple):
    """Description of a measure, for tables and pages."""

    heading: str
    range: str
    meaning: str
    paper: str


MEANINGS = {
    "rank_me": Meaning("RankMe", "1 to min(n, d)", "exp of the entropy of the singular values of the features as they "
                       "are; weak directions count most of all ranks here", "Garrido et al., ICML 2023"),
    "effective_rank": Meaning("Effective rank", "1 to min(n − 1, d)", "exp of the entropy of the eigenvalues of the "
                              "covariance: the matrix entropy as a number of directions", "Roy and Vetterli, "
                              "EUSIPCO 2007; Zhang et al., ICML 2024"),
    "participation_ratio": Meaning("Participation ratio", "1 to min(n − 1, d)", "(Σ λ)² / Σ λ² of the covariance; "
                                   "strong directions decide", "Gao et al., bioRxiv 2017"),
    "stable_rank": Meaning("Stable rank", "1 to min(n, d)", "Σ σ² over the largest σ² of the features as they are; "
                           "a large mean makes it 1", "Rudelson and Vershynin, JACM 2007"),
    "numerical_rank": Meaning("Numerical rank", "0 to min(n, d)", "singular values above rounding: what a linear map "
                              "can still separate", "2 ε √min(n, d) of the largest"),
    "pca_rank": Meaning("PCA rank, 95 %", "0 to min(n − 1, d)", "principal components that have 95 % of the variance",
                        "Jolliffe, Springer 2002"),
    "alpha_req": Meaning("α-ReQ", "0 and above", "exponent of the decay of the eigenvalues 4 to 100 of the covariance: "
                         "low is flat; its authors report the best features near 1", "Agrawal et al., NeurIPS 2022"),
    "self_cluster": Meaning("Self-cluster", "−1/(n − 1) to 1", "excess of the mean squared cosine over uniform "
                            "directions: 0 is spread out, 1 is a single direction", "Tsitsulin et al., TAG-ML 2023"),
    "lidar": Meaning("LiDAR", "1 to min(n − 1, d)", "directions in which images differ more than views of one image",
                     "Thilak et al., ICLR 2024"),
}  # fmt: skip


@dataclass(frozen=True)
class RankReport:
    """The ranks of features (n, d); ``str`` is a table that explains each one. None: not defined for the shape.

    On any one spectrum, the four ranks that are formulas of all eigenvalues are always in the same order (RankMe's
    singular values are square roots, hence flatter): RankMe of centred features ≥ effective rank ≥ participation
    ratio ≥ stable rank of centred features.
    """

    samples: int
    width: int
    rank_me: float
    effective_rank: float
    participation_ratio: float
    stable_rank: float
    numerical_rank: float
    pca_rank: float
    alpha_req: float | None
    self_cluster: float | None
    lidar: float | None = None

    def values(self) -> dict[str, float]:
        """The measures that are defined, by name."""
        return {name: value for name in MEANINGS if (value := getattr(self, name)) is not None}

    def __str__(self) -> str:
        lines = [f"{self.samples} samples, {self.width} features each"]
        for name, value in self.values().items():
            heading, limits, meaning, _ = MEANINGS[name]
            lines.append(f"{heading:20s} {value:9.4g}  {limits:19s} {meaning}")
        return "\n".join(lines)


def rank_report(features: Tensor, *, views: Tensor | None = None, validate: bool | None = None) -> RankReport:
    """All ranks of features (n, d) from one decomposition; print the report to see how they differ.

    The centred rows are decomposed into singular values in float64, on the smaller side. This gives the eigenvalues of
    the covariance; the singular values of the uncentred rows follow from it and the mean without a second
    decomposition. LiDAR, of ``views``, needs the eigenvalues of a separate matrix.

    Args:
        features: (n, d), one row per sample.
        views: (m, v, d), features of several views of images, for LiDAR.
        validate: whether to check values; by default on the CPU.

    Raises:
        MatrixError: ``features`` is not a single matrix, ``views`` does not hold several views of several images, or
            one of them is empty or not finite.
    """
    check_tensor(features, "features")
    if features.ndim != 2:
        raise MatrixShapeError(
            f"Argument 'features' has the shape {tuple(features.shape)}: a report is of one matrix (n, d)."
        )
    seen = None if views is None else measures.checked_views(views, "views", validate)
    x = checked_matrix(features.detach(), "features", validate).double()
    cosine = measures.self_cluster(x, validate=False).item() if min(x.shape) > 1 else None
    return report_of_spectra(
        *both_spectra(rescaled(x)), samples=len(x), width=x.shape[1], self_cluster=cosine,
        threshold=measures.default_threshold(features), eps=measures.rounding_of(features),
        lidar=None if seen is None else measures.lidar(seen, validate=validate).item(),
    )  # fmt: skip


def report_of_spectra(
    eigenvalues: Tensor, singular_values: Tensor, *, samples: int, width: int, threshold: float, eps: float,
    self_cluster: float | None, lidar: float | None = None,
) -> RankReport:  # fmt: skip
    """The ranks from eigenvalues of the covariance and singular values of the features, up to one constant.

    ``eps`` is that of the features, for α-ReQ.
    """
    squares = singular_values.square()
    rounding = measures.rounding_level(squares.sum() / min(samples, width), eps)
    zero = torch.maximum(zero_level(eigenvalues), rounding)
    alpha, _ = formulas.power_law(eigenvalues, zero, first=measures.FIRST, last=measures.LAST)
    return RankReport(
        samples=samples,
        width=width,
        rank_me=spectral_entropies.shannon_entropy(singular_values).exp().item(),
        effective_rank=spectral_entropies.shannon_entropy(eigenvalues).exp().item(),
        participation_ratio=formulas.participation_ratio(eigenvalues).item(),
        stable_rank=formulas.stable_rank(squares).item(),
        numerical_rank=formulas.count_above(singular_values, threshold).item(),
        pca_rank=formulas.count_of_share(eigenvalues, measures.SHARE).item(),
        alpha_req=None if math.isnan(alpha.item()) else alpha.item(),
        self_cluster=self_cluster,
        lidar=lidar,
    )
