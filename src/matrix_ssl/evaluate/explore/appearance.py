"""Brightness and sharpness of images, by which dark, overexposed and blurred ones stand out."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Appearance(NamedTuple):
    """Of every image (n,), float32."""

    brightness: NDArray[np.float32]  # mean luma, 0 (black) to 1 (white)
    sharpness: NDArray[np.float32]  # standard deviation of the Laplacian of the luma in [0, 1]


def appearance(luma: NDArray[np.uint8]) -> Appearance:
    """Brightness and sharpness of images by their luma (n, h, w), h and w of at least 3, 0 (black) to 255 (white).

    The Laplacian is that of the four neighbours, without the border. It is large at edges and small in a blurred image;
    a plain image is not sharp either. Of thumbnails only a blur of more than their pixels is noticed.

    Reference: Pech-Pacheco, Cristóbal, Chamorro-Martínez and Fernández-Valdivia, "Diatom autofocusing in brightfield
    microscopy: a comparative study", ICPR 2000, with the standard deviation for the variance.
    """
    x = luma.astype(np.int16)
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    edges = around - 4 * x[:, 1:-1, 1:-1]
    return Appearance(luma.mean((1, 2), dtype=np.float32) / 255, edges.std((1, 2), dtype=np.float32) / 255)
