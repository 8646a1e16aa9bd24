"""EMP-SSL: every view is near the mean of its image's views, while the coding rate of the batch is maximised.

With rows of length one, z̄ the mean over the views of an image and R the total coding rate:

    loss = -λ · mean over views and images of cos(z_v, z̄)  -  mean over views of R(Z_v)
    R(Z) = ½ log det(I + d / (n ε²) ZᵀZ)

The paper trains with about a hundred small views per image, so that one epoch is worth many; with two views this is one
more method without negatives, teacher or predictor. The paper's features come from a first layer of the projector,
ours from the encoder alone.

Reference: Tong, Chen, Ma and LeCun, "EMP-SSL: Towards Self-Supervised Learning in One Training Epoch", 2023,
https://arxiv.org/abs/2304.03977; the coding rate: Ma, Derksen, Hong and Wright, IEEE TPAMI 29(9), 2007.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.losses import check_not_negative, in_full_precision, unit_rows
from matrix_ssl.matrix import coding_rate
from matrix_ssl.methods._base import Method, StepOutput, check_views, gather_outputs

INVARIANCE_WEIGHT = 200.0  # the code
DISTORTION = math.sqrt(0.2)  # the code has 0.2 for ε²


@in_full_precision
def emp_ssl_loss(
    *outputs: Tensor, invariance_weight: float = INVARIANCE_WEIGHT, distortion: float = DISTORTION
) -> Tensor:
    """Weighted distance of the views from their mean, minus their coding rate: a scalar, ≥ -λ - d/2 log(1 + 1/ε²).

    The coding rate is computed from a d x d matrix, or from an n x n one if a batch has fewer rows than columns. The
    loss can be differentiated once.

    Args:
        outputs: (n, d) each, for two views or more; rows are scaled to length one here.
        invariance_weight: λ ≥ 0.
        distortion: ε > 0.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; there is only one view; a number is out of range.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.emp_ssl import emp_ssl_loss
        >>> views = torch.randn(4, 64, 16, requires_grad=True)
        >>> emp_ssl_loss(*views).backward()
    """
    check_views(outputs)
    check_not_negative(invariance_weight=invariance_weight)
    z = unit_rows(torch.stack(outputs))
    similarity = (z * unit_rows(z.mean(0))).sum(-1).mean()
    return -invariance_weight * similarity - coding_rate(z, distortion=distortion, validate=False).mean()


class EMPSSL(Method):
    """An encoder and a three-layer projector, trained with ``emp_ssl_loss``.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        output_dim: d, width of the outputs.
        invariance_weight, distortion: see ``emp_ssl_loss``.
    """

    variants = ({"invariance_weight": 50.0}, {"invariance_weight": 800.0}, {"distortion": 0.9})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 4096,  # the code
        output_dim: config.PositiveInt = 1024,  # the code
        invariance_weight: config.NonNegativeFloat = INVARIANCE_WEIGHT,
        distortion: config.PositiveFloat = DISTORTION,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, hidden_dim, output_dim, hidden_bias=True)
        self.invariance_weight = invariance_weight
        self.distortion = distortion

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        loss = emp_ssl_loss(*gather_outputs(*z), invariance_weight=self.invariance_weight, distortion=self.distortion)
        return StepOutput(loss, {}, features[0].detach(), z[0].detach(), z[1].detach())

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """Pre-training on ImageNet with the optimizer of the paper, which trains on CIFAR and smaller ImageNets."""
        views = config.asymmetric_views(smallest_crop=0.08)  # the paper's have a fixed area of a quarter
        optimizer = config.OptimizerConfig(
            name="lars",  # the code
            learning_rate=0.768,  # the code: 0.3 for its batch of 100
            momentum=0.9,  # the code, with Nesterov's correction
            weight_decay=1e-4,  # the code
            warmup_epochs=0,  # the code: none
        )
        # epochs: the code; batch: a common size, since the paper's 100 images with 100 views each make 10,000 rows
        return dataclasses.replace(base, views=views, optimizer=optimizer, epochs=30, batch_size=1024)
