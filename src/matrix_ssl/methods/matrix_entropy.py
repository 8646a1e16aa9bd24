"""Matrix entropy: the outputs of each view spread over all directions, while the two outputs of an image agree.

With rows of length one, C = zᵀz / n (not centred, trace one) and S the entropy of its eigenvalues:

    loss = -½ [S(C₁) + S(C₂)] - w · mean cos(z₁, z₂)

This is Matrix-SSL with three changes. Uniformity is that of each view's own covariance instead of the cross-covariance
of student and teacher. The arguments of its divergence are swapped, MKL(C ‖ I/d) = log d - S(C) instead of
MCE(λI, C + μI), so there is no ridge and no determinant whose sign could be negative. And alignment compares the two
views of each image instead of two covariances of a batch. There is no teacher and no predictor.

``width`` > 0 replaces ⟨a, b⟩ by the kernel exp((⟨a, b⟩ - 1) / width), and ``order`` replaces von Neumann's entropy by
the Rényi entropy of that order. For the loss see ``matrix_ssl.losses.matrix_entropy_loss``, for the theory
``docs/matrix-entropy.md``.

References: two special cases are published methods. The linear form with von Neumann's entropy is that of VNE: Kim,
Kang, Hwang, Shin and Rhee, "VNE: An Effective Method for Improving Deep Representation by Manipulating Eigenvalue
Distribution", CVPR 2023, https://arxiv.org/abs/2304.01434. With order 2 the entropy is that of FroSSL, whose code for
two views scales columns instead of rows: Skean, Dhakal, Jacobs and Sanchez Giraldo, "FroSSL: Frobenius Norm
Minimization for Efficient Multiview Self-Supervised Learning", ECCV 2024, https://arxiv.org/abs/2310.02903.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.distributed import losses
from matrix_ssl.losses import matrix_entropy
from matrix_ssl.methods._base import Method, StepOutput, view_pairs


class MatrixEntropy(Method):
    """An encoder and a two-layer projector, trained with ``matrix_entropy_loss``.

    Args:
        hidden_dim: width of the projector's hidden layer.
        output_dim: d, width of the outputs.
        alignment_weight, order, width: see ``matrix_ssl.losses.matrix_entropy_loss``.
    """

    variants = ({"alignment_weight": 3.0}, {"alignment_weight": 6.0}, {"alignment_weight": 2.0, "width": 0.5})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: config.PositiveInt = 2048,  # SimCLR's
        output_dim: config.PositiveInt = 256,  # 128 to 1024 are alike (LOG.md)
        alignment_weight: config.NonNegativeFloat = matrix_entropy.ALIGNMENT_WEIGHT,  # see LOG.md, CIFAR-10
        order: config.PositiveFloat = 1.0,  # von Neumann's, as in VNE; 2 in FroSSL
        width: config.NonNegativeFloat = 0.0,  # no kernel, as in VNE and FroSSL
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = networks.mlp(feature_dim, hidden_dim, output_dim, output_bias=False)
        self.alignment_weight = alignment_weight
        self.order = order
        self.width = width

    def forward(self, *views: Tensor) -> StepOutput:
        features = [self.encoder(view) for view in views]
        z = [self.projector(feature) for feature in features]
        options: Any = {"alignment_weight": self.alignment_weight, "order": self.order, "width": self.width}
        terms = [losses.matrix_entropy_terms(z[a], z[b], **options) for a, b in view_pairs(views)]
        loss, entropy, cosine = (torch.stack(parts).mean() for parts in zip(*terms, strict=True))
        parts = {"entropy": entropy, "cosine": cosine}
        return StepOutput(loss, parts, features[0].detach(), z[0].detach(), z[1].detach())
