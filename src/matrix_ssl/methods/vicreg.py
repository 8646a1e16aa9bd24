"""VICReg: variance, invariance, covariance.

    loss = a · mean (z1 - z2)²  +  b/2 · Σ_branches mean_j max(0, 1 - √(Var z_j + 1e-4))
         + c/d · Σ_branches Σ_i≠j Cov(z)_ij²

The two views agree, every output varies, and no two outputs vary together. Each branch is regularised separately, so
the branches need not share anything. The weights a, b and c are λ, μ and ν in the paper, and ``sim_coeff``,
``std_coeff`` and ``cov_coeff`` in its code.

Reference: Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", ICLR 2022, equations 1 to 6, https://arxiv.org/abs/2105.04906.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.losses import check_not_negative, check_rows, cross_product_norm, in_full_precision
from matrix_ssl.methods._base import Method, StepOutput, gather_outputs, view_pairs

INVARIANCE_WEIGHT = 25.0  # section 4.2
VARIANCE_WEIGHT = 25.0  # section 4.2
COVARIANCE_WEIGHT = 1.0  # section 4.2
EPSILON = 1e-4  # section 4.1


@in_full_precision
def vicreg_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance_weight: float = INVARIANCE_WEIGHT,
    variance_weight: float = VARIANCE_WEIGHT,
    covariance_weight: float = COVARIANCE_WEIGHT,
) -> Tensor:
    """Weighted invariance, variance and covariance terms of two branches: a scalar, 0 or more up to rounding.

    The variance term is the mean over the two branches and the covariance term is their sum, as in the published code;
    the paper writes a sum for both. The covariance term is computed from a d x d matrix, or from an n x n one if a
    batch has fewer rows than columns.

    Args:
        z1, z2: (n, d), outputs for the two views.
        invariance_weight, variance_weight, covariance_weight: ≥ 0.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; a weight is negative or not finite.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.vicreg import vicreg_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> vicreg_loss(z1, z2).backward()
    """
    check_rows(z1=z1, z2=z2)
    check_not_negative(
        invariance_weight=invariance_weight, variance_weight=variance_weight, covariance_weight=covariance_weight
    )
    invariance = (z1 - z2).square().mean()
    variance = covariance = z1.new_zeros(())
    for z in (z1, z2):
        variances, mean = torch.var_mean(z, dim=0)
        centred = z - mean
        # the hinge at a standard deviation of one
        variance = variance + torch.relu(1 - (variances + EPSILON).sqrt()).mean() / 2
        # the squares of all covariances except those of an output with itself
        squares = cross_product_norm(centred, centred) / (len(z) - 1) ** 2
        covariance = covariance + (squares - variances.square().sum()) / z.shape[1]
    return invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance


class VICReg(Method):
    """An encoder and a three-layer projector, trained with ``vicreg_loss``.

    Args:
        hidden_dim: width of the two hidden layers of the projector, which the paper calls the expander.
        output_dim: d, width of the outputs.
        invariance_weight, variance_weight, covariance_weight: see ``vicreg_loss``.
    """

    variants = ({"covariance_weight": 4.0}, {"covariance_weight": 16.0}, {"covariance_weight": 0.25})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 8192,  # section 4.2
        output_dim: config.PositiveInt = 8192,  # section 4.2
        invariance_weight: config.NonNegativeFloat = INVARIANCE_WEIGHT,
        variance_weight: config.NonNegativeFloat = VARIANCE_WEIGHT,
        covariance_weight: config.NonNegativeFloat = COVARIANCE_WEIGHT,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(
            feature_dim, hidden_dim, hidden_dim, output_dim, hidden_bias=True, output_bias=False
        )
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        outputs = gather_outputs(*z)
        losses = [
            vicreg_loss(
                outputs[a],
                outputs[b],
                invariance_weight=self.invariance_weight,
                variance_weight=self.variance_weight,
                covariance_weight=self.covariance_weight,
            )
            for a, b in view_pairs(views)
        ]
        return StepOutput(torch.stack(losses).mean(), {}, features[0].detach(), z[0].detach(), z[1].detach())

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 73.2 % linear accuracy after 1000 epochs (its table 1)."""
        views = config.asymmetric_views(smallest_crop=0.08)  # appendix C.1: BYOL's
        optimizer = config.OptimizerConfig(
            name="lars",  # section 4.2; the code: no adaptation and no decay of biases and BatchNorm
            learning_rate=0.2,  # section 4.2 and the code, scaled by batch / 256
            momentum=0.9,  # the code
            weight_decay=1e-6,  # section 4.2 and the code
            warmup_epochs=10,  # section 4.2; the code's cosine ends at a thousandth of the rate, ours at zero
        )
        # epochs and batch: section 4.2
        return dataclasses.replace(base, views=views, optimizer=optimizer, epochs=1000, batch_size=2048)
