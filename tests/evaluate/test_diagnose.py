"""Blocks of encoders of every family, and what is measured at each."""

import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from matrix_ssl import matrix
from matrix_ssl.api import diagnosing
from matrix_ssl.config import DataConfig, ViewConfig
from matrix_ssl.config.recipes import find_recipe
from matrix_ssl.data.sources import open_source
from matrix_ssl.errors import ConfigError, DataError, NotFiniteError
from matrix_ssl.evaluate.blocks import FEATURES, BlockOutputs, find_blocks, positions
from matrix_ssl.evaluate.diagnose import MEASURES, diagnose_blocks
from matrix_ssl.networks import TinyResNet
from tests.support.encoder_runs import make_run
from tests.support.runs import run

DATA = DataConfig(image_size=8, mean=(0.5,), std=(0.5,), crop_fraction=1.0)
SAME = (ViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0, jitter=0, grayscale=0, blur=0),) * 2
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("resnet18", "layer1.0", 8),
        ("vit_b_16", "encoder.layers.encoder_layer_0", 12),
        ("swin_t", "features.1.0", 12),
        ("efficientnet_b0", "features.1.0", 16),
        ("alexnet", "features.0", 8),
        ("timm/vit_tiny_patch16_224", "blocks.0", 12),
        ("timm/convnext_atto", "stages.0.blocks.0", 12),
    ],
)
def test_blocks(name, first, count):
    with torch.device("meta"):
        if name.startswith("timm/"):
            encoder = pytest.importorskip("timm").create_model(name.removeprefix("timm/"), num_classes=0)
        else:
            encoder = torchvision.models.get_model(name, weights=None)
    names = list(find_blocks(encoder))
    assert (names[0], len(names)) == (first, count)


def test_outputs_are_vectors_at_positions():
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    assert torch.equal(positions(x)[:, 5], x[:, :, 1, 1])
    assert torch.equal(positions(x.permute(0, 2, 3, 1)), positions(x))
    assert positions(torch.ones(2, 7, 5)).shape == (2, 7, 5)
    assert positions(torch.ones(2, 5)).shape == (2, 1, 5)


def test_hooks_see_every_block_and_are_removed():
    encoder = TinyResNet(channels=1, image_size=8, width=8).eval()
    with BlockOutputs(encoder, lambda x: x.shape) as blocks:
        encoder(torch.randn(3, 1, 8, 8))
    assert blocks.outputs == {"blocks.0": (3, 64, 8), "blocks.1": (3, 16, 16), FEATURES: (3, 1, 16)}
    blocks.outputs.clear()
    encoder(torch.randn(3, 1, 8, 8))
    assert not blocks.outputs


def test_measures_are_those_of_the_features():
    encoder = TinyResNet(channels=1, image_size=8, width=8).eval()
    source = open_source("digits", split="test", data_root=None)
    result = diagnose_blocks(encoder, source, DATA, SAME, images=10**6, device=CPU)
    assert result["images"] == len(source)
    row = result["rows"][-1]
    assert set(row) == {"block", "width", "positions", *MEASURES} and row["block"] == FEATURES
    with torch.no_grad():
        x = encoder((source.images.float() / 255 - 0.5) / 0.5)
    report = matrix.rank_report(x)
    for name in ("effective_rank", "participation_ratio", "rank_me"):
        assert row[name] == pytest.approx(getattr(report, name), rel=1e-4)
    assert row["matrix_entropy"] == pytest.approx(np.log(report.effective_rank), rel=1e-4)
    scaled = x.double() / x.double().var(0, correction=0).mean().sqrt()
    assert row["lidar"] == pytest.approx(matrix.lidar(torch.stack([scaled] * 2, 1)).item(), rel=1e-3)  # equal views
    assert row["normalised_matrix_entropy"] == pytest.approx(row["matrix_entropy"] / np.log(row["width"]), rel=1e-9)
    # of equal views DiME is the entropy with permuted images less that without
    views = matrix.gaussian_kernel(x[:256].double(), width="median")
    expected = matrix.difference_of_entropies(views, views, generator=torch.Generator().manual_seed(0)).item()
    assert row["dime"] == pytest.approx(expected, rel=1e-3)
    tokens = result["rows"][0]
    assert tokens["normalised_token_entropy"] == pytest.approx(tokens["token_entropy"] / np.log(8), rel=1e-9)
    assert row["token_entropy"] is row["normalised_token_entropy"] is None and 0 < result["rows"][0][
        "token_entropy"
    ] < np.log(64)


def test_an_output_that_is_not_finite_names_its_block():
    encoder = TinyResNet(channels=1, image_size=8, width=8)
    nn.init.constant_(encoder.blocks[1].residual[0].weight, torch.nan)
    with pytest.raises(NotFiniteError, match=r"^blocks\.1: an output is not finite"):
        diagnose_blocks(encoder, open_source("digits", split="test", data_root=None), DATA, SAME, images=9, device=CPU)
    with pytest.raises(DataError, match="1 of 1 images of 'digits' can be read: two are needed"):
        diagnose_blocks(
            encoder.apply(_zero), open_source("digits", split="test", data_root=None), DATA, SAME, images=1, device=CPU
        )


def _zero(module):
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)


def test_the_remedy_for_too_few_images_can_help():
    for images, remedy in ((np.zeros((1, 8, 8), np.uint8), "add images"), (np.zeros((5, 8, 8), np.uint8), "raise --i")):
        with pytest.raises(DataError, match=f"1 of its images would be measured, and 2 are needed: {remedy}"):
            diagnosing.diagnose("random/tiny_resnet", images, images=1, device="cpu")


def test_the_command(tmp_path):
    folder, _ = make_run(tmp_path / "run", "network.width=8", base=find_recipe("demo"))
    out = tmp_path / "out"
    words = [
        "diagnose",
        str(folder),
        "--data",
        "digits",
        "--reference",
        "untrained",
        "--against",
        "untrained",
        "--images",
        "60",
    ]
    ended = run(tmp_path, [*words, "--out", str(out)])
    assert ended.code == 0, ended.err
    assert "blocks.0" in ended.out and "diagnose.html" in ended.out and "Linear CKA of" in ended.out
    result = json.loads((out / "diagnose.json").read_text())
    assert result["rows"][-1]["reference"]["effective_rank"] != result["rows"][-1]["effective_rank"]
    between = result["similarity"]["tables"][0]
    assert between["columns"] == "untrained" and between["linear_cka"][0][0] < 1
    page = (out / "diagnose.html").read_text()
    assert page.count("Linear CKA, ") >= 3 and "Matrix KL, untrained" in page and "in random batches" in page
    for text in ("LiDAR", "DiME", "Token entropy", "Normalised matrix entropy", "reference effective rank", "blocks.1"):
        assert text in page
    with pytest.raises(ConfigError, match=r"--reference .*other has other blocks than"):
        other, _ = make_run(tmp_path / "other", "network.width=8", "data.image_size=16", base=find_recipe("demo"))
        diagnosing.diagnose(folder, "digits", out=out, reference=str(other), images=8)
    assert json.loads((out / "diagnose.json").read_text()) == result
