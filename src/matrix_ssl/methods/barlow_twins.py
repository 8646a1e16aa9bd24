"""Barlow Twins: the cross-correlation of two views should be the identity.

With columns standardised over the batch and C = ẑ1ᵀ ẑ2 / n:

    loss = Σ_i (1 - C_ii)² + λ · Σ_i≠j C_ij²

The diagonal makes both views agree, the rest decorrelates the outputs. The weight λ (``lambd`` in the published
code) is the option ``redundancy_weight``. At λ = 1 the loss consists of the first two terms of maximum entropy coding,
up to the asymmetry of C: see ``docs/maximum-entropy.md``.

Reference: Zbontar, Jing, Misra, LeCun and Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
ICML 2021, equations 1 and 2, https://arxiv.org/abs/2103.03230.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl import config, networks
from matrix_ssl.losses import check_not_negative, check_rows, cross_product_norm, in_full_precision
from matrix_ssl.methods._base import Method, StepOutput, gather_outputs, view_pairs

REDUNDANCY_WEIGHT = 0.0051  # section 2.2 and the code
EPSILON = 1e-5  # added to the variances, as the BatchNorm of the published code does


@in_full_precision
def barlow_twins_loss(z1: Tensor, z2: Tensor, *, redundancy_weight: float = REDUNDANCY_WEIGHT) -> Tensor:
    """Σ_i (1 - C_ii)² + redundancy_weight · Σ_i≠j C_ij², with C the cross-correlation of the columns.

    The second sum is computed from d x d matrices, or from n x n ones if a batch has fewer rows than columns.

    Args:
        z1, z2: (n, d), outputs for the two views (z_a and z_b in the paper), not standardised.
        redundancy_weight: λ ≥ 0.

    Returns:
        A scalar, 0 or more up to rounding; 0 if C is the identity. The second sum is a difference, which in float32
        loses three digits when the outputs are nearly uncorrelated; its gradient does not.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; the weight is negative or not finite.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.barlow_twins import barlow_twins_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> barlow_twins_loss(z1, z2).backward()
    """
    check_rows(z1=z1, z2=z2)
    check_not_negative(redundancy_weight=redundancy_weight)
    n, d = z1.shape
    # columns with mean zero and variance one
    a, b = (F.batch_norm(z, None, None, training=True, eps=EPSILON) for z in (z1, z2))
    # the diagonal of C and the sum of all its squares
    if n < d:
        diagonal = (a * b).sum(0) / n
        squares = cross_product_norm(a, b) / n**2
    else:
        correlation = a.mT @ b / n
        diagonal, squares = correlation.diagonal(), correlation.square().sum()
    return (1 - diagonal).square().sum() + redundancy_weight * (squares - diagonal.square().sum())


class BarlowTwins(Method):
    """An encoder and a three-layer projector, trained with ``barlow_twins_loss``.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        output_dim: d, width of the outputs.
        redundancy_weight: see ``barlow_twins_loss``.
        bias_rate: learning rate of biases and BatchNorm relative to that of the weights.
    """

    variants = ({"redundancy_weight": 0.02}, {"redundancy_weight": 0.08}, {"redundancy_weight": 0.00125})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 8192,  # section 2.2
        output_dim: config.PositiveInt = 8192,  # section 2.2
        redundancy_weight: config.NonNegativeFloat = REDUNDANCY_WEIGHT,
        bias_rate: config.PositiveFloat = 1.0,  # 0.024 with LARS, see the recipe
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, hidden_dim, output_dim, output_bias=False)
        self.redundancy_weight = redundancy_weight
        self.bias_rate = bias_rate

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        outputs = gather_outputs(*z)
        losses = [
            barlow_twins_loss(outputs[a], outputs[b], redundancy_weight=self.redundancy_weight)
            for a, b in view_pairs(views)
        ]
        return StepOutput(torch.stack(losses).mean(), {}, features[0].detach(), z[0].detach(), z[1].detach())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two groups: the weights, and biases and BatchNorm, whose learning rate may differ."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim > 1]},
            {"params": [p for p in trainable if p.ndim <= 1], "rate": self.bias_rate},
        ]

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 73.2 % linear accuracy after 1000 epochs (its table 1)."""
        views = config.asymmetric_views(smallest_crop=0.08)  # section 2.2: BYOL's
        options = {**base.method.options, "bias_rate": 0.024}  # section 2.2: 0.2 for weights, 0.0048 for biases
        method = dataclasses.replace(base.method, options=options)
        optimizer = config.OptimizerConfig(
            name="lars",  # section 2.2, no adaptation and no decay of biases and BatchNorm
            learning_rate=0.2,  # section 2.2, scaled by batch / 256
            momentum=0.9,  # the code
            weight_decay=1e-6,  # the code; section 2.2 says 1.5e-6
            warmup_epochs=10,  # section 2.2; the code's cosine ends at a thousandth of the rate, ours at zero
        )
        # epochs and batch: section 2.2
        return dataclasses.replace(base, views=views, method=method, optimizer=optimizer, epochs=1000, batch_size=2048)
