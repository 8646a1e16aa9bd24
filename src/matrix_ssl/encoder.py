"""Encoders of run folders: building, loading strictly, and exporting for other programs."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from matrix_ssl import checkpoint, networks, record
from matrix_ssl.config import RunConfig
from matrix_ssl.errors import CheckpointError, ConfigError

Weights = Literal["student", "teacher"]
Format = Literal["safetensors", "torchvision"]


def build_encoder(config: RunConfig) -> tuple[nn.Module, int]:
    """The encoder of a run at its initialisation, a function of the configuration, and the width of its features.

    Seeds PyTorch's generator, so that what is built next is such a function, too.

    Raises:
        ConfigError: the architecture is unknown or does not fit the pictures.
    """
    torch.manual_seed(config.seed)
    return _build(config)


def load_encoder(run: str | Path, *, weights: Weights = "student") -> nn.Module:
    """The trained encoder of a run folder, in evaluation mode on the CPU.

    It maps pictures (n, channels, s, s), normalised by the run's ``data.mean`` and ``data.std``, to features (n, k).

    Args:
        run: a run folder.
        weights: ``"student"`` is what the run exports; ``"teacher"`` its moving average.

    Raises:
        RunFolderError: it is not a run folder.
        CheckpointError: the run has no such weights yet, or they do not match the network; names are listed.
    """
    run = Path(run)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away: the caller's numbers stay
        encoder, _ = _build(record.read_config(run))
    tensors, source = _weights(run, weights)
    checkpoint.load_strictly(encoder, tensors, source)
    return encoder.eval()


def export(run: Path, target: Path, *, form: Format, weights: Weights = "student") -> str:
    """Writes a run's encoder for other programs and checks the file by loading it back.

    ``safetensors`` keeps the names of this package. ``torchvision`` is a state dict for ``torch.load(...,
    weights_only=True)`` with torchvision's names and without the classifier.

    Returns:
        A sentence on what was written and how to load it.

    Raises:
        CheckpointError: the run has no such weights, or the file does not load back bit by bit.
        ConfigError: the architecture is not torchvision's.
    """
    config = record.read_config(run)
    tensors = load_encoder(run, weights=weights).state_dict()
    name = config.network.encoder
    metadata = {"architecture": name, "weights": weights, "method": config.method.name}
    if form == "safetensors":
        content = checkpoint.encode(tensors, metadata)
        record.write_atomically(target, lambda file: file.write(content))
        back, _ = checkpoint.read_safetensors(target)
        how = f"safetensors.torch.load_file({target.name!r})"
    else:
        if name == networks.TINY_RESNET or name.startswith("timm/"):
            raise ConfigError(
                f"--format torchvision: {name!r} is not a torchvision architecture; use --format safetensors."
            )
        record.write_atomically(target, lambda file: torch.save(dict(tensors), file))
        back = torch.load(target, weights_only=True)
        size = f"image_size={config.data.image_size}" if name.startswith("vit_") else ""
        how = f"torchvision.models.{name}({size}).load_state_dict(torch.load({target.name!r}), strict=False)"
        if _has_small_stem(tensors, name):
            how += (
                ", after model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False) "
                "and model.maxpool = torch.nn.Identity()"
            )
    if back.keys() != tensors.keys() or not all(torch.equal(back[k], tensors[k]) for k in tensors):
        raise CheckpointError(f"{target} does not load back as it was written.")
    digest = hashlib.sha256(target.read_bytes()).hexdigest()[:12]
    return f"{target}: {len(back)} of {len(tensors)} tensors of {name} ({weights}), sha256 {digest}. Load: {how}"


def _build(config: RunConfig) -> tuple[nn.Module, int]:
    return networks.build_encoder(
        config.network.encoder,
        channels=len(config.data.mean),
        image_size=config.data.image_size,
        stem=config.network.stem,
        width=config.network.width,
    )


def _has_small_stem(tensors: dict[str, Tensor], name: str) -> bool:
    with torch.device("meta"):
        standard: Any = torchvision.models.get_model(name, weights=None).state_dict()
    return "conv1.weight" in tensors and tensors["conv1.weight"].shape != standard["conv1.weight"].shape


def _weights(run: Path, weights: Weights) -> tuple[dict[str, Tensor], str]:
    if weights == "student":
        path = run / record.ENCODER
        if not path.exists():
            raise CheckpointError(f"{run} has no {record.ENCODER} yet: let its pre-training finish.")
        return checkpoint.read_safetensors(path)[0], str(path)
    found, _ = checkpoint.load_newest(run)
    prefix = "teacher.encoder."
    tensors = {k.removeprefix(prefix): v for k, v in (found.model if found else {}).items() if k.startswith(prefix)}
    if found is None or not tensors:
        raise CheckpointError(f"{run} has no teacher: its checkpoint is missing or its method has none.")
    return tensors, f"the teacher after step {found.step}"
