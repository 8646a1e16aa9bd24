"""Micrographs of 1 to 16 channels, such as stains or fluorescence, with all of their bits.

    matrix-ssl pretrain microscopy --data cells

ResNet-18 at 96 pixels; channels, range, mean and standard deviation are measured. Views: there is no up, so all eight
orientations of the square; exposure and staining differ between channels, so each changes in brightness and contrast
independently; a little blur and noise, as from focus and camera. Nothing mixes channels: each is a separate marker. Not
tuned.
"""

import dataclasses

from matrix_ssl.config import RunConfig, ViewConfig
from matrix_ssl.config.recipes import images
from matrix_ssl.config.views import measured_images

OTHER_METHODS = images.OTHER_METHODS


def recipe() -> RunConfig:
    view = ViewConfig(
        crop_scale=(0.2, 1.0),
        flip=0.5,
        quarter_turns=0.75,
        channel_jitter=0.8,
        channel_brightness=0.4,
        channel_contrast=0.4,
        gamma=0.2,
        blur=0.3,
        noise=0.02,
    )
    base = images.recipe()
    return dataclasses.replace(base, recipe="microscopy", data=measured_images(base.data), views=(view, view))
