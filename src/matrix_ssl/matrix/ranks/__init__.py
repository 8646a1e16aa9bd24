"""How many directions a matrix or features use: ranks, reports of all of them, and intervals.

``formulas`` has the ranks as functions of a spectrum. Numerics, checks and errors are those of ``matrix_ssl.matrix``.
"""

from matrix_ssl.matrix.ranks.effective import coding_rate, effective_rank, shannon_entropy, spectrum
from matrix_ssl.matrix.ranks.intervals import Estimate, estimate
from matrix_ssl.matrix.ranks.measures import (
    alpha_req,
    lidar,
    numerical_rank,
    participation_ratio,
    pca_rank,
    rank_me,
    self_cluster,
    stable_rank,
)
from matrix_ssl.matrix.ranks.report import RankReport, rank_report
from matrix_ssl.matrix.ranks.statistics import RankStatistics

__all__ = [
    "Estimate",
    "RankReport",
    "RankStatistics",
    "alpha_req",
    "coding_rate",
    "effective_rank",
    "estimate",
    "lidar",
    "numerical_rank",
    "participation_ratio",
    "pca_rank",
    "rank_me",
    "rank_report",
    "self_cluster",
    "shannon_entropy",
    "spectrum",
    "stable_rank",
]
