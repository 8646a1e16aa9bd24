"""Images of the Earth from above, of 1 to 16 spectral bands, with all of their bits.

    matrix-ssl pretrain satellite --data tiles

ResNet-18 at 96 pixels; channels, range, mean and standard deviation are measured. Views: there is no up, so all eight
orientations of the square; sun and haze change all bands together, season and atmosphere each band a little; the ratios
of the bands show what is on the ground, so they change very little. Not tuned.
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
        jitter=0.8,
        brightness=0.3,
        contrast=0.3,
        channel_jitter=0.5,
        channel_brightness=0.1,
        channel_contrast=0.1,
        blur=0.2,
    )
    base = images.recipe()
    return dataclasses.replace(base, recipe="satellite", data=measured_images(base.data), views=(view, view))
