"""Views as a GPU makes them: those of the CPU, with one copy to the device and few operators."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from matrix_ssl.config import DataConfig, ViewConfig, asymmetric_views
from matrix_ssl.data import loading
from matrix_ssl.data.base import MemorySource, Places
from matrix_ssl.data.loading import TrainingBatches
from matrix_ssl.data.views import augment
from matrix_ssl.data.views.device_views import DeviceViews
from tests.data.test_augment import EVERYTHING, photographs
from tests.support.counted import counted

CPU, META = torch.device("cpu"), torch.device("meta")
PLAIN = ViewConfig(crop_scale=(0.3, 1.0))
LOCAL = dataclasses.replace(EVERYTHING, count=2, image_size=16, jitter=0.0, grayscale=0.0)
FEWER = dataclasses.replace(
    EVERYTHING, elastic=0.0, hue=0.0, blur=0.0, rotation=0.0, zoom=0.0, shear=0.0, translation=0.0, gamma=0.0
)
TURNED = dataclasses.replace(
    EVERYTHING, quarter_turns=0.6, channel_jitter=0.7, channel_brightness=0.4, channel_contrast=0.4
)
STRONG = dataclasses.replace(PLAIN, jitter=1.0, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.4)
POLICIES = {
    "strong": (STRONG, dataclasses.replace(STRONG, hue=0.0)),
    "papers": asymmetric_views(),
    "everything": (EVERYTHING, EVERYTHING),
    "some": (PLAIN, EVERYTHING, FEWER, dataclasses.replace(EVERYTHING, elastic=1.0)),
    "turned": (TURNED, EVERYTHING),
    "sizes": (*asymmetric_views(), LOCAL),
}


def batches(
    images: Tensor, views: tuple[ViewConfig, ...], *, size: int = 24, device: torch.device = CPU
) -> TrainingBatches:
    channels = images.shape[1]
    source = MemorySource("x", images, Places.whole(["x"], [len(images)]), labels=None, classes=None)
    data = DataConfig(image_size=size, mean=(0.0,) * channels, std=(1.0,) * channels)
    return TrainingBatches(
        source, data, views, batch_size=len(images), seed=3, rank=0, world_size=1, device=device, dtype=torch.float32
    )


def images(count: int, *, channels: int = 3, height: int = 40, width: int = 40) -> Tensor:
    whole = (photographs(count, channels=channels, side=max(height, width)) * 255).to(torch.uint8)
    return whole[..., :height, :width].contiguous()


def on_device(
    views: tuple[ViewConfig, ...], *, channels: int, size: int = 24, device: torch.device = CPU
) -> DeviceViews:
    return DeviceViews(
        augment.each_view(views, size), mean=(0.0,) * channels, std=(1.0,) * channels, device=device,
        dtype=torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("width", [40, 52])
def test_are_those_of_the_cpu(policy: str, channels: int, width: int) -> None:
    pixels = images(48, channels=channels, width=width)
    (batch,) = batches(pixels, POLICIES[policy]).iterate(0, 1)
    ours = on_device(POLICIES[policy], channels=channels).of_images(pixels, batch.indices, seed=3, epoch=0)
    assert len(ours) == len(batch.views)
    for mine, theirs in zip(ours, batch.views, strict=True):
        assert mine.shape == theirs.shape and mine.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 if policy != "papers" else 3e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_of_images_that_keep_all_their_bits_are_those_of_the_cpu(channels: int) -> None:
    pixels = images(48, channels=channels, width=52) / 255
    (batch,) = batches(pixels, POLICIES["papers"]).iterate(0, 1)
    ours = on_device(POLICIES["papers"], channels=channels).of_images(pixels, batch.indices, seed=3, epoch=0)
    for mine, theirs in zip(ours, batch.views, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=3e-6)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_of_crops_are_those_of_the_cpu(policy: str, channels: int) -> None:
    views = augment.each_view(POLICIES[policy], 24)
    crops = [images(30, channels=channels, height=view.image_size, width=view.image_size) for view in views]
    samples = np.arange(30)
    ours = on_device(POLICIES[policy], channels=channels).of_crops(crops, samples, seed=3, epoch=2)
    for number, (view, crop) in enumerate(zip(views, crops, strict=True), 1):
        expected = augment.random_view(crop / 255, view, augment.Keys(3, 2, samples, number))
        torch.testing.assert_close(ours[number - 1], expected, rtol=0, atol=1e-5 if policy != "papers" else 3e-6)


def test_one_copy_and_few_operators_make_two_views_of_a_batch() -> None:
    ours = on_device(asymmetric_views(), channels=3, size=32, device=META)
    pixels = images(16, height=32, width=32)
    stored = pixels.to(META)
    ours.of_images(stored, np.arange(16), seed=0, epoch=0)  # makes the constants
    _, asked = counted("meta", lambda: ours.of_images(stored, np.arange(16), seed=0, epoch=1))
    assert (asked.total, asked.copies) == (59, 1), asked.counts
    crops = [stored, stored]
    _, asked = counted("meta", lambda: ours.of_crops(crops, np.arange(16), seed=0, epoch=1))
    assert (asked.total, asked.copies) == (48, 1), asked.counts


def test_the_number_of_operators_does_not_depend_on_what_is_drawn() -> None:
    ours = on_device(asymmetric_views(), channels=3, device=META)
    stored = torch.empty(4, 3, 40, 40, dtype=torch.uint8, device=META)
    asked = [counted("meta", lambda e=e: ours.of_images(stored, np.arange(4), seed=0, epoch=e))[1] for e in range(6)]
    assert all(each.counts == asked[-1].counts for each in asked[1:])


def test_large_views_one_by_one_are_those_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = images(6, height=80, width=72)
    (one_by_one,) = batches(pixels, (EVERYTHING, LOCAL), size=64).iterate(0, 1)
    monkeypatch.setattr(loading, "_LARGE", 10**6)
    (together,) = batches(pixels, (EVERYTHING, LOCAL), size=64).iterate(0, 1)
    for mine, theirs in zip(one_by_one.views, together.views, strict=True):
        assert mine.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
