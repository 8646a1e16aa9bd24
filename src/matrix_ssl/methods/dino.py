"""DINO: a student predicts the distribution over prototypes that its moving average assigns to a different view.

With z the outputs of the student, p those of the teacher, K wide each, and c a running mean of the teacher's outputs:

    loss = mean over views v and global views g ≠ v of   -Σ_k softmax((p_g - c) / τ_t)_k log softmax(z_v / τ_s)_k

Centring by c keeps one prototype from always winning, and the low temperature τ_t (sharpening) keeps the prototypes
from becoming equally probable; together they keep the outputs from collapsing. The teacher sees only the global views,
the student smaller ones as well: see the setting ``views``. The head has three layers, outputs of length one, and a
last layer of K rows of length one, which is frozen at the start of training.

Differences from the published code: there the weight decay rises along a cosine from 0.04 to 0.4 and gradients are
clipped at a norm of 3; here the decay is constant, and nothing is clipped. The teacher's BatchNorm statistics follow
the student's. The learning rate ends at zero.

Reference: Caron, Touvron, Misra, Jégou, Mairal, Bojanowski and Joulin, "Emerging Properties in Self-Supervised Vision
Transformers", ICCV 2021, equations 1 to 4, https://arxiv.org/abs/2104.14294.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl import config, distributed
from matrix_ssl.losses import check_positive, in_full_precision, unit_rows
from matrix_ssl.matrix.numerics.precision import without_autocast
from matrix_ssl.methods._base import (
    StepOutput,
    TeacherMethod,
    cross_entropy_of_views,
    global_views,
    mean_over_processes,
)
from matrix_ssl.networks.teacher import weights_cast_once

STUDENT_TEMPERATURE = 0.1  # the code
TEACHER_TEMPERATURE = 0.04  # the code


@in_full_precision
def dino_loss(
    z: Tensor,
    p: Tensor,
    centre: Tensor,
    *,
    student_temperature: float = STUDENT_TEMPERATURE,
    teacher_temperature: float = TEACHER_TEMPERATURE,
) -> Tensor:
    """Cross-entropy of the student's views with the teacher's, averaged over all pairs of different views, in nats.

    The loss itself stops no gradient: the targets must come from a teacher without gradient, or be detached.

    Args:
        z: (v, n, K), the student's outputs for v views.
        p: (g, n, K), the teacher's outputs for the first g of these views.
        centre: (K,), subtracted from the teacher's outputs.
        student_temperature, teacher_temperature: τ_s and τ_t > 0.

    Raises:
        ValueError: shapes do not fit, or there is no pair of different views; a temperature is out of range.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.dino import dino_loss
        >>> z, p = torch.randn(4, 64, 16, requires_grad=True), torch.randn(2, 64, 16)
        >>> dino_loss(z, p, p.mean((0, 1))).backward()
    """
    check_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    if (
        z.ndim != 3
        or p.shape[1:] != z.shape[1:]
        or centre.shape != z.shape[2:]
        or not 1 <= len(p) <= len(z)
        or len(z) < 2
    ):
        shapes = [tuple(x.shape) for x in (z, p, centre)]
        raise ValueError(f"Expected z (v, n, K), p (g, n, K) and centre (K,) with v ≥ 2 and g ≤ v, got {shapes}.")
    targets = ((p - centre) / teacher_temperature).softmax(-1)
    return cross_entropy_of_views((z / student_temperature).unbind(), targets.unbind())


class Head(nn.Module):
    """Three layers with GELU, outputs of length one, and their inner products with prototypes of length one."""

    def __init__(self, dim_in: int, hidden: int, bottleneck: int, prototypes: int, *, norm: bool):
        super().__init__()

        def hidden_layer(width: int) -> list[nn.Module]:
            return [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if norm else []), nn.GELU()]

        self.layers = nn.Sequential(*hidden_layer(dim_in), *hidden_layer(hidden), nn.Linear(hidden, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)  # the code
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        self.frozen = False  # whether the prototypes get a gradient of zero

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (n, dim_in) to inner products (n, prototypes) and outputs of length one (n, bottleneck)."""
        outputs = unit_rows(self.layers(features))
        prototypes = unit_rows(self.prototypes.weight)
        if self.frozen:
            prototypes = prototypes.detach() + 0 * prototypes  # every process must use every parameter
        with without_autocast(outputs):  # temperatures amplify bfloat16's rounding
            return F.linear(outputs, prototypes), outputs


