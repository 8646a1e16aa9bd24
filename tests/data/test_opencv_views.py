"""Views by OpenCV: those of the default, Pillow and torchvision but for rounding, for any workers, from any step."""

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TV

from matrix_ssl.config import ViewConfig, asymmetric_views
from matrix_ssl.data.base import MemorySource, Places, Source
from matrix_ssl.data.loading import Batch, TrainingBatches
from matrix_ssl.data.views import augment, opencv_views
from matrix_ssl.errors import ConfigError, MissingExtra
from tests.data.test_augment import EVERYTHING, photographs
from tests.data.test_loading import CPU, Set, assert_same, configured

pytest.importorskip("cv2", reason="OpenCV is not installed (extra opencv)")
SIZE = 40
LEVELS = (photographs(12, side=SIZE) * 255).to(torch.uint8)
# levels of 255: where only the result is rounded the mean of the error is 0.25, a change in several steps has more
CHANGES: dict[str, tuple[dict[str, Any], float]] = {
    "crop": ({"crop_scale": (0.1, 1.0)}, 0.3),
    "flip": ({"flip": 0.5}, 0.0),
    "turns": ({"quarter_turns": 0.8}, 0.0),
    "affine": ({"rotation": 20.0, "zoom": 0.2, "shear": 0.1, "translation": 0.1}, 0.3),
    "elastic": ({"elastic": 2.0}, 0.3),
    "brightness": ({"jitter": 1.0, "brightness": 0.6}, 0.3),
    "contrast": ({"jitter": 1.0, "contrast": 0.6}, 0.3),
    "saturation": ({"jitter": 1.0, "saturation": 0.6}, 0.3),
    "hue": ({"jitter": 1.0, "hue": 0.3}, 0.5),
    "channels": ({"channel_jitter": 1.0, "channel_brightness": 0.4, "channel_contrast": 0.4}, 0.3),
    "grayscale": ({"grayscale": 0.7}, 0.3),
    "blur": ({"blur": 1.0}, 0.3),
    "solarize": ({"solarize": 0.7}, 0.0),
    "gamma": ({"gamma": 0.6}, 0.3),
    "noise": ({"noise": 0.1}, 0.3),
    "papers": (dataclasses.asdict(asymmetric_views()[1]), 0.7),
    "everything": (dataclasses.asdict(EVERYTHING), 0.8),
}


def view_of(settings: dict[str, Any], images: Tensor, *, seed: int = 3) -> tuple[NDArray[np.uint8], Tensor]:
    """A view by OpenCV, (n, s, s, c), and by ``augment`` in floating point, levels (n, c, s, s)."""
    view = dataclasses.replace(ViewConfig(**settings), image_size=SIZE)
    keys = augment.Keys(seed, 1, np.arange(len(images)), 2)
    boxes = augment.random_boxes(view, keys, *images.shape[-2:])
    draws = augment.draw_view(view, keys, channels=images.shape[1])
    levels = np.empty((len(images), SIZE, SIZE, images.shape[1]), dtype=np.uint8)
    opencv_views.write_views(images, boxes, view, draws, levels)
    return levels, 255 * augment.change(augment.crop_batch(images, boxes, SIZE) / 255, view, draws)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_are_those_of_the_default_but_for_rounding(change: str, channels: int) -> None:
    settings, most = CHANGES[change]
    levels, expected = view_of(settings, LEVELS[:, :channels])
    difference = torch.from_numpy(levels).permute(0, 3, 1, 2) - expected
    assert difference.abs().mean() <= max(most, 1e-4)
    assert difference.mean().abs() <= 0.15  # nothing becomes brighter or darker
    colours = change in ("saturation", "hue", "grayscale", "solarize")
    assert (levels != LEVELS[:, :channels].permute(0, 2, 3, 1).numpy()).any() != (colours and channels == 1)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("upwards", [False, True])
def test_colours_are_those_of_torchvision_on_pillow(number: int, upwards: bool) -> None:
    names = ("brightness", "contrast", "saturation", "hue")
    view = ViewConfig(jitter=1.0, **{names[number]: 0.3})
    adjust = (TV.adjust_brightness, TV.adjust_contrast, TV.adjust_saturation, TV.adjust_hue)[number]
    draws = augment.draw_view(view, augment.Keys(0, 0, np.arange(1), 1), channels=3)
    factor = (0.2 if upwards else -0.2) + (number != 3)
    draws.factors[0, number] = factor
    errors = []
    for levels in LEVELS.permute(0, 2, 3, 1).numpy():
        theirs = np.asarray(adjust(Image.fromarray(levels), factor), dtype=float)
        errors.append(opencv_views.change(levels, view, draws, 0) - theirs)
    assert np.abs(errors).mean() < (2.0 if number == 3 else 0.8)  # theirs are cut to a level, not rounded


