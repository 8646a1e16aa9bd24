"""Weights that a pre-training starts from: the settings that follow from them, and the networks they initialise."""

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from matrix_ssl import config as configuration
from matrix_ssl import networks
from matrix_ssl.config import NetworkConfig, RunConfig, StartConfig
from matrix_ssl.config.untrusted import file_sha256
from matrix_ssl.encoder import architectures
from matrix_ssl.encoder.opening import Opened, open_checkpoint, open_encoder
from matrix_ssl.encoder.where import PATH, RANDOM, absolute, read_where
from matrix_ssl.errors import ConfigError, MatrixSSLError
from matrix_ssl.methods import Method, TeacherMethod
from matrix_ssl.runs import checkpoint
from matrix_ssl.runs.folder import CONFIG, ENCODER, is_same_method, read_config
from matrix_ssl.training.setup import build_method

# what follows from the weights, unless the user sets it
_FOLLOWING = (
    *(f"network.{field.name}" for field in dataclasses.fields(NetworkConfig)),
    *("data.image_size", "data.mean", "data.std", "data.crop_fraction", "data.crop_mode"),
)
_RATE = 0.1  # times the recipe's learning rate


@dataclass(frozen=True)
class Start:
    """A run that starts from weights."""

    config: RunConfig  # with everything that follows from the weights
    tensors: dict[str, Tensor] | None  # every tensor of the method; None: the run's checkpoint holds them
    text: str  # for the first line


def start_from(config: RunConfig, *, chosen: Collection[str], run: Path | None, download: bool = False) -> Start:
    """Opens the weights ``config.start.reference`` and loads them into the networks of a run.

    The encoder and the teacher's encoder strictly get the weights of the reference. If that is a run of the same method
    and widths, the heads are those of its newest checkpoint; otherwise they are newly initialised. A teacher equals its
    student.

    Args:
        config: the complete settings of the recipe and the user.
        chosen: dotted keys of the settings that the user has chosen; the others may follow from the weights.
        run: the folder of the run; if it has a checkpoint, the reference need no longer exist. None: start over.
        download: fetch published weights that the local cache lacks.

    Raises:
        CheckpointError: the weights are missing, damaged or do not match completely.
        ConfigError: a user's setting does not fit the weights.
    """
    reference = config.start.reference
    config = _defaults(config, chosen)
    try:
        opened = _open(config, chosen, download=download)
    except MatrixSSLError as error:
        recorded = _recorded(config, run, error)
        text = f"{reference} cannot be opened; the run has its own checkpoint and does not need it."
        return Start(dataclasses.replace(_follow(config, recorded, chosen), start=recorded.start), None, text)
    config = _follow(config, opened.config, chosen)
    _check(config, opened, chosen)
    method = build_method(config, weights=opened.encoder.state_dict())
    own = len(_heads(method.state_dict()))
    heads = own if _load_heads(method, config, opened) else 0
    start = StartConfig(absolute(reference), opened.text, _sha256(opened), len(opened.encoder.state_dict()), heads)
    which = f"Its heads as well: {heads} of {own} tensors." if heads else f"The {own} tensors of the heads are new."
    text = f"Starting from {reference}: {opened.text} {which}"
    return Start(dataclasses.replace(config, start=start), method.state_dict(), text)


def _open(config: RunConfig, chosen: Collection[str], *, download: bool) -> Opened:
    """The encoder of the reference; errors name settings instead of the options of other commands."""
    architecture = config.network.encoder if "network.encoder" in chosen else None
    reference, data = config.start.reference, config.data
    try:
        place = read_where(reference)
        if place.kind == PATH and place.path.is_file():
            mean, std = (data.mean if "data.mean" in chosen else None, data.std if "data.std" in chosen else None)
            return open_checkpoint(place.path, architecture=architecture, mean=mean, std=std)
        return open_encoder(reference, architecture=architecture, download=download)
    except MatrixSSLError as error:
        text = re.sub(r"matrix-ssl import .+ (?=--architecture)", "", str(error))
        text = re.sub(r"--architecture (?=\w)", "--set network.encoder=", text)
        text = text.replace("--architecture", "--set network.encoder").replace("architecture=", "network.encoder=")
        raise type(error)(text) from error


