"""MMCR: the mean of an image's views is long and differs from image to image.

With rows of length one, C the matrix of the images' centroids (the mean of their views), Z_i the views of image i, and
‖ ‖_* the nuclear norm, the sum of the singular values:

    loss = -‖C‖_*  +  λ · mean_i ‖Z_i‖_*

A centroid is longer the more its views agree, and for centroids of given lengths the norm is largest when they are
orthogonal. The paper derives the loss from a layer's manifold capacity. The published code for ImageNet also averages
the outputs of a moving average of the network into the centroids; here, as in its code for CIFAR-10, there is no such
teacher. The published code sets λ to zero, since the first term already compresses the views of an image.

Reference: Yerxa, Kuang, Simoncelli and Chung, "Learning Efficient Coding of Natural Images with Maximum Manifold
Capacity Representations", NeurIPS 2023, https://arxiv.org/abs/2303.03307.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.losses import check_not_negative, in_full_precision, unit_rows
from matrix_ssl.methods._base import Method, StepOutput, check_views, gather_outputs

LOCAL_WEIGHT = 0.0  # the code


@in_full_precision
def mmcr_loss(*outputs: Tensor, local_weight: float = LOCAL_WEIGHT) -> Tensor:
    """Minus the nuclear norm of the centroids, plus a weight times the mean nuclear norm of the views: a scalar.

    It is at least -√(n·min(n, d)). Where singular values are zero, the gradient is one of the norm's subgradients.

    Args:
        outputs: (n, d) each, for two views or more; rows are scaled to length one here.
        local_weight: λ ≥ 0.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; there is only one view; the weight is out of range.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.mmcr import mmcr_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> mmcr_loss(z1, z2).backward()
    """
    check_views(outputs)
    check_not_negative(local_weight=local_weight)
    z = unit_rows(torch.stack(outputs, dim=1))
    loss = -_nuclear_norm(z.mean(1))
    if local_weight:
        loss = loss + local_weight * _nuclear_norm(z).mean()
    return loss


def _nuclear_norm(x: Tensor) -> Tensor:
    """Sums of the singular values of (..., n, d); NaN instead of PyTorch's error if an entry is not finite."""
    finite = x.isfinite().all()
    return torch.where(finite, torch.linalg.svdvals(torch.where(finite, x, 0.0)).sum(-1), torch.nan)


class MMCR(Method):
    """An encoder and a three-layer projector, trained with ``mmcr_loss``.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        output_dim: d, width of the outputs.
        local_weight: see ``mmcr_loss``.
    """

    # with two views the local norm is at most 2, the global one up to √(n·min(n, d)): smaller weights change nothing
    variants = ({"local_weight": 1.0}, {"local_weight": 10.0}, {"local_weight": 30.0})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 8192,  # the code for ImageNet
        output_dim: config.PositiveInt = 512,  # the code for ImageNet
        local_weight: config.NonNegativeFloat = LOCAL_WEIGHT,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, hidden_dim, output_dim, output_bias=False)
        self.local_weight = local_weight

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        loss = mmcr_loss(*gather_outputs(*z), local_weight=self.local_weight)
        return StepOutput(loss, {}, features[0].detach(), z[0].detach(), z[1].detach())

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The published pre-training on ImageNet with two views instead of eight, and without a teacher."""
        views = config.asymmetric_views(smallest_crop=0.08)  # the code: Barlow Twins'
        optimizer = config.OptimizerConfig(
            name="lars",  # the code, no adaptation and no decay of biases and BatchNorm
            learning_rate=0.8,  # the code, scaled by batch / 256
            momentum=0.9,  # the code
            weight_decay=1e-6,  # the code
            warmup_epochs=10,  # the code; its cosine ends at a thousandth of the rate, ours at zero
        )
        # epochs and batch: the code
        return dataclasses.replace(base, views=views, optimizer=optimizer, epochs=100, batch_size=2048)
