"""Brightness and sharpness of images, by which dark, overexposed and blurred ones stand out."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue, by ITU-R BT.601


class Appearance(NamedTuple):
    """Of every image (n,), float32."""

    brightness: NDArray[np.float32]  # mean luma, 0 (black) to 1 (white)
    sharpness: NDArray[np.float32]  # standard deviation of the Laplacian of the luma; 0 where nothing changes


def appearance(squares: NDArray[np.uint8]) -> Appearance:
    """Brightness and sharpness of images (n, s, s, 3), s of at least 3.

    The Laplacian is that of the four neighbours, without the border. It is large at edges and small in a blurred image;
    a plain image is not sharp either. Of thumbnails only a blur of more than their pixels is noticed.

    Reference: Pech-Pacheco, Cristóbal, Chamorro-Martínez and Fernández-Valdivia, "Diatom autofocusing in brightfield
    microscopy: a comparative study", ICPR 2000, with the standard deviation for the variance.
    """
    luma = squares.astype(np.float32) @ (_LUMA / 255)
    inner = luma[:, 1:-1, 1:-1]
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return Appearance(luma.mean((1, 2)), (around - 4 * inner).std((1, 2)))