def _defaults(config: RunConfig, chosen: Collection[str]) -> RunConfig:
    """The recipe's settings adjusted to pre-trained weights, as chosen on held-out images (``LOG.md``)."""
    if read_where(config.start.reference).kind == RANDOM:
        return config
    optimizer = config.optimizer
    if "optimizer.learning_rate" not in chosen:
        optimizer = dataclasses.replace(optimizer, learning_rate=_RATE * optimizer.learning_rate)
    if "optimizer.frozen_statistics" not in chosen:
        optimizer = dataclasses.replace(optimizer, frozen_statistics=True)
    return dataclasses.replace(config, optimizer=optimizer)


def _recorded(config: RunConfig, run: Path | None, error: MatrixSSLError) -> RunConfig:
    """The settings of a run that was started from the same reference and has a checkpoint; else raises the error."""
    if run is None or not (run / CONFIG).exists():
        raise error
    recorded = read_config(run)
    if absolute(recorded.start.reference) != absolute(config.start.reference):
        raise error
    if not checkpoint.list_checkpoints(run):
        raise type(error)(f"{error} {run} has no checkpoint yet, so it still needs these weights.") from error
    return recorded


def _follow(config: RunConfig, weights: RunConfig, chosen: Collection[str]) -> RunConfig:
    """A run with the weights' network and image settings, except those that the user has chosen."""
    theirs = dict(configuration.flatten(configuration.to_dict(weights)))
    if architectures.is_resnet(weights.network.encoder) and weights.network.stem == "auto":
        theirs["network.stem"] = "small" if weights.data.image_size <= networks.SMALL_IMAGE else "standard"
    values = configuration.to_dict(config)
    for key in _FOLLOWING:
        if key not in chosen:
            group, _, name = key.partition(".")
            values[group][name] = theirs[key]
    return configuration.from_dict(values)


def _check(config: RunConfig, opened: Opened, chosen: Collection[str]) -> None:
    """Raises ConfigError if the user's settings make the encoder a different network from that of the weights."""
    ours, theirs = (dict(configuration.flatten(configuration.to_dict(each))) for each in (config, opened.config))
    different = [key for key in _FOLLOWING if key in chosen and ours[key] != theirs[key]]
    if not different:
        return
    outline = architectures.outline(config.network, image_size=config.data.image_size, channels=len(config.data.mean))
    if _structure(outline) != _structure(opened.encoder):
        listed = ", ".join(f"{key}={ours[key]}" for key in different)
        raise ConfigError(
            f"{listed}: this makes a different network than that of {config.start.reference}; remove the setting."
        )


def _structure(encoder: nn.Module) -> tuple[str, list[tuple[str, torch.Size]]]:
    """The modules with their strides and sizes, and the shape of every tensor."""
    return repr(encoder), [(name, tensor.shape) for name, tensor in encoder.state_dict().items()]


def _load_heads(method: Method, config: RunConfig, opened: Opened) -> bool:
    """Loads the heads of the run that the weights come from, if its method and widths are the same."""
    run = _run(opened)
    if run is None or not is_same_method(run, opened.config.method.name, config.method.name):
        return False
    newest, _ = checkpoint.load_newest(run)
    theirs, own = _heads(newest.model if newest else {}), _heads(method.state_dict())
    if {name: t.shape for name, t in theirs.items()} != {name: t.shape for name, t in own.items()}:
        return False
    method.load_state_dict(method.state_dict() | theirs)
    if isinstance(method, TeacherMethod):
        method.add_teacher(method.teacher_momentum)
    return True


def _heads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a method that belong to neither its encoder nor its teacher."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("encoder.", "teacher."))}


def _run(opened: Opened) -> Path | None:
    """The run folder that an encoder comes from; None if it does not come from a run."""
    return opened.where.path if opened.where.kind == PATH and opened.where.path.is_dir() else None


def _sha256(opened: Opened) -> str:
    """The SHA-256 of the file that the encoder was read from."""
    run = _run(opened)
    if opened.sha256 is not None or run is None:
        return opened.sha256 or ""
    return file_sha256(run / ENCODER)
