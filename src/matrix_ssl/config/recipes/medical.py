"""Radiographs and slices of CT or MR, DICOM or other files, with all of their bits.

    matrix-ssl pretrain medical --data scans --set data.value_range=-1000,400

ResNet-18 at 96 pixels; channels, range, mean and standard deviation are measured, or the window is set, as above in
Hounsfield units. Views: a body has an up and a left, so there are no flips or quarter turns, but small rotations,
shifts and changes of size, as from posture; changes of brightness, contrast and gamma, as from exposure and window; and
noise, as from a lower dose. Not tuned.
"""

import dataclasses

from matrix_ssl.config import RunConfig, ViewConfig
from matrix_ssl.config.recipes import images
from matrix_ssl.config.views import measured_images

OTHER_METHODS = images.OTHER_METHODS


def recipe() -> RunConfig:
    view = ViewConfig(
        crop_scale=(0.3, 1.0),
        rotation=10.0,
        zoom=0.1,
        translation=0.05,
        jitter=0.8,
        brightness=0.3,
        contrast=0.3,
        gamma=0.3,
        blur=0.2,
        noise=0.02,
    )
    base = images.recipe()
    return dataclasses.replace(base, recipe="medical", data=measured_images(base.data), views=(view, view))
