"""Opens encoders by WHERE they are: a run, a checkpoint, weights of torchvision, timm or transformers, or none."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from matrix_ssl import config as configuration
from matrix_ssl import encoder as encoders
from matrix_ssl.config import DataConfig, NetworkConfig, RunConfig
from matrix_ssl.config.reading import READING, CropMode
from matrix_ssl.config.untrusted import file_sha256
from matrix_ssl.data.sources import did_you_mean_path
from matrix_ssl.encoder import Weights, architectures
from matrix_ssl.encoder.card import IMPORTED
from matrix_ssl.encoder.image_models import read_image_model
from matrix_ssl.encoder.loading import load_step
from matrix_ssl.encoder.matching import Counts, Match, find_encoder
from matrix_ssl.encoder.published import Published, timm_weights, torchvision_weights
from matrix_ssl.encoder.reading import read_tensors
from matrix_ssl.encoder.where import FORMS, HF, PATH, RANDOM, TORCHVISION, Where, read_where
from matrix_ssl.errors import CheckpointError, ConfigError, check_known
from matrix_ssl.runs.checkpoint import load_strictly
from matrix_ssl.runs.folder import read_config


@dataclass(frozen=True)
class Opened:
    """An encoder that is ready for use."""

    encoder: nn.Module  # in evaluation mode on the CPU: images (n, c, s, s), normalised, to features (n, k)
    config: RunConfig  # its architecture and, in ``data``, the size and normalisation of its images
    text: str  # its origin, for messages
    where: Where  # its origin, as the user named it
    sha256: str | None = None  # of the file that it was read from
    counts: Counts | None = None  # of the tensors of that file


def open_encoder(
    where: str | Path,
    *,
    architecture: str | None = None,
    image_size: int | None = None,
    weights: Weights = "student",
    seed: int = 0,
    download: bool = False,
) -> Opened:
    """Opens an encoder given in any of the forms of ``encoder.where``.

    Args:
        where: a run folder, a checkpoint file, ``torchvision/NAME[:WEIGHTS]``, ``timm/NAME[.TAG]``, ``hf:NAME`` or
            ``random/NAME``. A ``Path`` is always a path.
        architecture: as in ``network.encoder`` of a configuration. For a file, None means to infer it from the tensors.
            Anything else must agree with it; only a bare ``"random"`` or ``"torchvision"`` takes its name from it.
        image_size: side of the images, in pixels; None: that of the encoder, else 224. A run folder must agree with it.
        weights: which of two encoders to open, the trained one or its moving average.
        seed: for ``random/NAME``.
        download: download published weights that the local cache lacks; by default the network is not used.

    Raises:
        CheckpointError: the weights are absent, damaged or do not match completely.
        ConfigError: the architecture is missing, unknown or a different one, or ``weights`` is neither.
        RunFolderError: a folder is not a run folder.
    """
    check_known("weights", weights, get_args(Weights))
    place = read_where(where, architecture=architecture)
    if place.kind == PATH:
        if place.path.is_dir():
            return _open_run(place, architecture, image_size, weights)
        if not place.path.exists():
            raise nothing_at(where)
        if place.run is not None:
            return _open_step(place, place.run, architecture, image_size, weights)
        return open_checkpoint(place.path, architecture=architecture, branch=weights, image_size=image_size)
    if place.kind == RANDOM:
        opened = _open_random(place, image_size, seed)
    elif place.kind == HF:
        opened = _open_image_model(place, image_size, download=download)
    else:
        find = torchvision_weights if place.kind == TORCHVISION else timm_weights
        opened = _open_published(place, find(place.name, place.weights, download=download), image_size)
    own = opened.config.network.encoder
    if architecture not in (None, own):
        raise ConfigError(f"{where} is {own!r}, not {architecture!r}; remove --architecture.")
    return opened


def nothing_at(where: str | Path) -> CheckpointError:
    """The error for a WHERE that is a path at which nothing exists."""
    hint = did_you_mean_path(read_where(where).path)
    return CheckpointError(f"{where} does not exist{f'.{hint} Otherwise' if hint else ';'} name {FORMS}.")


def open_checkpoint(
    path: Path,
    *,
    architecture: str | None = None,
    branch: Weights = "student",
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_fraction: float | None = None,
    crop_mode: CropMode | None = None,
) -> Opened:
    """The encoder of a checkpoint file.

    Options that are None come from the file, if this package exported it. Otherwise they are ImageNet's normalisation,
    or that of the program that wrote the file if its layout shows it; 224 pixels, or the size of a vision transformer;
    and a central square of 0.875 of the shorter side.

    Args:
        path: a safetensors or PyTorch file; ``reading`` and ``matching`` describe its content.
        architecture: None: inferred from the tensors.
        branch: which of two encoders to open, the trained one or its moving average.
        image_size: side of the images, in pixels.
        mean, std: of pixels in [0, 1], one number per channel.
        crop_fraction: central fraction of the side that evaluation keeps, in (0, 1].
        crop_mode: ``"centre"``: of the shorter side, as a square; ``"squash"``: of both, squeezed into a square.

    Raises:
        CheckpointError: the file cannot be read, or its encoder does not match completely.
        ConfigError: a setting does not fit the encoder, or ``branch`` is neither.
    """
    check_known("branch", branch, get_args(Weights))
    contents = read_tensors(path)
    prepared = {"mean": mean, "std": std, "crop_fraction": crop_fraction, "crop_mode": crop_mode}
    data = _data(contents.metadata, {name: value for name, value in prepared.items() if value is not None})
    channels = len(data.mean)
    match = find_encoder(
        contents, str(path), architecture=architecture, branch=branch, image_size=image_size, channels=channels
    )
    if match.normalisation:
        own_mean, own_std = match.normalisation
        data = dataclasses.replace(data, mean=tuple(mean or own_mean), std=tuple(std or own_std))
    return _opened(match, data, Where("path", str(path)), match.counts.text, contents.sha256)


def _data(metadata: Mapping[str, str], given: Mapping[str, Any]) -> DataConfig:
    """How images are prepared: as given, or else as the file states."""
    names = ("mean", "std", "crop_fraction", "crop_mode", *READING)
    values = {name: architectures.saved(metadata, name, Any, None) for name in names if name in metadata}
    return configuration.from_dict({"data": values | dict(given)}).data


def _open_run(place: Where, architecture: str | None, image_size: int | None, weights: Weights) -> Opened:
    config = _config_of_run(place.path, architecture, image_size)
    encoder = encoders.load_encoder(place.path, weights=weights)
    return Opened(encoder, config, _all_tensors(encoder, config, weights, place), place)


def _open_step(
    place: Where, run: Path, architecture: str | None, image_size: int | None, weights: Weights
) -> Opened:  # fmt: skip
    config = _config_of_run(run, architecture, image_size)
    encoder = load_step(place.path, weights=weights)
    own = RunConfig(IMPORTED, config.data, network=config.network)
    return Opened(encoder, own, _all_tensors(encoder, config, weights, place), place, file_sha256(place.path))


def _config_of_run(run: Path, architecture: str | None, image_size: int | None) -> RunConfig:
    """The configuration of a run, with which the options must agree."""
    config = read_config(run)
    for key, value, own in (("architecture", architecture, config.network.encoder),
                            ("image_size", image_size, config.data.image_size)):  # fmt: skip
        if value not in (None, own):
            raise ConfigError(f"{key}={value!r}: the run {run} has {own!r}; remove the option.")
    return config


def _all_tensors(encoder: nn.Module, config: RunConfig, weights: Weights, place: Where) -> str:
    total = len(encoder.state_dict())
    return f"{total} of {total} tensors of {config.network.encoder} ({weights}) from {place.path}."


def _open_random(place: Where, image_size: int | None, seed: int) -> Opened:
    data = DataConfig(image_size=image_size or architectures.IMAGE_SIZE)
    config = RunConfig(RANDOM, data, network=NetworkConfig(encoder=place.name), seed=seed)
    return Opened(_build(config), config, f"{place.name} at its initialisation, seed {seed}.", place)


def _open_published(place: Where, published: Published, image_size: int | None) -> Opened:
    data, contents = published.data, read_tensors(published.path)
    match = find_encoder(
        contents, str(published.path),
        architecture=published.architecture, branch="student",
        image_size=image_size or data.image_size, channels=len(data.mean),
    )  # fmt: skip
    return _opened(match, data, place, f"{published.label}: {match.counts.text}", contents.sha256)


def _open_image_model(place: Where, image_size: int | None, *, download: bool) -> Opened:
    model = read_image_model(place.name, download=download)
    data = dataclasses.replace(model.data, image_size=image_size or model.data.image_size)
    config = RunConfig(IMPORTED, data, network=model.network)
    encoder = _build(config)
    load_strictly(encoder, model.tensors, place.label)
    _check_repeats(encoder, data, place.label)
    return Opened(encoder, config, model.counts.text, place, model.sha256, model.counts)


@torch.no_grad()
def _check_repeats(encoder: nn.Module, data: DataConfig, place: str) -> None:
    """Raises CheckpointError for a model that sees a random part of an image, such as a masked autoencoder."""
    images = torch.rand(4, len(data.mean), data.image_size, data.image_size, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        if not torch.equal(encoder(images), encoder(images)):
            raise CheckpointError(f"{place} gives different features for one image, so it cannot be evaluated.")


def _opened(match: Match, data: DataConfig, place: Where, text: str, sha256: str) -> Opened:
    data = dataclasses.replace(data, image_size=match.image_size)
    config = RunConfig(IMPORTED, data, network=match.network)
    encoder = _build(config)
    load_strictly(encoder, match.tensors, place.label)
    return Opened(encoder, config, text, place, sha256, match.counts)


def _build(config: RunConfig) -> nn.Module:
    """The freshly initialised encoder, in evaluation mode; the caller's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        return encoders.initialise_encoder(config)[0].eval()
