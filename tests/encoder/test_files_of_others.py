"""Checkpoints of programs that put more beside the encoder, and files that are not read: one sentence that is true."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from matrix_ssl.encoder.matching import Match, find_encoder
from matrix_ssl.encoder.reading import read_tensors
from matrix_ssl.errors import CheckpointError

ZERO = torch.zeros


def found(path: Path, value: Any, architecture: str | None = None) -> Match:
    torch.save(value, path)
    return find_encoder(
        read_tensors(path), path.name, architecture=architecture, branch="student", image_size=None, channels=3
    )


def beside(match: Match) -> dict[str, int]:
    return {what: len(places) for what, places in match.counts.beside.items()}


def resnet(prefix: str) -> dict[str, Tensor]:
    state = torchvision.models.resnet18().state_dict()
    return {prefix + name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def test_a_masked_autoencoder(tmp_path: Path) -> None:
    """github.com/facebookresearch/mae, models_mae.py: the decoder and its mask token are left out."""
    encoder = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    decoder = {
        "mask_token": ZERO(1, 1, 8),
        "decoder_pos_embed": ZERO(1, 197, 8),
        "decoder_embed.weight": ZERO(8, 192),
        "decoder_blocks.0.norm1.bias": ZERO(8),
        "decoder_norm.bias": ZERO(8),
        "decoder_pred.bias": ZERO(9),
    }
    match = found(tmp_path / "mae.pth", {"model": {**encoder, **decoder}, "epoch": 800})
    assert match.network.encoder == "timm/vit_tiny_patch16_224"
    assert beside(match) == {"mask token": 1, "decoder": 5}
    assert all(torch.equal(match.tensors[f"{name}"], tensor) for name, tensor in encoder.items())


@pytest.mark.parametrize("architecture", [None, "timm/vit_small_patch14_dinov2"])
def test_dinov2_with_its_mask_token(tmp_path: Path, architecture: str | None) -> None:
    """github.com/facebookresearch/dinov2, models/vision_transformer.py."""
    with torch.device("meta"):
        shapes = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518).state_dict()
    state = {name: ZERO(()).expand(tensor.shape) for name, tensor in shapes.items()}
    match = found(tmp_path / "dino.pth", {**state, "mask_token": ZERO(1, 384)}, architecture)
    assert (match.network.encoder, match.image_size) == ("timm/vit_small_patch14_dinov2", 518)
    assert beside(match) == {"mask token": 1}


@pytest.mark.parametrize(
    ("others", "groups"),
    [
        ({"neck.fc0.weight": ZERO(2, 2), "head.predictor.fc0.weight": ZERO(2, 2), "data_preprocessor.mean": ZERO(3, 1)},
         {"neck": 1, "head": 1, "normalisation of images": 1}),  # mmpretrain, mmdetection
        ({"projector.0.weight": ZERO(2, 2), "callbacks_modules.linear_probe.weight": ZERO(2, 2),
          "callbacks_metrics.linear_probe.top1.tp": ZERO(1)}, {"projector": 1, "probe": 2}),  # stable-pretraining
    ],
)  # fmt: skip
def test_necks_and_probes(tmp_path: Path, others: dict[str, Tensor], groups: dict[str, int]) -> None:
    match = found(tmp_path / "x.ckpt", {"state_dict": {**resnet("backbone."), **others}})
    assert match.network.encoder == "resnet18"
    assert beside(match) == groups


@pytest.mark.parametrize("architecture", [None, "timm/vit_tiny_patch16_224"])
def test_transformers_and_openmmlab_are_named(tmp_path: Path, architecture: str | None) -> None:
    transformers = {
        "vit.embeddings.cls_token": ZERO(1, 1, 8), "vit.embeddings.patch_embeddings.projection.weight": ZERO(8, 3, 4, 4)
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"vision transformer of transformers, .* import hf:FOLDER\.$"):
        found(tmp_path / "a.pth", transformers, architecture)
    with pytest.raises(CheckpointError, match="vision transformer of OpenMMLab"):
        found(tmp_path / "b.pth", {"backbone.patch_embed.projection.weight": ZERO(8, 3, 4, 4)}, architecture)
    with pytest.raises(CheckpointError) as caught:
        found(tmp_path / "c.pth", {"layer.weight": ZERO(2, 2)}, architecture)
    asked = "Name it with --architecture" in str(caught.value)
    assert asked == (architecture is None)
    assert ("timm/vit_tiny_patch16_224, which was named, begins with" in str(caught.value)) == (not asked)


def test_programs_and_other_files_are_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.jit.script(nn.Conv2d(3, 2, 3)).save(str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match=r"is a TorchScript program \(torch\.jit\.save\)"):
        read_tensors(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt2", "w") as archive:
        archive.writestr("b/archive_format", "pt2")
    with pytest.raises(CheckpointError, match=r"is a program of torch\.export"):
        read_tensors(tmp_path / "b.pt2")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("w.npy", b"")
    with pytest.raises(CheckpointError, match="is not a file of weights but of NumPy"):
        read_tensors(tmp_path / "c.npz")
    for name, content, what in (("d.h5", b"\x89HDF\r\n", "an HDF5 file"), ("e.onnx", b"\x08\x07", "an ONNX file")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=what):
            read_tensors(tmp_path / name)
