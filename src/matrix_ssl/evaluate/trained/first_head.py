"""Fits a linear head to the frozen features of labelled images before it is trained together with the encoder.

A head with random weights sends random gradients into a trained encoder. Reference: Kumar, Raghunathan, Jones, Ma and
Liang, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022, section 3.
"""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from matrix_ssl import distributed
from matrix_ssl.config import DataConfig
from matrix_ssl.data.base import Source
from matrix_ssl.errors import Diverged
from matrix_ssl.evaluate.features import Features, extract
from matrix_ssl.evaluate.probes.linear import fit_logistic_regression
from matrix_ssl.training import batch_norm

_PENALTY = 0.1  # per image


class FrozenFeatures(NamedTuple):
    """Features of the central squares of labelled images, and the number of classes."""

    features: Features
    classes: int

    @property
    def square_norm(self) -> float:
        """The mean of ‖x‖², above 0."""
        mean = self.features.vectors[""].double().square().sum(1).mean()
        return float(mean.clamp_min(torch.finfo(torch.float32).tiny))

    def regression(self) -> tuple[Tensor, Tensor]:
        """Weights (classes, k) and biases (classes,) of a linear layer on the unscaled features.

        They come from a logistic regression on standardised features with a penalty of a tenth of the number of images,
        but at least 1.
        """
        x = self.features.vectors[""]
        fitted = fit_logistic_regression(
            x, self.features.labels, classes=self.classes, l2=max(1.0, _PENALTY * len(x))
        )  # fmt: skip
        weight = fitted.weight / fitted.std
        bias = fitted.bias - weight @ fitted.mean
        least = bias[bias.isfinite()].min()
        return weight, bias.clamp_min(least)  # the bias of a class without readable images is negative infinity


class BatchStatistics(nn.Module):
    """A copy of an encoder that normalises by the statistics of each batch, even in evaluation mode.

    A network at its initialisation has no other statistics, and without them its features have a different scale.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, c, s, s) to features (n, k); a single image uses the statistics of the previous batches."""
        for layer in batch_norm.layers(self.encoder):
            layer.train(len(images) > 1)
        features: Tensor = self.encoder(images)
        return features


def frozen_features(
    encoder: nn.Module, source: Source, data: DataConfig, *, device: torch.device, statistics: Literal["batch", "kept"]
) -> FrozenFeatures:
    """Computes features of labelled images; the encoder is not changed.

    Args:
        statistics: the statistics that BatchNorm normalises by.

    Raises:
        Diverged: a feature is not finite.
    """
    network = copy.deepcopy(encoder) if statistics == "kept" else BatchStatistics(encoder)
    with distributed.alone():
        features = extract({"": network}, source, data, device=device)
    if not features.vectors[""].isfinite().all():
        raise Diverged("The features of the encoder are not finite: it has diverged itself.")
    return FrozenFeatures(features, len(source.labelled()[1]))
