"""W-MSE: the whitened outputs of two views agree.

The outputs of each view are centred, then decorrelated and scaled by the inverse W of a Cholesky factor of their
covariance, which is estimated in sub-batches of the batch. The loss of two views compares the whitened rows, scaled to
length one; it is averaged over pairs of views:

    loss = mean_i ‖W_1 z1_i / ‖W_1 z1_i‖ - W_2 z2_i / ‖W_2 z2_i‖‖²  =  2 - 2 · mean_i cos(W_1 z1_i, W_2 z2_i)

A whitened batch cannot collapse. The images of a sub-batch are drawn anew at every step. Whitening n rows of d columns
is meaningful for n well above d: in the paper, a sub-batch has at least 2d rows, and outputs are narrow.

Reference: Ermolov, Siarohin, Sangineto and Sebe, "Whitening for Self-Supervised Representation Learning", ICML 2021,
https://arxiv.org/abs/2007.06346.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import ConfigError
from matrix_ssl.losses import in_full_precision, unit_rows
from matrix_ssl.methods._base import Method, StepOutput, check_views, gather_outputs

Order = Sequence[int] | NDArray[np.int64]

SHRINKAGE = 1e-3  # 0 in the code, where a step with a singular covariance fails


@in_full_precision
def w_mse_loss(
    *outputs: Tensor, order: Order | None = None, sub_batch: int = 0, shrinkage: float = SHRINKAGE
) -> Tensor:
    """Mean squared distance of the whitened rows over all pairs of views: a scalar in [0, 4].

    The result is NaN if a covariance cannot be inverted, which requires a shrinkage of zero.

    Args:
        outputs: (n, d) each, for two views or more.
        order: n integers, the order of the images in which the batch is split; by default their own.
        sub_batch: minimum number of images in a sub-batch, 2 or more; 0: the whole batch is one sub-batch.
        shrinkage: ε in [0, 1]; (1 - ε) Σ + ε I takes the place of the covariance Σ.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; there is only one view; a number is out of range.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.w_mse import w_mse_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> w_mse_loss(z1, z2, sub_batch=32).backward()
    """
    check_views(outputs)
    if sub_batch == 1 or sub_batch < 0 or not 0 <= shrinkage <= 1:
        raise ValueError(f"Expected sub_batch 0 or at least 2 and shrinkage in [0, 1], got {sub_batch}, {shrinkage}.")
    z = torch.stack(outputs)
    if order is not None:
        z = z[:, torch.as_tensor(order, device=z.device)]
    parts = max(1, z.shape[1] // sub_batch) if sub_batch else 1
    rows = unit_rows(torch.cat([_whiten(part, shrinkage) for part in z.tensor_split(parts, dim=1)], dim=1))
    pairs = [(a - b).square().sum(-1).mean() for a, b in itertools.combinations(rows, 2)]
    return torch.stack(pairs).mean()


def _whiten(z: Tensor, shrinkage: float) -> Tensor:
    """The centred rows of (v, n, d) times the transposed inverse of the Cholesky factor of each view's covariance."""
    n, d = z.shape[-2:]
    centred = z - z.mean(-2, keepdim=True)
    covariance = centred.mT @ centred / (n - 1)
    identity = torch.eye(d, dtype=z.dtype, device=z.device)
    factor, info = torch.linalg.cholesky_ex((1 - shrinkage) * covariance + shrinkage * identity)
    factor = torch.where((info == 0)[:, None, None], factor, torch.nan)  # skips the step instead of ending the run
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT


class WMSE(Method):
    """An encoder and a two-layer projector, trained with ``w_mse_loss``.

    Args:
        hidden_dim: width of the projector's hidden layer.
        output_dim: d, width of the outputs; should be at most half of a sub-batch.
        sub_batch: minimum number of images that are whitened together, 2 or more; 0: the whole batch. Which images
            are grouped together depends on the run's seed and the step.
        shrinkage: see ``w_mse_loss``.
        rounds: number of random partitions of a batch over which the loss is averaged.
    """

    variants = (
        {"output_dim": 64, "sub_batch": 128},
        {"output_dim": 32, "sub_batch": 64},
        {"output_dim": 64, "sub_batch": 128, "rounds": 4},
    )

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 1024,  # the code
        output_dim: config.PositiveInt = 64,  # the code's README, for CIFAR; 128 for larger images
        sub_batch: config.NonNegativeInt = 128,  # the code's README, for CIFAR: twice the width
        shrinkage: config.Fraction = SHRINKAGE,
        rounds: config.PositiveInt = 1,  # the code; 4 for larger images
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, output_dim, hidden_bias=True)
        if sub_batch == 1:
            raise ConfigError("method.sub_batch=1: expected 0 or at least 2.")
        self.sub_batch = sub_batch
        self.shrinkage = shrinkage
        self.rounds = rounds
        self._step = 0

    def before_step(self, step: int, total_steps: int) -> None:
        self._step = step

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        outputs = gather_outputs(*z)
        losses = []
        for number in range(self.rounds):
            # depends only on seed and step: the same on all processes and in a resumed run
            order = permutation(len(outputs[0]), self.seed, self._step, number)
            losses.append(w_mse_loss(*outputs, order=order, sub_batch=self.sub_batch, shrinkage=self.shrinkage))
        return StepOutput(torch.stack(losses).mean(), {}, features[0].detach(), z[0].detach(), z[1].detach())

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """Pre-training on ImageNet with the published code's values for its largest images."""
        view = config.symmetric_view()  # crops: the code; colours: not verified
        options = {**base.method.options, "output_dim": 128, "sub_batch": 256, "rounds": 4}  # the code's README
        method = dataclasses.replace(base.method, options=options)
        optimizer = config.OptimizerConfig(
            name="adamw",  # the code: Adam
            learning_rate=1e-3,  # the code's README: 2e-3 for its batch of 512
            weight_decay=1e-6,  # the code
            warmup_epochs=10,  # not verified
        )
        # epochs: not verified; batch: a multiple of that in the code's README
        return dataclasses.replace(
            base, views=(view, view), method=method, optimizer=optimizer, epochs=100, batch_size=1024
        )
