"""The encoder that a detector begins with: a torchvision ResNet from a run, a checkpoint, torchvision or a seed."""

from dataclasses import dataclass

import torchvision
from torch import nn

from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.opening import RANDOM, TORCHVISION, open_encoder
from matrix_ssl.errors import ConfigError
from matrix_ssl.runs import checkpoint

DEFAULT = "resnet50"


@dataclass(frozen=True)
class Backbone:
    """A torchvision ResNet with its weights, and how its images are normalised."""

    encoder: torchvision.models.ResNet
    architecture: str
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    text: str  # what was loaded, for messages
    sha256: str  # of the weights

    @property
    def stem_stride(self) -> int:
        """The stride of the layers before the first stage: 4, or 1 for the stem for small images."""
        return 4 if isinstance(self.encoder.maxpool, nn.MaxPool2d) else 1


def open_backbone(reference: str, *, architecture: str | None, seed: int, weights: Weights = "student") -> Backbone:
    """The encoder that a reference names, if a detector can be built on it.

    Args:
        reference: as ``matrix_ssl.encoder.opening.open_encoder`` takes it.
        architecture: of ``"random"`` and ``"torchvision"``, ``"resnet50"`` if None; of others, None or their own.
        seed: of random weights.
        weights: of a run or a checkpoint with two encoders, the trained one or its moving average.

    Raises:
        ConfigError: the encoder is not a ResNet of torchvision, or ``architecture`` is not its own.
        MatrixSSLError: the weights cannot be read, or do not match completely.
    """
    if architecture is None and reference in (RANDOM, TORCHVISION):
        architecture = DEFAULT
    if architecture is not None:
        _check_name(architecture)
    opened = open_encoder(reference, architecture=architecture, weights=weights, seed=seed)
    name, data = opened.config.network.encoder, opened.config.data
    _check_name(name)
    assert isinstance(opened.encoder, torchvision.models.ResNet)
    digest = checkpoint.digest(opened.encoder.state_dict())
    return Backbone(opened.encoder, name, data.mean, data.std, opened.text, digest)


def _check_name(name: str) -> None:
    known = torchvision.models.list_models(include=["resnet*", "resnext*", "wide_resnet*"], module=torchvision.models)
    if name not in known:
        raise ConfigError(
            f"A detector cannot be built on the encoder {name!r}; use a ResNet of torchvision: {', '.join(known)}."
        )
