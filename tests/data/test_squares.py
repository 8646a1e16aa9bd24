"""Central squares without PyTorch are those that evaluation makes with it."""

import io
import threading
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TV

from matrix_ssl.config.reading import CropMode
from matrix_ssl.data.files.decoding import decode_pixels
from matrix_ssl.data.files.opening import at_most
from matrix_ssl.data.files.squares import central_square, centre_box
from matrix_ssl.data.views.augment import crop
from matrix_ssl.errors import UnreadableImage

IS_EXACT = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # elsewhere PyTorch computes in float32
SIZES = [(24, 20, 16), (96, 96, 64), (64, 64, 64), (20, 31, 32), (3, 5, 96), (1, 1, 8), (300, 401, 57), (257, 511, 128)]


@pytest.mark.parametrize("mode", get_args(CropMode))
@pytest.mark.parametrize("fraction", [0.875, 1.0])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_of_8_bits_are_pytorchs_bit_for_bit(height, width, size, fraction, mode):
    pixels = np.random.default_rng(height).integers(0, 256, (3, height, width), dtype=np.uint8)
    expected = crop(torch.from_numpy(pixels), centre_box(fraction, height, width, mode=mode), size).numpy()
    square = central_square(pixels, fraction=fraction, size=size, mode=mode)
    assert (square.dtype, square.flags.c_contiguous) == (np.uint8, True)
    assert int(np.abs(square.astype(int) - expected).max()) <= (0 if IS_EXACT else 1)


@pytest.mark.parametrize(("fraction", "error"), [(1.0, 0.0), (0.8, 0.02)])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (91, 57), (40, 40)])
def test_squashed_images_are_those_of_timm(height, width, fraction, error):
    """Which resizes first, to a side that it rounds, and crops then."""
    ramp = np.add.outer(np.linspace(0, 1, height), np.linspace(0, 1, width)) / 2
    pixels = torch.from_numpy(np.rint(255 * np.stack([ramp, ramp[::-1], ramp[:, ::-1]]))).byte()
    theirs = TV.center_crop(TV.resize(pixels, [int(32 / fraction)] * 2, antialias=True), [32, 32])
    ours = central_square(pixels.numpy(), fraction=fraction, size=32, mode="squash")
    assert np.abs(ours / 255 - theirs.numpy() / 255).max() <= error + 1 / 255
    other = central_square(pixels.numpy(), fraction=fraction, size=32)
    assert (np.abs(ours / 255 - other / 255).max() > 0.05) == (height != width)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_in_floating_point_are_pytorchs_but_for_rounding(height, width, size):
    pixels = np.random.default_rng(height).random((2, height, width), dtype=np.float32)
    expected = crop(torch.from_numpy(pixels), centre_box(0.875, height, width), size).numpy()
    square = central_square(pixels, fraction=0.875, size=size)
    assert square.dtype == np.float32
    np.testing.assert_allclose(square, expected, rtol=0, atol=3e-5)


def test_no_image_of_more_pixels_is_decoded_in_a_block_with_a_limit():
    file = io.BytesIO()
    Image.new("RGB", (11, 10)).save(file, "PNG")
    with at_most(109):
        with pytest.raises(UnreadableImage, match="x: the image is larger than 109 pixels"):
            decode_pixels(file.getvalue(), "x")
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(decode_pixels(file.getvalue(), "x")))
        thread.start()
        thread.join()
        assert elsewhere[0].shape == (3, 10, 11)
        with at_most(10**12), pytest.MonkeyPatch.context() as patch:  # Pillow's own limit stays the highest
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 54)
            with pytest.raises(UnreadableImage, match="larger than 108 pixels"):
                decode_pixels(file.getvalue(), "x")
    assert decode_pixels(file.getvalue(), "x").shape == (3, 10, 11)
