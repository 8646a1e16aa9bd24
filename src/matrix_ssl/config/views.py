"""Augmentation policies that several papers share, and settings for images of which everything is measured."""

import dataclasses

from matrix_ssl.config import DataConfig, ViewConfig


def asymmetric_views(*, smallest_crop: float = 0.2) -> tuple[ViewConfig, ViewConfig]:
    """The two views of BYOL and MoCo v3: the first is always blurred, the second sometimes blurred or solarised.

    BYOL, Barlow Twins and VICReg crop down to 0.08 of the image, MoCo v3, MEC and Matrix-SSL to 0.2.

    Reference: Grill et al., NeurIPS 2020, table 6; Chen, Xie and He, ICCV 2021, appendix A, with its code's jitter.
    """
    view1 = ViewConfig(
        crop_scale=(smallest_crop, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale=0.2,
        blur=1.0,
    )
    return view1, dataclasses.replace(view1, blur=0.1, solarize=0.2)


def symmetric_view(*, smallest_crop: float = 0.2, strength: float = 0.5) -> ViewConfig:
    """The view of SimCLR; with half the colour jitter, both views of MoCo v2 and SimSiam.

    Args:
        smallest_crop: 0.08 in SimCLR, 0.2 in the others.
        strength: of the colour jitter: 1 in SimCLR, 0.5 in the others, which also gives their hue of 0.1.

    Reference: Chen, Kornblith, Norouzi and Hinton, ICML 2020, appendix A; Chen, Fan, Girshick and He, 2020, section 3.
    """
    return ViewConfig(
        crop_scale=(smallest_crop, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grayscale=0.2,
        blur=0.5,
    )


def measured_images(data: DataConfig) -> DataConfig:
    """Settings for images that keep all channels and bits, with channels, range, mean and deviation measured."""
    return dataclasses.replace(data, channels=-1, mean=(), std=())
