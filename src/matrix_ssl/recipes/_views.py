"""Views that several recipes share."""

import dataclasses

from matrix_ssl.config import ViewConfig


def asymmetric_views(*, smallest_crop: float = 0.2) -> tuple[ViewConfig, ViewConfig]:
    """The two views of BYOL and MoCo v3: the first always blurred, the second sometimes blurred or solarised.

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
