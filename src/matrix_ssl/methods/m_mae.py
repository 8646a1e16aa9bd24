"""M-MAE: MAE that also maximises the coding rate of the encoder's features in a batch.

With Z the features of the visible patches, (n, d) with rows of length one, for the images of a batch:

    loss = MAE's - λ · log det(I + μ/d · ZᵀZ)

where the log det is twice the total coding rate at a distortion ε² = d² / (n μ): the uniformity of Matrix-SSL, for an
encoder that is otherwise trained on pixels only. The published code divides by the width d, although its comment says
the number of rows; here it is d, as in the code, so the term grows with the batch at the same μ. Rows are not centred.
Z is the class token after the last norm, or the mean of the patch tokens where the architecture pools them.

Differences from the published code, in addition to those of ``mae``: its class token passes through the last norm
twice, ours once; and its gradient stops at the rows of other processes, while ours is that of the whole batch.

Reference: Tan, Yang, Huang, Yuan and Zhang, "Information Flow in Self-Supervised Learning", ICML 2024, the loss of
M-MAE, https://arxiv.org/abs/2309.17281, with its code, https://github.com/yifanzhang-pro/M-MAE; the coding rate: Ma,
Derksen, Hong and Wright, IEEE TPAMI 29(9), 2007.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matrix_ssl import config
from matrix_ssl.losses import check_positive, check_rows, in_full_precision, unit_rows
from matrix_ssl.matrix import coding_rate
from matrix_ssl.methods._base import StepOutput, gather_outputs, mean_over_processes
from matrix_ssl.methods._masked import MaskedMethod, published_run
from matrix_ssl.methods.mae import mae_loss

SCALE = 1.0  # the code; its command for ViT-L has 3


@in_full_precision
def rate_loss(z: Tensor, *, scale: float = SCALE) -> Tensor:
    """-log det(I + μ/d · ZᵀZ) in nats, a scalar of at most 0, from a d x d or n x n matrix, whichever is smaller.

    The loss can be differentiated once.

    Args:
        z: (n, d), one row per image; rows are scaled to length one here.
        scale: μ > 0.

    Raises:
        ValueError: the shape is not (n, d) with n ≥ 2; the scale is not above zero.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.m_mae import rate_loss
        >>> rate_loss(torch.randn(64, 16, requires_grad=True)).backward()
    """
    check_rows(z=z)
    check_positive(scale=scale)
    n, d = z.shape
    return -2 * coding_rate(unit_rows(z), distortion=d / (n * scale) ** 0.5, validate=False)


class MMAE(MaskedMethod):
    """An encoder of visible and a decoder of hidden patches, trained with ``mae_loss`` plus λ times ``rate_loss``.

    Args:
        mask_ratio, decoder_dim, decoder_depth, decoder_heads: as for MAE.
        rate_weight: λ ≥ 0.
        scale: μ > 0, see ``rate_loss``.
    """

    variants = ({"rate_weight": 0.1}, {"rate_weight": 0.001}, {"scale": 3.0})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        mask_ratio: config.OpenFraction = 0.75,  # MAE's
        decoder_dim: config.PositiveInt = 512,  # MAE's
        decoder_depth: config.PositiveInt = 8,  # MAE's
        decoder_heads: config.PositiveInt = 16,  # MAE's
        rate_weight: config.NonNegativeFloat = 0.01,  # the code's command and README
        scale: config.PositiveFloat = SCALE,
    ):
        super().__init__()
        self.encoder = encoder
        self.mask_ratio = mask_ratio
        self.rate_weight = rate_weight
        self.scale = scale
        self.add_decoder(feature_dim, width=decoder_dim, depth=decoder_depth, heads=decoder_heads)

    def forward(self, *views: Tensor) -> StepOutput:
        parts = [self.reconstruct(view, number) for number, view in enumerate(views, 1)]
        reconstruction = mean_over_processes(
            torch.stack([mae_loss(part.prediction, part.pixels) for part in parts]).mean()
        )
        outputs = gather_outputs(*(part.features for part in parts))
        rate = -torch.stack([rate_loss(z, scale=self.scale) for z in outputs]).mean()
        terms = {"reconstruction": reconstruction.detach(), "rate": rate.detach()}
        features = [part.features.detach() for part in parts]
        loss = reconstruction - self.rate_weight * rate
        # there are no projections to monitor: with one view, its features stand in for both branches
        return StepOutput(loss, terms, features[0], features[0], features[-1])

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The published pre-training on ImageNet."""
        return published_run(base, epochs=200, batch_size=1024)  # the code's README and command
