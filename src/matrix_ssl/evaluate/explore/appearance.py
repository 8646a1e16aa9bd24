"""Brightness and sharpness of images, which reveal dark, overexposed and blurred ones."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Appearance(NamedTuple):
    """Brightness and sharpness of every image, float32 (n,)."""

    brightness: NDArray[np.float32]  # mean luma, 0 (black) to 1 (white)
    sharpness: NDArray[np.float32]  # standard deviation of the Laplacian of the luma in [0, 1]


def appearance(luma: NDArray[np.uint8]) -> Appearance:
    """Brightness and sharpness of images from their luma (n, h, w), h and w at least 3, from 0 (black) to 255 (white).

    The Laplacian uses the four neighbours and excludes the border. It is large at edges and small in a blurred image;
    a uniform image does not count as sharp either. In thumbnails, only blur wider than their pixels is detected.

    Reference: Pech-Pacheco, Cristóbal, Chamorro-Martínez and Fernández-Valdivia, "Diatom autofocusing in brightfield
    microscopy: a comparative study", ICPR 2000, with the standard deviation instead of the variance.
    """
    x = luma.astype(np.int16)
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    edges = around - 4 * x[:, 1:-1, 1:-1]
    return Appearance(luma.mean((1, 2), dtype=np.float32) / 255, edges.std((1, 2), dtype=np.float32) / 255)
