"""DINO with the head that a short training of a small network can learn: a method for ``matrix-ssl compare --methods``.

The published head has 65,536 prototypes and no normalisation. With 256 images a batch it costs twenty times the small
encoders that a comparison on one core trains, and its outputs become alike (``LOG.md``, SwAV and DINO). This file
changes the two defaults, and the variants around them; everything else is ``matrix_ssl.methods.dino``.
"""

from torch import nn

from matrix_ssl.methods.dino import DINO


class DINOSmall(DINO):
    """``DINO`` with 1,024 prototypes and BatchNorm in the head.

    Args:
        prototypes: K.
        head_norm: whether BatchNorm stands in the head's hidden layers.
        centre_momentum: of the running mean of the teacher's outputs.
        hidden_dim: width of the head's two hidden layers.
        output_dim: width of the head's outputs, before the prototypes.
        teacher_momentum: at the start; it rises to 1 on a cosine.
    """

    variants = ({"prototypes": 256}, {"prototypes": 4096}, {"centre_momentum": 0.5})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        prototypes: int = 1024,
        head_norm: bool = True,
        centre_momentum: float = 0.9,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        teacher_momentum: float = 0.996,
    ):
        super().__init__(
            encoder, feature_dim, prototypes=prototypes, head_norm=head_norm, centre_momentum=centre_momentum,
            hidden_dim=hidden_dim, output_dim=output_dim, teacher_momentum=teacher_momentum,
        )  # fmt: skip
