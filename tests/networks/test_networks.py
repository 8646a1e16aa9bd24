"""Encoders of every kind, the heads, and BatchNorm over several processes (here: one) against PyTorch's."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from matrix_ssl.config import override
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.distributed import batch_norm
from matrix_ssl.distributed.batch_norm import SynchronisedBatchNorm
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.errors import ConfigError, MissingExtra
from matrix_ssl.networks import TinyResNet, build_encoder, predictor, projector
from matrix_ssl.networks.patches import patch_side
from tests.support.quick import some

FAMILIES = {
    "alexnet": 4096, "convnext_tiny": 768, "densenet121": 1024, "efficientnet_b0": 1280, "efficientnet_v2_s": 1280,
    "maxvit_t": 512, "mnasnet0_5": 1280, "mobilenet_v2": 1280, "mobilenet_v3_small": 1024, "resnet50": 2048,
    "resnext50_32x4d": 2048, "shufflenet_v2_x0_5": 1024, "swin_t": 768, "swin_v2_t": 768, "vgg11": 4096,
    "vit_b_32": 768, "wide_resnet50_2": 2048,
}  # fmt: skip


def parameters(module):
    return sum(p.numel() for p in module.parameters())


class TestTorchvision:
    @pytest.mark.parametrize("name", some(FAMILIES, "alexnet", "convnext_tiny", "resnet50", "swin_t", "vit_b_32"))
    def test_shape_of_every_family(self, name):
        with torch.device("meta"):  # shapes without numbers
            encoder, found = build_encoder(name, channels=3, image_size=224)
            assert encoder(torch.zeros(3, 3, 224, 224)).shape == (3, FAMILIES[name])
        assert found == FAMILIES[name]

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf"])
    def test_features_are_the_input_of_the_classifier(self, name):
        import torchvision

        torch.manual_seed(0)
        encoder, width = build_encoder(name, channels=3, image_size=64, stem="standard")
        torch.manual_seed(0)
        whole = torchvision.models.get_model(name, weights=None).eval()
        linear = [m for m in whole.modules() if isinstance(m, nn.Linear)][-1]
        inputs = []
        linear.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
        images = torch.rand(2, 3, 64, 64)
        whole(images)
        features = encoder.eval()(images)
        assert features.shape == (2, width)
        assert torch.equal(features, inputs[0])
        assert parameters(encoder) == parameters(whole) - parameters(linear)

    @pytest.mark.parametrize(
        ("stem", "size", "side"), [("auto", 64, 64), ("auto", 65, 17), ("small", 128, 128), ("standard", 32, 8)]
    )
    def test_stem_of_resnets(self, stem, size, side):
        with torch.device("meta"):
            encoder, width = build_encoder("resnet18", channels=3, image_size=size, stem=stem)
            sides = []
            encoder.layer1.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
            encoder(torch.zeros(2, 3, size, size))
        assert sides == [side]
        assert width == 512

    @pytest.mark.parametrize(
        ("name", "channels", "size", "kernel"),
        [("resnet18", 5, 32, 3), ("resnet18", 13, 96, 7), ("vit_b_32", 1, 64, 32), ("convnext_tiny", 4, 64, 4)],
    )
    def test_other_channels_than_colours_change_the_first_convolution_alone(self, name, channels, size, kernel):
        with torch.device("meta"):
            own, width = build_encoder(name, channels=channels, image_size=size)
            colours, _ = build_encoder(name, channels=3, image_size=size)
        shapes = [{key: t.shape for key, t in each.state_dict().items()} for each in (own, colours)]
        changed = [key for key in shapes[0] if shapes[0][key] != shapes[1][key]]
        assert list(shapes[0]) == list(shapes[1])
        assert len(changed) == 1
        assert shapes[0][changed[0]][1:] == (channels, kernel, kernel)
        assert own(torch.zeros(2, channels, size, size, device="meta")).shape == (2, width)

    @pytest.mark.parametrize(
        ("name", "channels", "size", "stem", "sentence"),
        [
            (
                "resnet19",
                3,
                32,
                "auto",
                r"network.encoder='resnet19' is not an architecture\. Did you mean 'resnet18'\?",
            ),
            ("tiny_resnett", 3, 32, "auto", r"Did you mean 'tiny_resnet'\?"),
            ("convnext_tiny", 3, 64, "small", r"network.stem='small' is for ResNets.*network.stem=standard"),
            ("squeezenet1_1", 3, 64, "auto", r"has no single linear classifier"),
            ("googlenet", 3, 64, "auto", r"has no single linear classifier"),
            ("vit_b_32", 3, 100, "auto", r"does not accept images of 100 pixels .*change --set data.image_size"),
            ("alexnet", 3, 32, "auto", r"does not accept images of 32 pixels .*change --set data.image_size"),
        ],
    )
    def test_mistakes(self, name, channels, size, stem, sentence):
        with torch.device("meta"), pytest.raises(ConfigError, match=sentence) as caught:
            build_encoder(name, channels=channels, image_size=size, stem=stem)
        assert "\n" not in str(caught.value)


class TestTimm:
    @pytest.mark.parametrize(
        ("name", "channels", "size", "width"), [("resnet18", 1, 32, 512), ("vit_tiny_patch16_224", 3, 64, 192)]
    )
    def test_shapes(self, name, channels, size, width):
        pytest.importorskip("timm")
        encoder, found = build_encoder(f"timm/{name}", channels=channels, image_size=size)
        assert found == width
        assert encoder(torch.rand(2, channels, size, size)).shape == (2, width)

    def test_unknown_name(self):
        pytest.importorskip("timm")
        with pytest.raises(
            ConfigError, match=r"'timm/resnet1' is not an architecture\. Did you mean 'timm/resnet18'\?"
        ):
            build_encoder("timm/resnet1", channels=3, image_size=32)

    @pytest.mark.parametrize(("name", "size", "patch"), [
        ("vit_tiny_patch16_224", 30, 16), ("vit_tiny_patch16_224", 32, 16), ("mixer_s32_224", 70, 32),
        ("resnet10t", 30, 0),
    ])  # fmt: skip
    def test_patches_leave_out_what_remains_of_an_image(self, name, size, patch):
        """Against the gradient: a pixel counts if the features depend on it."""
        pytest.importorskip("timm")
        encoder, _ = build_encoder(f"timm/{name}", channels=3, image_size=size)
        assert patch_side(encoder) == patch
        pixels = torch.rand(1, 3, size, size, requires_grad=True)
        encoder.eval()(pixels).sin().sum().backward()
        seen = pixels.grad.abs().sum((0, 1))
        covered = size - size % patch if patch else size
        assert (seen[:covered, :covered] > 0).any(0).all() and not seen[covered:].any() and not seen[:, covered:].any()

    def test_without_timm(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(MissingExtra, match=r"'timm' is not installed: .* pip install -e '\.\[timm\]'"):
            build_encoder("timm/resnet18", channels=3, image_size=32)


class TestTinyResNet:
    def test_of_the_demo(self):
        encoder, width = initialise_encoder(find_recipe("demo"))
        assert isinstance(encoder, TinyResNet)
        assert 70_000 < parameters(encoder) < 85_000
        assert width == 64

    @pytest.mark.parametrize(("size", "width"), [(3, 8), (4, 8), (8, 16), (16, 32), (32, 64), (33, 32), (96, 64)])
    def test_stages_halve_down_to_four_pixels(self, size, width):
        encoder, found = build_encoder("tiny_resnet", channels=1, image_size=size, width=8)
        assert found == width
        images = torch.rand(2, 1, size, size)
        maps = encoder.blocks(encoder.stem(images))
        assert min(size, 4) <= maps.shape[-1] <= 8
        torch.testing.assert_close(encoder.eval()(images), encoder.blocks(encoder.stem(images)).mean((2, 3)))

    def test_initialisation_is_a_function_of_the_seed(self):
        config = find_recipe("demo")
        a, b = (initialise_encoder(config)[0].state_dict() for _ in range(2))
        c = initialise_encoder(override(config, ["seed=1"]))[0].state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert not torch.equal(a["stem.0.weight"], c["stem.0.weight"])

    def test_keeps_the_scale_of_its_input(self):
        torch.manual_seed(0)
        encoder, _ = build_encoder("tiny_resnet", channels=3, image_size=32)
        features = encoder(torch.randn(32, 3, 32, 32))
        assert 0.1 < features.std() < 10


class TestHeads:
    def test_projector(self):
        head = projector(10, 20, 6)
        output = head(torch.randn(64, 10, generator=torch.Generator().manual_seed(0)))
        np.testing.assert_allclose(output.detach().mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(output.detach().std(0, unbiased=False), 1, atol=1e-3)
        assert [type(m) for m in head if isinstance(m, nn.Linear)] == [nn.Linear] * 3
        assert head[-1].affine is False
        assert parameters(head) == 10 * 20 + 40 + 20 * 20 + 40 + 20 * 6

    def test_predictor(self):
        head = predictor(6, 3)
        assert head(torch.randn(8, 6)).shape == (8, 6)
        assert parameters(head) == 6 * 3 + 6 + 3 * 6 + 6


class TestSynchronisedBatchNorm:
    @pytest.mark.parametrize("momentum", [0.1, None, 0.0])
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("shape", [(16, 5), (6, 5, 3, 4)])
    def test_in_one_process_is_batch_norm(self, shape, affine, momentum):
        kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
        torch.manual_seed(0)
        results = []
        for convert in (lambda m: m, SynchronisedBatchNorm.like):
            layer = kind(5, affine=affine, momentum=momentum, eps=1e-3).double()
            if affine:
                nn.init.constant_(layer.weight, 1.7)
                nn.init.constant_(layer.bias, -0.3)
            layer = convert(layer)
            values = []
            for seed in range(3):
                generator = torch.Generator().manual_seed(seed)
                x = (torch.randn(shape, dtype=torch.float64, generator=generator) * 3 + 100).requires_grad_()
                y = layer(x)
                y.sin().sum().backward()
                values += [y, x.grad]
            values += [p.grad for p in layer.parameters()] + list(layer.buffers()) + [layer.eval()(x)]
            results.append(values)
        assert len(results[0]) == 6 + 2 * affine + 3 + 1
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)

    def test_like_keeps_names_tensors_and_mode(self):
        old = nn.BatchNorm2d(4).eval()
        new = SynchronisedBatchNorm.like(old)
        assert list(new.state_dict()) == list(old.state_dict())
        assert new.weight is old.weight
        assert new.running_mean is old.running_mean
        assert not new.training

    def test_one_process_changes_nothing(self):
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        assert batch_norm.synchronise_batch_norm(module, "cpu") is module
        assert type(module[1]) is nn.BatchNorm1d
