"""Identifies architectures by the shapes of their tensors, and refuses encoders that only look like one of them."""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from matrix_ssl import networks
from matrix_ssl.config import NetworkConfig, check_type
from matrix_ssl.config.untrusted import parse_json
from matrix_ssl.errors import OFFERED, CheckpointError, ConfigError

IMAGE_SIZE = 224  # for encoders that take any size and do not record the one they were trained with
RESNETS = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2",
           "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2")  # fmt: skip
# vision transformers by width and patch size
_TORCHVISION_VITS = {(768, 16): "vit_b_16", (768, 32): "vit_b_32", (1024, 16): "vit_l_16", (1024, 32): "vit_l_32",
                     (1280, 14): "vit_h_14"}  # fmt: skip
_TIMM_VITS = {(192, 16): "tiny_patch16", (384, 16): "small_patch16", (768, 16): "base_patch16",
              (1024, 16): "large_patch16", (384, 32): "small_patch32", (768, 32): "base_patch32",
              (384, 8): "small_patch8", (768, 8): "base_patch8", (1280, 14): "huge_patch14"}  # fmt: skip
_DINOV2 = {384: "small", 768: "base", 1024: "large"}  # with patches of 14 pixels
EFFICIENTNET_LITE0 = "timm/tf_efficientnet_lite0"  # TensorFlow's padding and epsilon, unlike timm/efficientnet_lite0
_POSITIONS = {"patch_embed.proj.weight": "pos_embed", "conv_proj.weight": "encoder.pos_embedding"}


def saved(metadata: Mapping[str, str], name: str, kind: Any, default: Any) -> Any:
    """A setting of type ``kind`` that this package wrote into the metadata of a file; the default if absent."""
    if name not in metadata:
        return default
    try:
        return check_type(parse_json(metadata[name]), kind, f"The file's {name}")
    except ValueError:
        raise CheckpointError(f"The file's metadata {name}={metadata[name]!r} is not JSON; export it again.") from None


def candidates(first: str, shape: torch.Size) -> tuple[str, ...]:
    """The architectures whose first convolution has this name and may have this shape (out, channels, h, w)."""
    width, side = shape[0], shape[3]
    if first == "patch_embed.proj.weight":
        names = [f"timm/vit_{_TIMM_VITS[width, side]}_224"] if (width, side) in _TIMM_VITS else []
        return (*names, *([f"timm/vit_{_DINOV2[width]}_patch14_dinov2"] if side == 14 and width in _DINOV2 else []))
    if first == "conv_proj.weight":
        return (_TORCHVISION_VITS[width, side],) if (width, side) in _TORCHVISION_VITS else ()
    if first == "_conv_stem.weight":
        return (EFFICIENTNET_LITE0,)
    return RESNETS


def is_resnet(name: str) -> bool:
    """Whether an architecture is one of torchvision's ResNets, ResNeXts or wide ResNets."""
    return name in RESNETS


def describe(name: str, first: torch.Size, metadata: Mapping[str, str]) -> NetworkConfig:
    """The settings that build an architecture whose first convolution has this shape (out, channels, h, w)."""
    if name == networks.TINY_RESNET:
        stem = saved(metadata, "stem", Literal["auto", "standard", "small"], "auto")
        return NetworkConfig(encoder=name, stem=stem, width=first[0])
    return NetworkConfig(
        encoder=name,
        stem="small" if is_resnet(name) and first[2:] == (3, 3) else "standard",
        patch_size=saved(metadata, "patch_size", int, 0),
        configuration=saved(metadata, "configuration", str, ""),
    )


