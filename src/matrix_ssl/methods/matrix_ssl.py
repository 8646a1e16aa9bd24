"""Matrix-SSL: matrix uniformity plus matrix alignment between a student and its moving-average teacher.

A student (encoder, projector, predictor) sees both views; a teacher (encoder, projector), the exponential moving
average of the student, provides the targets. The loss asks for a cross-covariance of the two that is as uniform as the
identity, and for a student covariance that matches the teacher's:

    loss = ½ Σ over (p2, z1), (p1, z2) of   -λ tr log(C(p, z) + μI) - γ tr[(C(p, p) + μI) log(C(z, z) + μI)]

For the formula and its interpretation as a matrix cross-entropy see ``matrix_ssl.losses``.

Two things differ from the published code. Its logarithm is a Taylor series; ours is exact by default. And its teacher's
BatchNorm buffers start as a copy and are updated by the teacher's own batches, never averaged; here they follow the
student by the same moving average as the weights, so that the teacher can be evaluated and exported.

Reference: Zhang, Tan, Yang, Huang and Yuan, "Matrix Information Theory for Self-Supervised Learning", ICML 2024,
https://arxiv.org/abs/2305.17326.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.distributed import losses
from matrix_ssl.errors import ConfigError
from matrix_ssl.losses import (
    DEFAULTS,
    Alignment,
    Logarithm,
    MatrixSSLTerms,
    Objective,
    Uniformity,
    matrix_ssl_variant_terms,
)
from matrix_ssl.methods._base import StepOutput, TeacherMethod, gather_outputs, global_views, student_teacher_pairs


class MatrixSSL(TeacherMethod):
    """A student (encoder, projector, predictor) and its moving average as teacher, trained with ``matrix_ssl_loss``.

    Args:
        hidden_dim: width of the projector's two hidden layers.
        output_dim: d, width of the outputs.
        ridge, uniformity_weight, alignment_weight, logarithm, order: see ``matrix_ssl.losses.matrix_ssl_loss``.
        teacher_momentum: initial momentum; it rises to 1 along a cosine.
        predictor: whether the student has a predictor. Methods without a repelling term need one; matrix uniformity
            repels by itself, and in short trainings the features were better without one (``LOG.md``).
        uniformity, alignment: which terms to use, see ``matrix_ssl.losses.matrix_ssl_variant_terms``. At least one of
            them must compare the views of an image: uniformity "cross" does, and so does alignment "images".

    Raises:
        ConfigError: neither uniformity nor alignment compares the two views of an image; a series would go unused.
    """

    counters = ("negative_determinants",)
    variants = (
        {"ridge": 1 / 32, "uniformity_weight": 1 / 32},
        {"ridge": 0.3, "uniformity_weight": 0.3},
        {"predictor": False},
    )

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # the code
        output_dim: config.PositiveInt = 2048,  # the code
        ridge: config.PositiveFloat = DEFAULTS.ridge,  # 0.5 in the code's script, 1 in its README
        uniformity_weight: config.NonNegativeFloat = DEFAULTS.uniformity_weight,  # equal to the ridge in the code
        alignment_weight: config.NonNegativeFloat = DEFAULTS.alignment_weight,  # the code
        logarithm: Logarithm = DEFAULTS.logarithm,  # a Taylor series in the code
        order: config.PositiveInt = DEFAULTS.order,  # the code
        teacher_momentum: config.Fraction = 0.996,  # the code
        predictor: bool = True,  # the code
        uniformity: Uniformity = "cross",  # the paper
        alignment: Alignment = "covariances",  # the paper
    ):
        super().__init__()
        if uniformity != "cross" and alignment == "covariances":
            raise ConfigError(
                f"method.uniformity={uniformity} with method.alignment=covariances never compares the two views of an "
                f"image, so that nothing about the images is learned: add --set method.alignment=images."
            )
        if uniformity != "cross" and logarithm == "taylor":
            raise ConfigError(
                f"method.logarithm=taylor changes nothing with method.uniformity={uniformity}, which has no series: "
                f"remove it."
            )
        self.encoder = encoder
        self.projector = networks.projector(feature_dim, hidden_dim, output_dim)
        self.predictor = networks.predictor(output_dim) if predictor else nn.Identity()
        self.add_teacher(teacher_momentum)
        self.objective = Objective(ridge, uniformity_weight, alignment_weight, logarithm, order)
        self.uniformity: Uniformity = uniformity
        self.alignment: Alignment = alignment

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.predictor(self.projector(feature)) for feature in features]
        p = {place: self.teach(views[place]) for place in global_views(views)}
        terms = [self.terms(z[a], z[b], p[c], p[d]) for a, b, c, d in student_teacher_pairs(views)]
        loss, uniformity, alignment, negative = (torch.stack(parts) for parts in zip(*terms, strict=True))
        named = {
            "uniformity": uniformity.mean(),
            "alignment": alignment.mean(),
            "negative_determinants": negative.sum(),
        }
        return StepOutput(loss.mean(), named, features[0].detach(), z[0].detach(), p[max(p)].detach())

    def terms(self, z1: Tensor, z2: Tensor, p1: Tensor, p2: Tensor) -> MatrixSSLTerms:
        """The loss of two views over the batch of all processes, from this process's outputs."""
        if (self.uniformity, self.alignment) == ("cross", "covariances"):
            return losses.matrix_ssl_terms(z1, z2, p1, p2, objective=self.objective)
        z1, z2, p1, p2 = gather_outputs(z1, z2, p1, p2)
        return matrix_ssl_variant_terms(
            z1, z2, p1, p2, uniformity=self.uniformity, alignment=self.alignment, objective=self.objective
        )
