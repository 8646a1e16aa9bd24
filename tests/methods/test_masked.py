"""Masked modelling: losses, masks, the encoder of visible patches and the decoder, against independent versions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matrix_ssl import config, networks
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.errors import ConfigError
from matrix_ssl.methods import find_method
from matrix_ssl.methods._masked import MaskedMethod, patch_order, visible_patches
from matrix_ssl.methods.m_mae import rate_loss
from matrix_ssl.methods.mae import mae_loss
from matrix_ssl.networks.patches import grid_positions
from matrix_ssl.training import setup
from tests.support import runs
from tests.support.conformance import MethodConformance, views

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def build(name: str, **options: object) -> MaskedMethod:
    return type("Suite", (MethodConformance,), {"name": name})().build(**options)


def vit(name: str = "timm/test_vit", **settings: object) -> tuple[nn.Module, int]:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    shape = {"channels": 3, "image_size": 12, "patch_size": 4} | settings
    encoder, width = networks.build_encoder(name, **shape)
    return encoder.double().eval(), width


class TestLosses:
    def test_reconstruction_by_loops(self) -> None:
        draw = np.random.RandomState(0)
        y, x = draw.standard_normal((3, 5, 12)), draw.random_sample((3, 5, 12))
        total = 0.0
        for image in range(3):
            for patch in range(5):
                values = list(x[image, patch])
                mean = sum(values) / 12
                deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 11 + 1e-6)
                total += sum((y[image, patch, i] - (v - mean) / deviation) ** 2 for i, v in enumerate(values)) / 12
        found = mae_loss(torch.from_numpy(y), torch.from_numpy(x))
        assert found.item() == pytest.approx(total / 15, rel=1e-12)

    def test_a_patch_of_one_colour_has_the_target_zero(self) -> None:
        assert mae_loss(torch.zeros(2, 3, 12), torch.full((2, 3, 12), 0.7)).item() == pytest.approx(0, abs=1e-6)
        pixels = torch.rand(2, 3, 48, dtype=torch.float64)
        assert mae_loss(torch.zeros_like(pixels), pixels).item() == pytest.approx(47 / 48, rel=1e-4)

    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
    @pytest.mark.parametrize("scale", [1.0, 3.0])
    def test_coding_rate_by_numpy(self, shape: tuple[int, int], scale: float) -> None:
        """log det(I + μ/d Z'Z), with the width d and not the number of rows, as in the published code."""
        z = np.random.RandomState(1).standard_normal(shape)
        rows = z / np.linalg.norm(z, axis=1, keepdims=True)
        sign, expected = np.linalg.slogdet(np.eye(shape[1]) + scale / shape[1] * rows.T @ rows)
        assert sign == 1
        assert rate_loss(torch.from_numpy(z), scale=scale).item() == pytest.approx(-expected, rel=1e-12)

    def test_gradient_of_the_coding_rate(self) -> None:
        z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(rate_loss, z)

    def test_mistakes(self) -> None:
        with pytest.raises(ValueError, match=r"one shape \(n, m, p\) with p of 2 or more, got \(2, 3\) and \(2, 3\)"):
            mae_loss(torch.zeros(2, 3), torch.zeros(2, 3))
        with pytest.raises(ValueError, match="scale"):
            rate_loss(torch.randn(4, 3), scale=0.0)
        with pytest.raises(ValueError, match=r"n ≥ 2|at least"):
            rate_loss(torch.randn(1, 3))

    @pytest.mark.parametrize("name", ["mae", "m_mae"])
    def test_methods_have_the_loss_of_their_networks(self, name: str) -> None:
        """The whole forward again, with a mask of zeros and ones in the place of indices."""
        method, view = build(name), views(0)[0]
        method.seed = 3
        method.before_step(7, 10)
        found = method(view)
        order = patch_order(np.arange(16), 16, seed=3, step=7, view=1)
        encoder, decoder = method.encoder, method.decoder
        losses, features = [], []
        for row in range(16):
            seen = [int(patch) for patch in order[row][:4]]
            tokens = encoder._pos_embed(encoder.patch_embed(view[row : row + 1]))[0]
            out = encoder.norm(encoder.blocks(torch.stack([tokens[0], *(tokens[1 + p] for p in seen)])[None]))[0]
            features.append(out[0])
            inside = decoder.embedding(out)
            grid = grid_positions(4, 4, like=inside)
            all_patches = [decoder.mask_token + grid[p] for p in range(16)]
            for place, p in enumerate(seen):
                all_patches[p] = inside[1 + place] + grid[p]
            decoded = decoder.blocks(torch.stack([inside[0], *all_patches])[None])[0]
            predicted = decoder.pixels(decoder.norm(decoded))[1:]
            for p in set(range(16)) - set(seen):
                r, c = divmod(p, 4)
                pixels = view[row, 0, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten()
                target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
                losses.append((predicted[p] - target).square().mean())
        expected = torch.stack(losses).mean()
        z = torch.nn.functional.normalize(torch.stack(features))
        rate = torch.logdet(torch.eye(64, dtype=z.dtype) + z.T @ z / 64)
        if name == "m_mae":
            torch.testing.assert_close(found.terms["rate"], rate.detach(), **TIGHT)
            torch.testing.assert_close(found.terms["reconstruction"], expected.detach(), **TIGHT)
            expected = expected - 0.01 * rate
        torch.testing.assert_close(found.loss, expected, **TIGHT)

    def test_two_views_are_two_tasks(self) -> None:
        method, (one, two) = build("mae"), views(0)
        method.before_step(1, 10)
        parts = [method.reconstruct(view, number) for number, view in enumerate((one, two), 1)]
        expected = torch.stack([mae_loss(part.prediction, part.pixels) for part in parts]).mean()
        torch.testing.assert_close(method(one, two).loss, expected, **TIGHT)


class TestMasks:
    def test_are_permutations_of_their_own(self) -> None:
        order = patch_order(np.arange(500), 12, seed=0, step=0, view=1)
        assert (np.sort(order, 1) == np.arange(12)).all()
        assert len({tuple(row) for row in order}) == 500

    def test_every_patch_is_seen_equally_often_and_pairs_are_independent(self) -> None:
        """Of 16 patches 4 are seen: each with probability 1/4, two of them with 4/16 · 3/15."""
        seen = np.zeros((20_000, 16))
        np.put_along_axis(seen, patch_order(np.arange(20_000), 16, seed=1, step=5, view=1)[:, :4], 1, 1)
        p, pair = 1 / 4, 4 / 16 * 3 / 15
        assert (seen.sum(1) == 4).all()
        assert np.abs(seen.mean(0) - p).max() < 4.5 * math.sqrt(p * (1 - p) / 20_000)
        together = (seen.T @ seen / 20_000)[~np.eye(16, dtype=bool)]
        assert np.abs(together - pair).max() < 4.5 * math.sqrt(pair * (1 - pair) / 20_000)

    def test_are_a_function_of_seed_step_view_and_place(self) -> None:
        base = {"seed": 1, "step": 2, "view": 1}
        whole = patch_order(np.arange(8), 16, **base)
        assert (patch_order(np.arange(4, 8), 16, **base) == whole[4:]).all()  # the second of two processes
        for other in ({"seed": 2}, {"step": 3}, {"view": 2}):
            assert (patch_order(np.arange(8), 16, **base | other) != whole).any(1).all()

    @pytest.mark.parametrize(
        ("patches", "ratio", "count"), [(196, 0.75, 49), (64, 0.75, 16), (4, 0.75, 1), (4, 0.99, 1), (4, 0.01, 3)]
    )
    def test_number_of_visible_patches(self, patches: int, ratio: float, count: int) -> None:
        assert visible_patches(patches, ratio) == count


class TestEncoder:
    @pytest.mark.parametrize(
        "name", ["timm/test_vit", "timm/test_vit4", "timm/vit_little_patch16_reg1_gap_256"]
    )  # class token; mean of patches with a class token, with a register
    def test_all_patches_in_any_order_are_the_whole_image(self, name: str) -> None:
        encoder, width = vit(name)
        images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
        order = torch.stack([torch.randperm(9) for _ in range(3)])
        tokens, features = networks.encode_visible(encoder, images, order)
        assert tokens.shape == (3, encoder.num_prefix_tokens + 9, width)
        torch.testing.assert_close(features, encoder(images), **TIGHT)
        again, _ = networks.encode_visible(encoder, images, order.sort(1).values)
        prefix = encoder.num_prefix_tokens
        back = order.argsort(1)[..., None].expand(-1, -1, width)
        torch.testing.assert_close(tokens[:, prefix:].gather(1, back), again[:, prefix:], **TIGHT)

    def test_hidden_pixels_do_not_reach_it(self) -> None:
        encoder, _ = vit()
        images, visible = torch.randn(2, 3, 12, 12, dtype=torch.float64), torch.tensor([[0, 4], [8, 1]])
        before, _ = networks.encode_visible(encoder, images, visible)
        changed = images.clone()
        changed[0, :, :4, 4:] = 9.0  # patches 1 and 2
        changed[1, :, 4:8] = 9.0  # patches 3 to 5
        assert torch.equal(networks.encode_visible(encoder, changed, visible)[0], before)
        changed[0, :, 0, 0] = 9.0
        assert not torch.equal(networks.encode_visible(encoder, changed, visible)[0][0], before[0])

    def test_gradient_reaches_visible_pixels_and_targets_are_constants(self) -> None:
        method, view = build("mae"), views(0)[0].requires_grad_()
        part = method.reconstruct(view, 1)
        part.prediction.square().sum().backward()
        order = torch.from_numpy(patch_order(np.arange(16), 16, seed=0, step=0, view=1))
        reached = networks.patch_pixels(view.grad, 2).abs().amax(-1) > 0
        expected = torch.zeros(16, 16, dtype=torch.bool).scatter(1, order[:, :4], True)
        assert torch.equal(reached, expected)

    def test_which_encoders_have_tokens(self) -> None:
        assert networks.has_tokens(vit()[0])
        assert not networks.has_tokens(vit("timm/test_vit3")[0])  # pools with attention
        assert not networks.has_tokens(networks.build_encoder("resnet18", channels=3, image_size=32)[0])
        with pytest.raises(ConfigError, match=r"The encoder Flatten has no tokens: use a vision transformer of timm\."):
            find_method("mae")(nn.Flatten(), 64)

    def test_patches_of_a_size_to_choose(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^network.patch_size=4 is for vision transformers of timm, not for 'res"
        ):
            networks.build_encoder("resnet18", channels=3, image_size=32, patch_size=4)
        with pytest.raises(ConfigError, match=r"'timm/resnet18' has no patches of a size to choose: use --set network"):
            vit("timm/resnet18")
        encoder, width = vit(image_size=8, patch_size=8)
        with pytest.raises(ConfigError, match="Patches of 8 pixels do not divide images of 8 pixels into two or more"):
            find_method("mae")(encoder, width)


class TestPatches:
    def test_pixels_row_by_row(self) -> None:
        image = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
        patches = networks.patch_pixels(image, 2)
        assert patches.shape == (2, 6, 12)
        expected = [image[1, channel, 2 + y, 4 + x].item() for y in (0, 1) for x in (0, 1) for channel in range(3)]
        assert patches[1, 5].tolist() == expected
        with pytest.raises(ValueError, match="Images of 4 by 6 pixels cannot be cut into patches of 4"):
            networks.patch_pixels(image, 4)

    def test_positions_by_their_formula(self) -> None:
        found = grid_positions(2, 3, like=torch.empty(8, dtype=torch.float64))
        for row in range(2):
            for column in range(3):
                parts = [f(place / 10_000 ** (i / 2)) for place in (row, column) for f in (math.sin, math.cos)
                         for i in (0, 1)]  # fmt: skip
                assert found[3 * row + column].tolist() == pytest.approx(parts, abs=1e-6)

    def test_decoder_does_not_depend_on_the_order_of_what_was_seen(self) -> None:
        pytest.importorskip("timm")
        torch.manual_seed(0)
        decoder = networks.PixelDecoder(6, 12, width=8, depth=2, heads=2).double()
        tokens, visible = torch.randn(2, 4, 6, dtype=torch.float64), torch.tensor([[5, 0, 3], [1, 2, 4]])
        found = decoder(tokens, visible, rows=2, columns=3)
        assert found.shape == (2, 6, 12)
        turned = torch.cat([tokens[:, :1], tokens[:, [3, 1, 2]]], 1)
        torch.testing.assert_close(decoder(turned, visible[:, [2, 0, 1]], rows=2, columns=3), found, **TIGHT)
        with pytest.raises(ConfigError, match="The decoder's width 6 must be a multiple of 4 and of its 2 heads"):
            networks.PixelDecoder(6, 12, width=6, depth=1, heads=2)


def digits(name: str) -> list[str]:
    """Arguments of ``pretrain`` on handwritten digits, 20 steps."""
    settings = ["network.encoder=timm/test_vit", "network.patch_size=2", "batch_size=32", "epochs=2", "data.subset=320",
                "optimizer.warmup_epochs=0", "method.decoder_dim=16", "method.decoder_depth=1",
                "method.decoder_heads=2"]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    return ["pretrain", "demo", "--out", "r", "--device", "cpu", "--method", name, *words]


class TestRuns:
    def test_a_residual_network_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        text = runs.fail(tmp_path, ["pretrain", "demo", "--out", "r", "--device", "cpu", "--method", "mae"])
        assert text == (
            "method.name='mae' needs an encoder with tokens, and network.encoder='tiny_resnet' has none: use --set "
            "network.encoder=timm/vit_tiny_patch16_224 --set network.patch_size=1."
        )
        assert not (tmp_path / "r" / "summary.json").exists()

    def test_the_recipe_builds(self) -> None:
        pytest.importorskip("timm")
        method = setup.build_method(setup.complete(find_recipe("cifar10_vit")))
        assert isinstance(method, MaskedMethod) and method.encoder.patch_embed.num_patches == 64
        assert sum(p.numel() for p in method.encoder.parameters()) == pytest.approx(5.4e6, rel=0.02)
        base = config.override(find_recipe("cifar10_vit"), ["views.0.count=2"])
        assert setup.build_method(setup.complete(setup.use_method(base, "simclr"))) is not None

    def test_from_training_to_evaluation_and_export(self, tmp_path: Path) -> None:
        pytest.importorskip("timm")
        runs.succeed(tmp_path, digits("m_mae"), before=runs.BARE)
        lines = runs.lines(tmp_path / "r")
        assert lines[-1]["loss"] < lines[0]["loss"] and {"reconstruction", "rate"} <= lines[-1].keys()
        text = runs.succeed(tmp_path, ["evaluate", "r", "--device", "cpu", "--protocol", "knn"], before=runs.BARE).out
        assert "20-NN" in text
        assert (
            "64 features each"
            in runs.succeed(tmp_path, ["embed", "r", "--out", "f.npz", "--split", "test", "--device", "cpu"]).out
        )
        assert "patch_size=2" in runs.succeed(tmp_path, ["export", "r", "--format", "timm"]).out
        runs.succeed(tmp_path, ["export", "r"])
        runs.succeed(tmp_path, ["import", "r/export.safetensors", "--out", "again"])
        tensors = [load(tmp_path / folder) for folder in ("r", "again")]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def load(run: Path) -> dict[str, Tensor]:
    from matrix_ssl.encoder import load_encoder

    return load_encoder(run).state_dict()
