"""MEC: maximum entropy coding, which maximises the coding length of a batch between student and moving average.

Encoding the outputs of a batch up to a distortion ε should take as many bits as possible, while the two views agree:

    loss = -(s/n) tr Σ_k (-1)^(k+1) Xᵏ / k,     X = p zᵀ / s,   s = n ε / d,   the mean over (p1, z2) and (p2, z1)

The sum over k = 1 … 4 is the start of the series of log det(I + X). For the loss and its exact form see
``matrix_ssl.losses.mec_loss``.

Reference: Liu, Wang, Li and Wang, "Self-Supervised Learning via Maximum Entropy Coding", NeurIPS 2022, equations 4 to
7, https://arxiv.org/abs/2210.11464.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.losses import MEC_DEFAULTS, Logarithm, mec_loss
from matrix_ssl.methods._base import StepOutput, TeacherMethod, gather_outputs, global_views, student_teacher_pairs

_FIRST_DISTORTION = 8.0  # multiple of the distortion at which the code's warm-up starts


class MEC(TeacherMethod):
    """A student (encoder, projector, predictor) and its moving average as the teacher, trained with ``mec_loss``.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        output_dim: d, width of the outputs.
        distortion, logarithm, order: see ``matrix_ssl.losses.mec_loss``.
        distortion_warmup: fraction of the training over which the distortion falls linearly from 8 times its value,
            in [0, 1].
        teacher_momentum: initial momentum; it rises to 1 along a cosine.
        predictor: whether the student has a predictor.
    """

    variants = ({"distortion": 16.0}, {"distortion": 4.0}, {"predictor": False})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # not verified: SimSiam's, from which the code is derived
        output_dim: config.PositiveInt = 2048,  # the code: --dim, and a predictor of 512
        distortion: config.PositiveFloat = MEC_DEFAULTS.distortion,  # the code: ε_d = 64 in λ⁻¹ = n ε_d / d
        distortion_warmup: config.Fraction = 0.1,  # the code: 10 epochs of 100
        logarithm: Logarithm = MEC_DEFAULTS.logarithm,  # equation 6
        order: config.PositiveInt = MEC_DEFAULTS.order,  # the code
        teacher_momentum: config.Fraction = 0.996,  # the code
        predictor: bool = True,  # the code
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.projector(feature_dim, hidden_dim, output_dim)
        self.predictor = networks.predictor(output_dim) if predictor else nn.Identity()
        self.add_teacher(teacher_momentum)
        self.distortion = distortion
        self.distortion_warmup = distortion_warmup
        self.logarithm: Logarithm = logarithm
        self.order = order
        self._progress = 1.0  # of the training, for the warm-up

    def before_step(self, step: int, total_steps: int) -> None:
        self._progress = step / total_steps

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.predictor(self.projector(feature)) for feature in features]
        p = {place: self.teach(views[place]) for place in global_views(views)}
        outputs = gather_outputs(*z, *p.values())
        students, teachers = outputs[: len(z)], dict(zip(p, outputs[len(z) :], strict=True))
        distortion = self.schedule(self._progress)["distortion"]
        losses = [
            mec_loss(
                students[a],
                students[b],
                teachers[c],
                teachers[d],
                distortion=distortion,
                logarithm=self.logarithm,
                order=self.order,
            )
            for a, b, c, d in student_teacher_pairs(views)
        ]
        return StepOutput(torch.stack(losses).mean(), {}, features[0].detach(), z[0].detach(), p[max(p)].detach())

    def schedule(self, progress: float) -> dict[str, float]:
        done = min(1.0, progress / self.distortion_warmup) if self.distortion_warmup else 1.0
        return {
            "distortion": self.distortion * (_FIRST_DISTORTION + (1 - _FIRST_DISTORTION) * done),
            **super().schedule(progress),
        }

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The paper's pre-training on ImageNet, 70.6 % linear accuracy after 100 epochs (its table 1; not verified)."""
        views = config.asymmetric_views()  # the code: those of MoCo v3
        optimizer = config.OptimizerConfig(
            name="sgd",
            learning_rate=0.5,  # the code, scaled by batch / 256
            momentum=0.9,  # the code
            weight_decay=1e-5,  # the code
            warmup_epochs=10,  # the code
        )
        # epochs and batch: the code
        return dataclasses.replace(base, views=views, optimizer=optimizer, epochs=100, batch_size=1024)
