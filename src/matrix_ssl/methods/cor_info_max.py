"""CorInfoMax: the views agree, and the running covariance of the outputs has a large determinant.

With rows of length one, n of them, and f the forgetting factor:

    loss = α · mean (z1 - z2)²  -  1/d · Σ_branches log det(R + εI)
    R ← f R + (1 - f) · Σ_i (z_i - μ)(z_i - μ)ᵀ / n,    μ ← f μ + (1 - f) · Σ_i z_i / n

The log determinants are the second-order entropies of the branches, and the whole is a bound on the log-determinant
mutual information between them. The gradient flows through the batch's part of R. The weight α of the attraction is the
option ``invariance_weight``.

Reference: Ozsoy, Hamdan, Arik, Yuret and Erdogan, "Self-Supervised Learning with an Information Maximization
Criterion", NeurIPS 2022, https://arxiv.org/abs/2209.07999.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.losses import check_not_negative, check_positive, check_rows, in_full_precision, unit_rows
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.matrix.spectra.matrix_functions import log_determinant
from matrix_ssl.methods._base import Method, StepOutput, gather_outputs

INVARIANCE_WEIGHT = 250.0  # the code's README, for CIFAR-10; 1000 for CIFAR-100, 2000 for ImageNet
FORGETTING = 0.01  # the code's README; 0.1 for ImageNet
RIDGE = 1e-6  # the code's default; 1e-8 in its README, below the rounding of a covariance in float32


class Moments(NamedTuple):
    """Running mean (d,) and covariance (d, d) of the unit rows of one branch."""

    mean: Tensor
    covariance: Tensor


def first_moments(like: Tensor) -> Moments:
    """The moments before the first step, for outputs (n, d): zero and the identity."""
    d = like.shape[1]
    return Moments(like.new_zeros(d), torch.eye(d, dtype=like.dtype, device=like.device))


def next_moments(z: Tensor, before: Moments, *, forgetting: float = FORGETTING) -> Moments:
    """The moments after a batch (n, d), in float64 if the device supports it."""
    with without_autocast(z):
        rows = _widest(unit_rows(z))
        mean = torch.lerp(rows.mean(0), _widest(before.mean), forgetting)
        centred = rows - mean
        return Moments(mean, torch.lerp(centred.mT @ centred / len(z), _widest(before.covariance), forgetting))


@in_full_precision
def cor_info_max_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    before: tuple[Moments, Moments] | None = None,
    invariance_weight: float = INVARIANCE_WEIGHT,
    forgetting: float = FORGETTING,
    ridge: float = RIDGE,
) -> Tensor:
    """Weighted distance of the views minus 1/d times the log determinants of their running covariances: a scalar.

    Determinants are computed by Cholesky, in float64 if the device supports it. The loss can be differentiated once.

    Args:
        z1, z2: (n, d), outputs for the two views; rows are scaled to length one here.
        before: moments of both branches before this batch, by default ``first_moments``.
        invariance_weight: α ≥ 0.
        forgetting: f in [0, 1], the weight of the old moments.
        ridge: ε > 0.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; a number is out of range.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.cor_info_max import cor_info_max_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> cor_info_max_loss(z1, z2).backward()
    """
    check_rows(z1=z1, z2=z2)
    check_not_negative(invariance_weight=invariance_weight)
    check_positive(ridge=ridge)
    if not 0 <= forgetting <= 1:
        raise ValueError(f"forgetting must be in [0, 1], got {forgetting}.")
    invariance = (unit_rows(z1) - unit_rows(z2)).square().mean()
    volume = z1.new_zeros(())
    for z, moments in zip((z1, z2), before or (first_moments(z1), first_moments(z2)), strict=True):
        covariance = next_moments(z, moments, forgetting=forgetting).covariance
        identity = torch.eye(z.shape[1], dtype=covariance.dtype, device=z.device)
        volume = volume + log_determinant(covariance + ridge * identity).to(z.dtype) / z.shape[1]
    return invariance_weight * invariance - volume


def _widest(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


class CorInfoMax(Method):
    """An encoder and a three-layer projector, trained with ``cor_info_max_loss`` on running moments of the outputs.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        output_dim: d, width of the outputs.
        invariance_weight, forgetting, ridge: see ``cor_info_max_loss``.
    """

    means: Tensor
    covariances: Tensor
    variants = ({"invariance_weight": 1000.0}, {"invariance_weight": 4000.0}, {"invariance_weight": 60.0})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # the code's README, for CIFAR-10
        output_dim: config.PositiveInt = 64,  # the code's README, for CIFAR-10
        invariance_weight: config.NonNegativeFloat = INVARIANCE_WEIGHT,
        forgetting: config.Fraction = FORGETTING,
        ridge: config.PositiveFloat = RIDGE,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(
            feature_dim, hidden_dim, hidden_dim, output_dim, hidden_bias=True, output_bias=False
        )
        self.register_buffer("means", torch.zeros(2, output_dim))
        self.register_buffer("covariances", torch.eye(output_dim).repeat(2, 1, 1))
        self.invariance_weight = invariance_weight
        self.forgetting = forgetting
        self.ridge = ridge
        self._newest: list[Moments] = []  # what ``after_step`` stores

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        first, *others = gather_outputs(*z)
        outputs = (first.repeat(len(others), 1), torch.cat(others))
        before = (Moments(self.means[0], self.covariances[0]), Moments(self.means[1], self.covariances[1]))
        loss = cor_info_max_loss(
            *outputs,
            before=before,
            invariance_weight=self.invariance_weight,
            forgetting=self.forgetting,
            ridge=self.ridge,
        )
        # the moments are part of this step's graph, so they change only after the step, and only if the step is taken
        self._newest = [
            next_moments(z.detach(), moments, forgetting=self.forgetting)
            for z, moments in zip(outputs, before, strict=True)
        ]
        return StepOutput(loss, {}, features[0].detach(), z[0].detach(), z[1].detach())

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Stores the moments of the branches."""
        for branch, moments in enumerate(self._newest):
            self.means[branch], self.covariances[branch] = moments
        self._newest = []

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 69.08 % linear accuracy after 100 epochs (the code's README)."""
        views = config.asymmetric_views(smallest_crop=0.08)  # not verified
        # the code's README
        options = {"hidden_dim": 8192, "output_dim": 512, "invariance_weight": 2000.0, "forgetting": 0.1}
        method = dataclasses.replace(base.method, options={**base.method.options, **options})
        optimizer = config.OptimizerConfig(
            name="sgd",  # the code's README
            learning_rate=0.2 / 6,  # the code's README: 0.2 for its batch of 1536
            momentum=0.9,  # the code
            weight_decay=1e-4,  # the code's README
            warmup_epochs=10,  # the code
        )
        # epochs and batch: the code's README
        return dataclasses.replace(base, views=views, method=method, optimizer=optimizer, epochs=100, batch_size=1536)
