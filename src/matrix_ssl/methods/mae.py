"""MAE: the encoder sees a quarter of an image's patches, and a lightweight decoder predicts the pixels of the others.

With x the pixels of a hidden patch, normalised to zero mean and unit variance within it, and y their prediction:

    loss = mean over hidden patches and their pixels of (y - x)²

Nothing can collapse, since the targets are the images themselves: there is no second view, teacher or projector. The
encoder is a timm vision transformer that receives only the visible patches, which makes training cheap; the decoder is
discarded afterwards. Which patches are visible depends on the run's seed, the step and the image's position in the
batch. The features are those of the architecture: the class token for ``timm/vit_tiny_patch16_224`` and similar models,
the mean of the patch tokens where timm's name contains ``gap``. With more than one view, each is a task of its own, and
the loss is their mean.

Differences from the published code: the encoder has timm's learned position embeddings instead of fixed sines, and
timm's weight initialisation; the optimizer has PyTorch's β₂ of 0.999 instead of 0.95, and decays all parameters.

Reference: He, Chen, Xie, Li, Dollár and Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
section 3 and table 8, https://arxiv.org/abs/2111.06377.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matrix_ssl import config
from matrix_ssl.matrix.numerics.precision import in_full_precision
from matrix_ssl.methods._base import StepOutput, mean_over_processes
from matrix_ssl.methods._masked import MaskedMethod, published_run

_SMALLEST_VARIANCE = 1e-6  # added to a patch's variance, as in the published code


@in_full_precision
def mae_loss(prediction: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared error of the hidden patches, with pixels normalised within each patch: a scalar of 0 or more.

    Predicting every patch's mean, which is zero, costs just below 1; a patch of equal pixel values has the target zero.

    Args:
        prediction: (n, m, p), for m hidden patches of each image.
        pixels: (n, m, p), their pixels, p of 2 or more; mean and unbiased variance are taken over the last dimension.

    Raises:
        ValueError: the shapes differ or are not (n, m, p) with p ≥ 2.

    Example:
        >>> import torch
        >>> from matrix_ssl.methods.mae import mae_loss
        >>> prediction, pixels = torch.randn(8, 12, 48, requires_grad=True), torch.rand(8, 12, 48)
        >>> mae_loss(prediction, pixels).backward()
    """
    if prediction.shape != pixels.shape or prediction.ndim != 3 or prediction.shape[2] < 2:
        raise ValueError(
            f"Expected predictions and pixels of one shape (n, m, p) with p of 2 or more, got "
            f"{tuple(prediction.shape)} and {tuple(pixels.shape)}."
        )
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return (prediction - (pixels - mean) / (variance + _SMALLEST_VARIANCE).sqrt()).square().mean()


class MAE(MaskedMethod):
    """An encoder of the visible patches and a decoder of the hidden ones, trained with ``mae_loss``.

    Args:
        mask_ratio: fraction of the patches that is hidden, above 0 and below 1.
        decoder_dim: width of the decoder, a multiple of 4 and of ``decoder_heads``.
        decoder_depth: number of the decoder's blocks.
        decoder_heads: number of the decoder's attention heads.
    """

    variants = ({"mask_ratio": 0.5}, {"mask_ratio": 0.6}, {"mask_ratio": 0.85})

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        *,
        mask_ratio: config.OpenFraction = 0.75,  # the paper, section 4.1
        decoder_dim: config.PositiveInt = 512,  # the paper, section 4.1
        decoder_depth: config.PositiveInt = 8,  # the paper, section 4.1
        decoder_heads: config.PositiveInt = 16,  # the code
    ):
        super().__init__()
        self.encoder = encoder
        self.mask_ratio = mask_ratio
        self.add_decoder(feature_dim, width=decoder_dim, depth=decoder_depth, heads=decoder_heads)

    def forward(self, *views: Tensor) -> StepOutput:
        parts = [self.reconstruct(view, number) for number, view in enumerate(views, 1)]
        loss = torch.stack([mae_loss(part.prediction, part.pixels) for part in parts]).mean()
        features = [part.features.detach() for part in parts]
        # there are no projections to monitor: with one view, its features stand in for both branches
        return StepOutput(mean_over_processes(loss), {}, features[0], features[0], features[-1])

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The published pre-training of a ViT-B on ImageNet."""
        return published_run(base, epochs=800, batch_size=4096)  # the code's command