def test_crops_blur_and_solarisation_are_those_of_pillow() -> None:
    for image, levels in zip(LEVELS, LEVELS.permute(0, 2, 3, 1).numpy(), strict=True):
        pillow = Image.fromarray(levels)
        for box in ((3, 5, 20, 26), (0, 2, 39, 38), (4, 4, 30, 17)):  # larger, smaller, and both
            for size in (SIZE, 18):
                ours = opencv_views.crop(image, np.array(box), size)
                theirs = TV.resized_crop(pillow, *box, [size, size], interpolation=InterpolationMode.BILINEAR)
                assert np.abs(ours - np.asarray(theirs, dtype=float)).max() <= 1.0
        draws = augment.draw_view(ViewConfig(blur=1.0, solarize=1.0), augment.Keys(0, 0, np.arange(1), 1), channels=3)
        draws.blur[0] = False
        inverted = opencv_views.change(levels, ViewConfig(), draws, 0)
        np.testing.assert_array_equal(inverted, np.asarray(TV.solarize(pillow, 128)))
        draws.blur[0], draws.solarize[0], draws.sigma[0] = True, False, 1.3
        blurred = opencv_views.change(levels, ViewConfig(), draws, 0).astype(float)
        theirs = np.asarray(pillow.filter(ImageFilter.GaussianBlur(1.3)), dtype=float)  # boxes, one after the other
        assert np.abs(blurred - theirs)[6:-6, 6:-6].mean() < 1.0


def test_numbers_are_those_of_their_image_alone() -> None:
    together, _ = view_of(dataclasses.asdict(EVERYTHING), LEVELS)
    alone, _ = view_of(dataclasses.asdict(EVERYTHING), LEVELS[:5])
    np.testing.assert_array_equal(together[:5], alone)
    other, _ = view_of(dataclasses.asdict(EVERYTHING), LEVELS, seed=4)
    assert (other != together).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_that_of_the_default(dtype: torch.dtype, channels: int) -> None:
    mean, std = (0.2, 0.4, 0.6)[:channels], (0.1, 0.2, 0.3)[:channels]
    levels = LEVELS[:, :channels].permute(0, 2, 3, 1).contiguous()
    found = opencv_views.normalise(levels.numpy(), mean, std, dtype=dtype)
    assert torch.equal(found, augment.normalise(LEVELS[:, :channels].to(dtype) / 255, mean, std))
    assert found.is_contiguous(memory_format=torch.channels_last)


def batches(
    source: Source, *views: ViewConfig, workers: int = 0, device: torch.device = CPU, start: int = 0, stop: int = 4
) -> list[Batch]:
    config = configured(workers=workers, view_backend="opencv")
    of_steps = TrainingBatches(
        source, config.data, views or config.views, batch_size=8, seed=3, rank=0, world_size=1, device=device,
        dtype=torch.float32,
    )  # fmt: skip
    return list(of_steps.iterate(start, stop))


def test_are_the_same_in_workers_in_memory_and_from_any_step() -> None:
    views = dataclasses.replace(EVERYTHING, count=2), dataclasses.replace(EVERYTHING, image_size=9)
    whole = batches(Set(bad=[3]), *views)
    assert [view.shape for view in whole[0].views] == [(8, 3, 16, 16), (8, 3, 16, 16), (8, 3, 9, 9)]
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in whole[0].views)
    assert any(batch.unreadable for batch in whole)
    assert_same(batches(Set(bad=[3]), *views, workers=2), whole)
    assert_same(batches(Set(bad=[3]), *views, start=2), whole[2:])
    assert_same(batches(Set(in_memory=True)), batches(Set()))


def test_what_cannot_be_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"on a CPU, but this training is on meta: use --set data\.view_backend=torch"
    ):
        batches(Set(), device=torch.device("meta"))
    for pixels, kind in ((LEVELS / 255, "3 of float32"), (LEVELS.repeat(1, 2, 1, 1), "6 of uint8")):
        source = MemorySource("x", pixels, Places.whole(["x"], [len(pixels)]), labels=None, classes=None)
        with pytest.raises(ConfigError, match=rf"1 or 3 channels of 8 bits, and 'x' has {kind}: use --set"):
            batches(source)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"'cv2' is not installed: .* pip install -e '\.\[opencv\]'"):
        opencv_views.library.__wrapped__()