class DINO(TeacherMethod):
    """A student (encoder, head), trained with ``dino_loss``, and its moving average as the teacher.

    Args:
        hidden_dim: width of the head's two hidden layers.
        output_dim: width of the head's outputs, before the prototypes.
        prototypes: K.
        head_norm: whether the head's hidden layers have BatchNorm. Without it, the outputs of a small network that is
            trained for a short time share a common direction, and become alike before they spread.
        student_temperature: see ``dino_loss``.
        teacher_temperature, first_teacher_temperature: τ_t changes linearly from the latter to the former.
        temperature_warmup: fraction of the training over which it does so, in [0, 1].
        centre_momentum: momentum of the running mean of the teacher's outputs.
        frozen: fraction of the training, from its start, during which the prototypes are frozen, in [0, 1].
        teacher_momentum: initial momentum; it rises to 1 along a cosine.
    """

    projector: Head
    centre: Tensor
    variants = (
        {"prototypes": 1024, "head_norm": True},
        {"prototypes": 256, "head_norm": True},
        {"prototypes": 1024, "head_norm": True, "centre_momentum": 0.5},
    )

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # the code
        output_dim: config.PositiveInt = 256,  # the code
        prototypes: config.PositiveInt = 65536,  # the code
        head_norm: bool = False,  # the code: use_bn_in_head
        student_temperature: config.PositiveFloat = STUDENT_TEMPERATURE,
        teacher_temperature: config.PositiveFloat = TEACHER_TEMPERATURE,
        first_teacher_temperature: config.PositiveFloat = 0.04,  # the code
        temperature_warmup: config.Fraction = 0.3,  # 30 epochs, here of 100; the code's longer runs rise to 0.07
        centre_momentum: config.Fraction = 0.9,  # the code
        frozen: config.Fraction = 0.01,  # the code: an epoch, here of 100
        teacher_momentum: config.Fraction = 0.996,  # the code
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = Head(feature_dim, hidden_dim, output_dim, prototypes, norm=head_norm)
        self.add_teacher(teacher_momentum)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.first_teacher_temperature = first_teacher_temperature
        self.temperature_warmup = temperature_warmup
        self.centre_momentum = centre_momentum
        self.frozen = frozen
        self._progress = 1.0
        self._newest: Tensor | None = None  # the centre that ``after_step`` stores

    def before_step(self, step: int, total_steps: int) -> None:
        self._progress = step / total_steps
        self.projector.frozen = self._progress < self.frozen

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z, outputs = zip(*(self.projector(feature) for feature in features), strict=True)
        places = global_views(views)
        with torch.no_grad(), weights_cast_once(self.teacher, views[0]):
            encode, head = self.teacher["encoder"], self.teacher["projector"]
            p, targets = zip(*(head(encode(views[place])) for place in places), strict=True)
        order = [*places, *(place for place in range(len(views)) if place not in places)]
        teacher = torch.stack(p)
        loss = dino_loss(
            torch.stack([z[place] for place in order]),
            teacher,
            self.centre,
            student_temperature=self.student_temperature,
            teacher_temperature=self.schedule(self._progress)["teacher_temperature"],
        )
        # the centre is part of this step's graph, so it changes only after the step, and only if the step is taken
        mean = distributed.all_reduce_sum(teacher.to(self.centre).mean((0, 1))) / distributed.world_size()
        self._newest = torch.lerp(mean, self.centre, self.centre_momentum)
        return StepOutput(
            mean_over_processes(loss), {}, features[0].detach(), outputs[0].detach(), targets[-1].detach()
        )

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Updates the teacher and the centre."""
        super().after_step(progress)
        if self._newest is not None:
            self.centre.copy_(self._newest)
            self._newest = None

    def schedule(self, progress: float) -> dict[str, float]:
        """The teacher's temperature, and its momentum, which rises to 1 along a cosine."""
        done = min(1.0, progress / self.temperature_warmup) if self.temperature_warmup else 1.0
        temperature = (
            self.first_teacher_temperature + (self.teacher_temperature - self.first_teacher_temperature) * done
        )
        return {"teacher_temperature": temperature, **super().schedule(progress)}

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The published pre-training of a ResNet-50 on ImageNet; the paper's main runs train vision transformers."""
        view1, view2 = config.asymmetric_views(smallest_crop=0.14)  # the code's README, for ResNet-50
        local = dataclasses.replace(view1, count=8, image_size=96, crop_scale=(0.05, 0.14), blur=0.5)  # the code
        optimizer = config.OptimizerConfig(
            name="sgd",  # the code's README, for ResNet-50
            learning_rate=0.03,  # the code's README, for ResNet-50; scaled by batch / 256
            momentum=0.9,  # the code
            weight_decay=1e-4,  # the code's README, for ResNet-50
            warmup_epochs=10,  # the code
        )
        # epochs and batch: the code, eight processes of 64
        return dataclasses.replace(base, views=(view1, view2, local), optimizer=optimizer, epochs=100, batch_size=512)
