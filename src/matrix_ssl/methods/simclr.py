"""SimCLR: identify the other view of an image among all views of the batch.

With rows of length one, cosine similarity s and temperature τ, for each of the 2n views i with partner j:

    loss = mean_i  -log [ exp(s_ij / τ) / Σ_k≠i exp(s_ik / τ) ]

Reference: Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020, equation 1, https://arxiv.org/abs/2002.05709.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl import config, networks
from matrix_ssl.losses import check_positive, check_rows, in_full_precision, unit_rows
from matrix_ssl.methods._base import Method, StepOutput, gather_outputs, view_pairs

TEMPERATURE = 0.1  # the code's README; 0.5 for CIFAR-10 there


@in_full_precision
def simclr_loss(z1: Tensor, z2: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """NT-Xent (InfoNCE), the temperature-scaled cross-entropy over the 2n views of a batch: a scalar in nats.

    Args:
        z1, z2: (n, d), outputs for the two views; rows are scaled to length one here.
        temperature: τ > 0.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2; the temperature is not positive.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.simclr import simclr_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> simclr_loss(z1, z2, temperature=0.5).backward()
    """
    check_rows(z1=z1, z2=z2)
    check_positive(temperature=temperature)
    n = len(z1)
    rows = unit_rows(torch.cat([z1, z2]))
    itself = torch.eye(2 * n, dtype=torch.bool, device=rows.device)
    logits = (rows @ rows.mT / temperature).masked_fill(itself, -torch.inf)
    partners = torch.arange(2 * n, device=rows.device).roll(n)
    return F.cross_entropy(logits, partners)


class SimCLR(Method):
    """An encoder and a two-layer projector, trained with ``simclr_loss``.

    Args:
        hidden_dim: width of the projector's hidden layer.
        output_dim: d, width of the outputs.
        temperature: see ``simclr_loss``.
    """

    variants = ({"temperature": 0.2}, {"temperature": 0.5})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # section 2.1: as wide as the features of ResNet-50
        output_dim: config.PositiveInt = 128,  # section 2.1
        temperature: config.PositiveFloat = TEMPERATURE,
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, output_dim, output_bias=False)
        self.temperature = temperature

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        outputs = gather_outputs(*z)
        losses = [simclr_loss(outputs[a], outputs[b], temperature=self.temperature) for a, b in view_pairs(views)]
        return StepOutput(torch.stack(losses).mean(), {}, features[0].detach(), z[0].detach(), z[1].detach())

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 64.5 % linear accuracy after 100 epochs (the code's README)."""
        view = config.symmetric_view(smallest_crop=0.08, strength=1.0)  # appendix A
        optimizer = config.OptimizerConfig(
            name="lars",  # section 2.2
            learning_rate=0.3,  # the code's README, scaled by batch / 256 (section 2.2: 4.8 for 4096)
            momentum=0.9,  # not verified
            weight_decay=1e-6,  # section 2.2 and the code's README
            warmup_epochs=10,  # section 2.2
        )
        # epochs and batch: section 2.2 and the code's README
        return dataclasses.replace(base, views=(view, view), optimizer=optimizer, epochs=100, batch_size=4096)
