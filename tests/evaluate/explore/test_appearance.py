"""Brightness and sharpness, against a loop, and in the order that a user expects."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from matrix_ssl.evaluate.explore.appearance import appearance

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)


def test_each_image_is_measured_as_defined():
    for image, brightness, sharpness in zip(IMAGES, *appearance(IMAGES), strict=True):
        luma = image / 255
        steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
        edges = [sum(luma[i + a, j + b] for a, b in steps) - 4 * luma[i, j] for i in (1, 2, 3) for j in (1, 2, 3, 4)]
        assert brightness == pytest.approx(luma.mean(), rel=1e-5)
        assert sharpness == pytest.approx(np.std(edges), rel=1e-5)


def test_black_white_and_blurred_images_are_at_the_ends():
    sharp = Image.fromarray(np.kron(IMAGES[0], np.ones((8, 8), dtype=np.uint8)))
    plain = [np.full((40, 48), value, dtype=np.uint8) for value in (0, 255)]
    brightness, sharpness = appearance(np.stack([sharp, sharp.filter(ImageFilter.GaussianBlur(3)), *plain]))
    assert brightness[2:] == pytest.approx([0, 1], abs=1e-6) and 0.2 < brightness[0] < 0.8
    assert sharpness[0] > 3 * sharpness[1] > sharpness[2] == 0 and sharpness[3] == pytest.approx(0, abs=1e-6)