def first_convolution(
    name: str, metadata: Mapping[str, str], *, image_size: int | None, channels: int
) -> tuple[str, int]:
    """The name and input channels of the tensor that takes images; arguments as for ``choose_image_size``.

    It is the first four-dimensional tensor with the images' number of channels or, if pixels become channels before
    it, as in TResNet, simply the first four-dimensional tensor.

    Raises:
        ConfigError: the architecture has none, for example because patches pass through a linear layer.
    """
    network = NetworkConfig(
        encoder=name,
        patch_size=saved(metadata, "patch_size", int, 0),
        configuration=saved(metadata, "configuration", str, ""),
    )
    size = image_size or saved(metadata, "image_size", int, IMAGE_SIZE)
    tensors = outline(network, image_size=size, channels=channels).state_dict()
    found = [(own, tensor.shape[1]) for own, tensor in tensors.items() if tensor.ndim == 4]
    if not found:
        raise ConfigError(f"{name} begins with no convolution, by which an encoder is found: choose a different one.")
    return next(((own, inputs) for own, inputs in found if inputs == channels), found[0])


@lru_cache(maxsize=16)
def outline(network: NetworkConfig, *, image_size: int, channels: int) -> nn.Module:
    """An encoder without values, only names and shapes: no memory and no random numbers. Shared: do not modify it."""
    with torch.device("meta"):
        return networks.build_encoder(
            network.encoder,
            channels=channels,
            image_size=image_size,
            stem=network.stem,
            width=network.width,
            patch_size=network.patch_size,
            configuration=network.configuration,
        )[0]


def choose_image_size(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    requested: int | None,
    *,
    named: NetworkConfig | None = None,
    channels: int = 3,
) -> int:
    """The image size in pixels: the requested one, or the encoder's own, which vision transformers fix.

    Args:
        named: the architecture, if it is known. One that has positions without being a plain vision transformer, such
            as Hiera, may have several of them in a patch.
    """
    usual = requested or saved(metadata, "image_size", int, IMAGE_SIZE)
    for first, positions in _POSITIONS.items():
        if first in tensors and positions in tensors:
            if named and _shape(positions, named, image_size=usual, channels=channels) == tensors[positions].shape:
                return usual
            patches = math.isqrt(tensors[positions].shape[1])  # the square of this, plus a class token
            size = patches * tensors[first].shape[3]
            if requested not in (None, size):
                use = OFFERED.first(f"use --image-size {size}", otherwise="use images of that size")
                raise ConfigError(f"--image-size {requested}: this encoder takes {size} pixels; {use}.")
            return size
    return usual


def _shape(name: str, network: NetworkConfig, *, image_size: int, channels: int) -> torch.Size | None:
    """The shape of a network's tensor for a given image size; None if it has no such tensor or takes no such images."""
    try:
        tensor = outline(network, image_size=image_size, channels=channels).state_dict().get(name)
    except ConfigError:
        return None
    return None if tensor is None else tensor.shape


def refuse_lookalikes(prefix: str, tensors: Mapping[str, Tensor], *, lightning: bool, source: str) -> None:
    """Raises CheckpointError for encoders that match in every name and shape but compute different features.

    The messages say why; the sources are ``vits.py`` of MoCo v3, ``solo/methods/base.py`` of solo-learn and the
    settings of detectron2.
    """
    if "conv1.norm.weight" in tensors:
        raise CheckpointError(
            f"{source} has the names of detectron2, which do not determine its strides and whether its images are RGB "
            "or BGR; import the file that it was converted from."
        )
    patches, stem = tensors.get("patch_embed.proj.weight"), tensors.get("conv1.weight")
    if patches is not None and len(patches) == 384 and re.search(r"(base|momentum)_encoder\.$", prefix):
        raise CheckpointError(
            f"{source} holds the small vision transformer of MoCo v3, which has 12 heads where timm's has 6; no "
            "architecture here computes the same features. Import MoCo v3's ViT-Base or ResNet-50."
        )
    if lightning and stem is not None and stem.shape[2:] == (3, 3) and re.search(r"(backbone|encoder)\.$", prefix):
        raise CheckpointError(
            f"{source} holds a ResNet of solo-learn for small images, whose first convolution pads by 2 pixels "
            "where this package's pads by 1, so its features would differ; train it again without the small stem."
        )
