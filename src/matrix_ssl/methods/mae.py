"""MAE: the encoder sees a quarter of an image's patches, and a light decoder predicts the pixels of the others.

With x the pixels of a hidden patch, scaled to mean zero and variance one within the patch, and y their prediction:

    loss = mean over hidden patches and their pixels of (y - x)²

Nothing can collapse, since the targets are the images themselves: there is no second view, teacher or projector. The
encoder is a vision transformer of timm that gets the visible patches alone, which is what makes the training cheap; the
decoder is dropped after it. Which patches are visible is a function of the run's seed, the step and the place of the
image in the batch. The features are those of the architecture: the class token of ``timm/vit_tiny_patch16_224`` and
its like, the mean of the patches' tokens where timm's name has ``gap``. Of more than one view, each is a task of its
own, and the loss is their mean.

What differs from the published code: the encoder's positions are timm's, learned and not fixed sines; its weights are
initialised as timm does; the optimizer has PyTorch's β₂ of 0.999 instead of 0.95, and decays all parameters.

Reference: He, Chen, Xie, Li, Dollár and Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
section 3 and table 8, https://arxiv.org/abs/2111.06377.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matrix_ssl import config
from matrix_ssl.matrix.precision import in_full_precision
from matrix_ssl.methods._base import StepOutput, mean_over_processes
from matrix_ssl.methods._masked import MaskedMethod, published_run

_SMALLEST_VARIANCE = 1e-6  # added to that of a patch, as in the published code


@in_full_precision
def mae_loss(prediction: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared error of the hidden patches, whose pixels are scaled within each patch: a scalar of 0 or more.

    Predicting the mean of every patch, which is zero, costs just below 1; a patch of one colour has the target zero.

    Args:
        prediction: (n, m, p), for m hidden patches of each image.
        pixels: (n, m, p), their pixels, p of 2 or more; mean and variance (unbiased) are taken over the last dimension.

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
    """An encoder of the visible patches and a decoder of the others under ``mae_loss``.

    Args:
        mask_ratio: part of the patches that is hidden, above 0 and below 1.
        decoder_dim: width of the decoder, a multiple of 4 and of ``decoder_heads``.
        decoder_depth: number of its blocks.
        decoder_heads: heads of its attention.
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
        # there are no projections to watch: with one view, the features stand in the place of both branches
        return StepOutput(mean_over_processes(loss), {}, features[0], features[0], features[-1])

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """The published pre-training of a ViT-B on ImageNet."""
        return published_run(base, epochs=800, batch_size=4096)  # the code's command
