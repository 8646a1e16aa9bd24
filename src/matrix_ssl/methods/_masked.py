"""Shared by masked-modelling methods: masks, an encoder of the visible patches, and a decoder of the pixels."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matrix_ssl import config, distributed, networks
from matrix_ssl.data.randomness import uniform
from matrix_ssl.errors import ConfigError
from matrix_ssl.methods._base import Method

_MASK = 0x3A5C  # coordinate that keeps the masks independent of other random numbers


def patch_order(samples: NDArray[np.int64], patches: int, *, seed: int, step: int, view: int) -> NDArray[np.int64]:
    """A random order (n, patches) of each image's patches, determined by its position in the batch of a step.

    Args:
        samples: (n,), positions of the images in the batch of all processes.
        patches: number of patches per image.
        seed, step, view: the run's seed, the step, counted from 0, and the view, counted from 1.
    """
    return np.argsort(uniform(seed, _MASK, step, samples, view, draws=patches), axis=1, kind="stable")


class Reconstruction(NamedTuple):
    """The output of a masked autoencoder for one view."""

    features: Tensor  # (n_local, k), the encoder's features of the visible patches
    prediction: Tensor  # (n_local, m, p), of the masked patches
    pixels: Tensor  # (n_local, m, p), of the same patches


class MaskedMethod(Method):
    """A method that predicts the pixels of the patches that its encoder does not see.

    A subclass sets ``encoder`` and ``mask_ratio`` and then calls ``add_decoder``.
    """

    needs_tokens = True
    least_views = 1
    mask_ratio: float
    decoder: networks.PixelDecoder
    _step = 0

    def add_decoder(self, feature_dim: int, *, width: int, depth: int, heads: int) -> None:
        """Creates the decoder; ConfigError if the encoder has no tokens or its patches do not divide an image."""
        if not networks.has_tokens(self.encoder):
            raise ConfigError(
                f"The encoder {type(self.encoder).__name__} has no tokens: use a vision transformer of timm."
            )
        patches: Any = self.encoder.patch_embed
        self.side = int(patches.patch_size[0])
        size, channels = int(patches.img_size[0]), patches.proj.in_channels
        if size % self.side or size == self.side:
            raise ConfigError(
                f"Patches of {self.side} pixels do not divide images of {size} pixels into two or more a side: change "
                "--set network.patch_size."
            )
        self.decoder = networks.PixelDecoder(
            feature_dim, self.side**2 * channels, width=width, depth=depth, heads=heads
        )

    def before_step(self, step: int, total_steps: int) -> None:
        self._step = step

    def reconstruct(self, view: Tensor, number: int) -> Reconstruction:
        """Runs encoder and decoder on a view (n_local, c, s, s); ``number`` counts the views from 1."""
        rows, columns = view.shape[2] // self.side, view.shape[3] // self.side
        first = distributed.rank() * len(view)
        order = torch.from_numpy(
            patch_order(
                np.arange(first, first + len(view)), rows * columns, seed=self.seed, step=self._step, view=number
            )
        ).to(view.device)
        count = visible_patches(rows * columns, self.mask_ratio)
        visible, masked = order[:, :count], order[:, count:, None]
        tokens, features = networks.encode_visible(self.encoder, view, visible)
        prediction = self.decoder(tokens, visible, rows=rows, columns=columns).take_along_dim(masked, 1)
        pixels = networks.patch_pixels(view, self.side).take_along_dim(masked, 1)
        return Reconstruction(features, prediction, pixels)

    @classmethod
    def choose_views(cls, views: tuple[config.ViewConfig, ...]) -> tuple[config.ViewConfig, ...]:
        """One view, with the first view's crops and other geometric augmentations, without the photometric ones."""
        unchanged: dict[str, Any] = dict.fromkeys(("jitter", "grayscale", "blur", "solarize", "gamma", "noise"), 0.0)
        return (dataclasses.replace(views[0], count=1, **unchanged),)


def visible_patches(patches: int, mask_ratio: float) -> int:
    """The number of an image's patches that are visible: at least one, and at most all but one."""
    return min(max(1, round(patches * (1 - mask_ratio))), patches - 1)


def published_run(base: config.RunConfig, *, epochs: int, batch_size: int) -> config.RunConfig:
    """A run on ImageNet with the optimizer, the views and the encoder that both papers share."""
    view = config.ViewConfig(crop_scale=(0.2, 1.0), flip=0.5)  # MAE's code
    optimizer = config.OptimizerConfig(
        name="adamw",  # MAE, table 8; with PyTorch's β₂ of 0.999 instead of 0.95
        learning_rate=1.5e-4,  # MAE, table 8
        weight_decay=0.05,  # MAE, table 8
        warmup_epochs=40,  # MAE, table 8
    )
    network = config.NetworkConfig(encoder="timm/vit_base_patch16_224")  # the smallest encoder in both papers
    return dataclasses.replace(
        base, views=(view,), network=network, optimizer=optimizer, epochs=epochs, batch_size=batch_size
    )
