"""Matrix-SSL whose student has no predictor: a method of one file, for ``--method`` of ``sweep.py`` or of any command.

A predictor keeps methods without a repelling term from collapse. Matrix uniformity repels by itself and may do without.
"""

from torch import nn

from matrix_ssl.methods.matrix_ssl import MatrixSSL


class NoPredictor(MatrixSSL):
    """Options as those of Matrix-SSL."""

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        hidden_dim: int = 2048,
        output_dim: int = 2048,
        ridge: float = 0.1,
        uniformity_weight: float = 0.1,
        teacher_momentum: float = 0.996,
    ):
        super().__init__(
            encoder, feature_dim, hidden_dim=hidden_dim, output_dim=output_dim,
            ridge=ridge, uniformity_weight=uniformity_weight, teacher_momentum=teacher_momentum,
        )  # fmt: skip
        self.predictor = nn.Identity()
