"""Depths of the parameters of every kind of encoder, and the rates that follow from them."""

import re

import pytest
import torch
from torch import nn

from matrix_ssl import networks
from matrix_ssl.methods import Method, find_method
from matrix_ssl.training.layers import depths, layerwise
from matrix_ssl.training.optim import build_optimizer, drop_encoder_gradients, set_learning_rate

# the depth of some parameters, and the number of depths; the numbers are those of the architectures' papers
EXPECTED = {
    "tiny_resnet": ({"stem.0.weight": 0, "stem.1.bias": 0, "blocks.0.residual.0.weight": 1,
                     "blocks.3.shortcut.1.weight": 4}, 5),
    "resnet18": ({"conv1.weight": 0, "bn1.weight": 0, "layer1.0.conv1.weight": 1, "layer1.1.bn2.bias": 1,
                  "layer4.1.conv2.weight": 4}, 5),
    "vit_b_16": ({"class_token": 0, "conv_proj.weight": 0, "encoder.pos_embedding": 0,
                  "encoder.layers.encoder_layer_0.ln_1.weight": 1,
                  "encoder.layers.encoder_layer_11.mlp.3.weight": 12, "encoder.ln.weight": 12}, 13),
    "timm/vit_tiny_patch16_224": ({"cls_token": 0, "pos_embed": 0, "patch_embed.proj.bias": 0,
                                   "blocks.0.norm1.weight": 1, "blocks.11.mlp.fc2.weight": 12, "norm.weight": 12}, 13),
    "timm/tf_efficientnet_lite0": ({"conv_stem.weight": 0, "bn1.weight": 0, "blocks.0.0.conv_dw.weight": 1,
                                    "blocks.1.0.conv_pw.weight": 2, "blocks.1.1.conv_pw.weight": 3,
                                    "blocks.6.0.bn3.bias": 16, "conv_head.weight": 17, "bn2.weight": 17}, 18),
    "mobilenet_v2": ({"features.0.0.weight": 0, "features.1.conv.0.0.weight": 1, "features.18.0.weight": 18}, 19),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_depths_are_blocks(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        encoder, _ = networks.build_encoder(name, channels=3, image_size=224)
    found = depths(encoder)
    assert set(found) == set(encoder.parameters())
    expected, count = EXPECTED[name]
    named = dict(encoder.named_parameters())
    assert {key: found[named[key]] for key in expected} == expected
    order = list(found.values())
    assert order == sorted(order) and set(order) == set(range(count))


def test_other_modules_by_their_children() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3, 3))
            self.first, self.norm, self.second = nn.Linear(3, 3), nn.LayerNorm(3), nn.Bilinear(3, 3, 3)
            self.again = self.first

    other = Other()
    found = depths(nn.ModuleDict({"inside": nn.ModuleDict({"other": other}), "nothing": nn.Identity()}))
    named = {name: found[parameter] for name, parameter in other.named_parameters()}
    assert named == {"token": 0, "first.weight": 0, "first.bias": 0, "norm.weight": 0, "norm.bias": 0,
                     "second.weight": 1, "second.bias": 1}  # fmt: skip


def simsiam() -> Method:
    """A method whose predictor has a group of its own, with a constant rate."""
    encoder, width = networks.build_encoder("tiny_resnet", channels=1, image_size=8, width=8)
    return find_method("simsiam")(encoder, width, hidden_dim=8, output_dim=4)


def test_a_step_moves_every_depth_by_its_own_rate() -> None:
    method = simsiam()
    groups = layerwise(method.parameter_groups(), method.encoder, layer_decay=0.5)
    optimizer = build_optimizer(method, name="sgd", momentum=0.0, weight_decay=0.0, groups=groups)
    trainable = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(trainable)
    before = {name: p.detach().clone() for name, p in trainable.items()}
    for parameter in trainable.values():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizer, 0.25, held=0.5)
    optimizer.step()
    for name, parameter in trainable.items():
        block = re.match(r"encoder\.blocks\.(\d)", name)
        last = 2  # blocks of the encoder at 8 pixels, after its stem
        depth = int(block[1]) + 1 if block else 0
        rate = 0.25 * 0.5 ** (last + 1 - depth) if name.startswith("encoder.") else 0.25
        rate = 0.5 if name.startswith("predictor.") else rate
        assert torch.allclose(before[name] - parameter, torch.full_like(parameter, rate), atol=1e-6), name


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_frozen_encoder_stays_whatever_the_optimizer(name: str) -> None:
    """Neither decay nor momentum moves it, and momentum begins with the first step that does."""
    method = simsiam()
    groups = layerwise(method.parameter_groups(), method.encoder, layer_decay=1.0)
    optimizer = build_optimizer(method, name=name, momentum=0.9, weight_decay=0.1, groups=groups)  # type: ignore[arg-type]
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    for frozen in (True, True, False):
        for parameter in method.parameters():
            parameter.grad = torch.ones_like(parameter)
        set_learning_rate(optimizer, 0.1, encoder=0.0 if frozen else 0.5)
        if frozen:
            drop_encoder_gradients(optimizer)
        optimizer.step()
        moved = {key.partition(".")[0] for key, tensor in method.state_dict().items() if not tensor.equal(before[key])}
        assert ("encoder" in moved) is not frozen and "projector" in moved
    rates = {group.get("encoder", False): group["lr"] for group in optimizer.param_groups if "constant" not in group}
    assert rates == {False: 0.1, True: 0.05}
