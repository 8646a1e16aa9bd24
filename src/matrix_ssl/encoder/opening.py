"""Encoders by reference: a run folder, a checkpoint of another program, torchvision's weights, or random ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from matrix_ssl import config as configuration
from matrix_ssl import encoder as encoders
from matrix_ssl.config import DataConfig, NetworkConfig, RunConfig
from matrix_ssl.encoder import Weights, architectures
from matrix_ssl.encoder.card import IMPORTED
from matrix_ssl.encoder.matching import Counts, Match, find_encoder
from matrix_ssl.encoder.reading import read_tensors
from matrix_ssl.errors import CheckpointError, ConfigError
from matrix_ssl.runs.checkpoint import load_strictly
from matrix_ssl.runs.folder import read_config

RANDOM, TORCHVISION = "random", "torchvision"


@dataclass(frozen=True)
class Opened:
    """An encoder that is ready for use."""

    encoder: nn.Module  # in evaluation mode on the CPU: images (n, c, s, s), normalised, to features (n, k)
    config: RunConfig  # its architecture, and in ``data`` the size and normalisation of its images
    text: str  # its origin, for messages
    sha256: str | None = None  # of the file that it was read from
    counts: Counts | None = None  # of the tensors of that file


def open_encoder(
    reference: str | Path,
    *,
    architecture: str | None = None,
    image_size: int | None = None,
    weights: Weights = "student",
    seed: int = 0,
) -> Opened:
    """An encoder by any reference.

    Args:
        reference: a run folder; a checkpoint file of any format that ``matrix-ssl import`` reads; ``"random"`` for an
            encoder at its initialisation; or ``"torchvision"`` for torchvision's weights, trained with the labels of
            ImageNet, which must be in PyTorch's cache already: nothing is downloaded.
        architecture: as ``network.encoder`` of a configuration. ``"random"`` and ``"torchvision"`` need it; for a file,
            None means by its tensors; for a run folder it may only confirm.
        image_size: side of the images, pixels; None: that of the encoder, else 224. For a run folder it may only
            confirm.
        weights: of two encoders, the trained one or its moving average.
        seed: of ``"random"``.

    Raises:
        CheckpointError: the weights are absent, damaged or do not match completely.
        ConfigError: the architecture is missing, unknown or a different one.
        RunFolderError: a folder is not a run folder.
    """
    if reference == RANDOM:
        return _open_random(_needed(architecture, reference), image_size, seed)
    if reference == TORCHVISION:
        return _open_torchvision(_needed(architecture, reference), image_size)
    path = Path(reference)
    if path.is_dir():
        return _open_run(path, architecture, image_size, weights)
    return open_checkpoint(path, architecture=architecture, branch=weights, image_size=image_size)


def open_checkpoint(
    path: Path,
    *,
    architecture: str | None = None,
    branch: Weights = "student",
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_fraction: float | None = None,
) -> Opened:
    """The encoder of a checkpoint file.

    Options that are None come from the file, if this package exported it; else they are ImageNet's normalisation, 224
    pixels or the size of a vision transformer, and a central crop of 0.875.

    Args:
        path: a safetensors or PyTorch file; ``reading`` and ``matching`` describe its content.
        architecture: None: by its tensors.
        branch: of two encoders, the trained one or its moving average.
        image_size: side of the images, pixels.
        mean, std: of pixels in [0, 1], one number a channel.
        crop_fraction: central fraction of the side that evaluation keeps, in (0, 1].

    Raises:
        CheckpointError: the file cannot be read, or its encoder does not match completely.
        ConfigError: a setting does not fit the encoder.
    """
    contents = read_tensors(path)
    data = _data(contents.metadata, mean, std, crop_fraction)
    channels = len(data.mean)
    match = find_encoder(
        contents, str(path), architecture=architecture, branch=branch, image_size=image_size, channels=channels
    )
    return _opened(match, data, path, match.counts.text, contents.sha256)


def _data(
    metadata: Mapping[str, str], mean: Sequence[float] | None, std: Sequence[float] | None, crop_fraction: float | None
) -> DataConfig:
    options = {"mean": mean, "std": std, "crop_fraction": crop_fraction}
    values = {name: architectures.saved(metadata, name, Any, None) for name in options if name in metadata}
    values |= {name: value for name, value in options.items() if value is not None}
    return configuration.from_dict({"data": values}).data


def _open_run(run: Path, architecture: str | None, image_size: int | None, weights: Weights) -> Opened:
    config = read_config(run)
    for key, value, own in (("architecture", architecture, config.network.encoder),
                            ("image_size", image_size, config.data.image_size)):  # fmt: skip
        if value not in (None, own):
            raise ConfigError(f"{key}={value!r}: the run {run} has {own!r}; remove the option.")
    encoder = encoders.load_encoder(run, weights=weights)
    total = len(encoder.state_dict())
    return Opened(encoder, config, f"{total} of {total} tensors of {config.network.encoder} ({weights}) from {run}.")


def _open_random(architecture: str, image_size: int | None, seed: int) -> Opened:
    data = DataConfig(image_size=image_size or architectures.IMAGE_SIZE)
    config = RunConfig(RANDOM, data, network=NetworkConfig(encoder=architecture), seed=seed)
    return Opened(_build(config), config, f"{architecture} at its initialisation, seed {seed}.")


def _open_torchvision(architecture: str, image_size: int | None) -> Opened:
    try:
        weights = torchvision.models.get_model_weights(architecture).DEFAULT
    except ValueError:
        raise ConfigError(f"torchvision has no weights of {architecture!r}; choose a different architecture.") from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not path.exists():
        raise CheckpointError(
            f"torchvision's weights of {architecture} are not on this machine; download {weights.url} to {path}."
        )
    published = path.stem.rpartition("-")[2]  # torchvision's names end in the beginning of the file's SHA-256
    contents = read_tensors(path)
    if not contents.sha256.startswith(published):
        raise CheckpointError(f"{path} is damaged: its SHA-256 does not begin with {published}; download it again.")
    views = weights.transforms()
    crop, mean, std = views.crop_size[0], tuple(views.mean), tuple(views.std)
    match = find_encoder(
        contents, str(path), architecture=architecture, branch="student", image_size=image_size or crop, channels=3
    )
    data = DataConfig(mean=mean, std=std, crop_fraction=crop / views.resize_size[0])
    return _opened(match, data, path, f"{weights}: {match.counts.text}", contents.sha256)


def _needed(architecture: str | None, reference: str) -> str:
    if architecture is None:
        raise ConfigError(f"{reference!r} needs an architecture, such as resnet50; name it with --architecture.")
    return architecture


def _opened(match: Match, data: DataConfig, path: Path, text: str, sha256: str) -> Opened:
    data = dataclasses.replace(data, image_size=match.image_size)
    config = RunConfig(IMPORTED, data, network=match.network)
    encoder = _build(config)
    load_strictly(encoder, match.tensors, str(path))
    return Opened(encoder, config, text, sha256, match.counts)


def _build(config: RunConfig) -> nn.Module:
    """The encoder at its initialisation, in evaluation mode; the random numbers of the caller stay."""
    with torch.random.fork_rng(devices=[]):
        return encoders.initialise_encoder(config)[0].eval()
