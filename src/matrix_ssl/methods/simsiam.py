"""SimSiam: two views pass through one network, with a predictor on one side and a stop-gradient on the other.

There are no negative pairs, no moving average and no large batch: the predictor and the stop-gradient alone keep the
outputs from collapsing to a constant.

    loss = -½ [cos(z1, p2) + cos(z2, p1)],     z = h(y), p = stop-gradient(y),  y the projections and h the predictor

The paper uses different letters: its p are the predictions z here, its z are the projections y.

The loss is the first term of the series of maximum entropy coding: see ``docs/maximum-entropy.md``.

Reference: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, equations 1 to 4,
https://arxiv.org/abs/2011.10566.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.losses import check_rows, in_full_precision, unit_rows
from matrix_ssl.methods._base import Method, StepOutput, global_views, mean_over_processes, student_teacher_pairs


@in_full_precision
def simsiam_loss(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Negative cosine similarity -½ [cos(z1, p2) + cos(z2, p1)], averaged over the rows: a scalar in [-1, 1].

    The loss itself stops no gradient: pass ``p1.detach(), p2.detach()``. Without that, constant outputs
    minimise it. A row of zeros has similarity 0 with everything.

    Args:
        z1, z2: (n, d), outputs of the predictor for the two views.
        p1, p2: (n, d), targets: outputs of the projector for the two views.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.simsiam import simsiam_loss
        >>> z1, z2, y1, y2 = torch.randn(4, 64, 16, requires_grad=True)
        >>> simsiam_loss(z1, z2, y1.detach(), y2.detach()).backward()
    """
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    first, second = unit_rows(z1) * unit_rows(p2), unit_rows(z2) * unit_rows(p1)
    return -(first.sum(1).mean() + second.sum(1).mean()) / 2


class SimSiam(Method):
    """An encoder, a projector and a predictor, trained with ``simsiam_loss``.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        output_dim: d, width of the outputs.
        constant_predictor_rate: whether the predictor's learning rate stays at its peak instead of decaying.
    """

    variants = ({"constant_predictor_rate": False},)

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # section 3, "projection MLP"
        output_dim: config.PositiveInt = 2048,  # section 3
        constant_predictor_rate: bool = True,  # table 1 (c): no decay is slightly better; the code's --fix-pred-lr
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.projector(feature_dim, hidden_dim, output_dim)
        self.predictor = networks.predictor(output_dim)
        self.constant_predictor_rate = constant_predictor_rate

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        y = [self.projector(feature) for feature in features]
        z = [self.predictor(projection) for projection in y]
        p = {place: self.target(y[place]) for place in global_views(views)}
        losses = [simsiam_loss(z[a], z[b], p[c], p[d]) for a, b, c, d in student_teacher_pairs(views)]
        loss = mean_over_processes(torch.stack(losses).mean())
        return StepOutput(loss, {}, features[0].detach(), z[0].detach(), p[max(p)].detach())

    def target(self, output: Tensor) -> Tensor:
        """The target with which the other view is compared: the output without its gradient."""
        return output.detach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two groups: encoder and projector, and the predictor, whose learning rate may be constant."""
        body = [*self.encoder.parameters(), *self.projector.parameters()]
        return [{"params": body}, {"params": [*self.predictor.parameters()], "constant": self.constant_predictor_rate}]

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 68.1 % linear accuracy after 100 epochs (its table 4)."""
        view = config.symmetric_view()  # section 3 and the code: MoCo v2's
        optimizer = config.OptimizerConfig(
            name="sgd",
            learning_rate=0.05,  # section 3: lr · batch / 256 with a base lr of 0.05
            momentum=0.9,  # section 3
            weight_decay=1e-4,  # section 3; the code decays every parameter
            warmup_epochs=0,  # the code: none; the paper warms up for larger batches
        )
        # epochs and batch: section 3
        return dataclasses.replace(base, views=(view, view), optimizer=optimizer, epochs=100, batch_size=512)
