"""BYOL: a student with a predictor learns to match its own moving average.

The teacher is the exponential moving average of the student, and there are no negative pairs. Student and teacher see
opposite views:

    loss = ‖z̄1 - p̄2‖² + ‖z̄2 - p̄1‖²,     z the student's predictions, p the teacher's projections, rows of length one

The paper calls the student the online network and the teacher the target network.

Reference: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
equation 2 and section 3, https://arxiv.org/abs/2006.07733.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.losses import check_rows, in_full_precision, unit_rows
from matrix_ssl.methods._base import (
    StepOutput,
    TeacherMethod,
    global_views,
    mean_over_processes,
    student_teacher_pairs,
)


@in_full_precision
def byol_loss(z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Squared distance of unit rows, ‖z̄1 - p̄2‖² + ‖z̄2 - p̄1‖², averaged over the rows: a scalar in [0, 8].

    It equals 4 + 4 · ``simsiam_loss``. The loss itself stops no gradient: the targets must come from a teacher
    without gradient, or be detached.

    Args:
        z1, z2: (n, d), outputs of the student's predictor for the two views.
        p1, p2: (n, d), targets: outputs of the teacher's projector for the two views.

    Raises:
        ValueError: shapes differ or are not (n, d) with n ≥ 2.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.byol import byol_loss
        >>> z1, z2 = torch.randn(2, 64, 16, requires_grad=True)
        >>> p1, p2 = torch.randn(2, 64, 16)
        >>> byol_loss(z1, z2, p1, p2).backward()
    """
    check_rows(z1=z1, z2=z2, p1=p1, p2=p2)
    first, second = unit_rows(z1) - unit_rows(p2), unit_rows(z2) - unit_rows(p1)
    return first.square().sum(1).mean() + second.square().sum(1).mean()


class BYOL(TeacherMethod):
    """A student (encoder, projector, predictor), trained with ``byol_loss``, and its moving average as the teacher.

    Args:
        hidden_dim: width of the hidden layers of projector and predictor.
        output_dim: d, width of the outputs.
        teacher_momentum: initial momentum (τ in the paper); it rises to 1 along a cosine.
    """

    variants = ({"teacher_momentum": 0.996}, {"teacher_momentum": 0.97})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 4096,  # section 3.3
        output_dim: config.PositiveInt = 256,  # section 3.3
        teacher_momentum: config.Fraction = 0.996,  # section 3.3; 0.99 for 100 and 300 epochs, appendix J
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, output_dim)
        self.predictor = networks.mlp(output_dim, hidden_dim, output_dim)
        self.add_teacher(teacher_momentum)

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.predictor(self.projector(feature)) for feature in features]
        p = {place: self.teach(views[place]) for place in global_views(views)}
        losses = [byol_loss(z[a], z[b], p[c], p[d]) for a, b, c, d in student_teacher_pairs(views)]
        loss = mean_over_processes(torch.stack(losses).mean())
        return StepOutput(loss, {}, features[0].detach(), z[0].detach(), p[max(p)].detach())

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 74.3 % linear accuracy after 1000 epochs (its table 1)."""
        views = config.asymmetric_views(smallest_crop=0.08)  # table 6
        optimizer = config.OptimizerConfig(
            name="lars",  # section 3.3, no adaptation and no decay of biases and BatchNorm
            learning_rate=0.2,  # section 3.3, scaled by batch / 256; 0.45 for 100 epochs, appendix J
            momentum=0.9,  # not verified
            weight_decay=1.5e-6,  # section 3.3
            warmup_epochs=10,  # section 3.3
        )
        # epochs and batch: section 3.3
        return dataclasses.replace(base, views=views, optimizer=optimizer, epochs=1000, batch_size=4096)
