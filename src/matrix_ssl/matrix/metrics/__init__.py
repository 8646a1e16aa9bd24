"""Ranks as metric objects: ``update(features)`` with every batch, ``compute()``, ``reset()``, ``merge_state(other)``.

If torchmetrics is installed, they are subclasses of its ``Metric``: ``MetricCollection`` takes them and lets those with
equal states share one, Lightning logs and resets them, and ``compute`` merges the states of all processes. Without it
they have the same methods, and ``matrix_ssl.distributed.statistics.merge_over_processes`` can merge a
``RankStatistics``.

A state is in float64, whatever the precision of the model, and has d² numbers, however many samples there are: values
are those of all samples at once, not means over batches. Results are float32, without a gradient.

    >>> import torch
    >>> from matrix_ssl.matrix.metrics import RankMe
    >>> metric = RankMe(3)
    >>> for batch in torch.eye(3).split(1):
    ...     metric.update(batch)
    >>> metric.compute()
    tensor(3.)
"""

from matrix_ssl.matrix.metrics.ranks import (
    AlphaReQ,
    EffectiveRank,
    LiDAR,
    MatrixEntropy,
    ParticipationRatio,
    PCARank,
    RankMe,
    SelfCluster,
    StableRank,
)

__all__ = [
    "AlphaReQ",
    "EffectiveRank",
    "LiDAR",
    "MatrixEntropy",
    "PCARank",
    "ParticipationRatio",
    "RankMe",
    "SelfCluster",
    "StableRank",
]
