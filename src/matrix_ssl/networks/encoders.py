"""Encoders without their classifiers: this package's own small one, and those of torchvision, timm and transformers."""

import contextlib
import itertools
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from matrix_ssl.errors import ConfigError, did_you_mean, import_extra, import_package, is_out_of_memory
from matrix_ssl.networks.image_models import PREFIX, ImageModel
from matrix_ssl.networks.modules import MODULE, registered_encoder

SMALL_IMAGE = 64  # stem "auto" keeps the resolution of images up to this side, in pixels
TINY_RESNET = "tiny_resnet"
_COLOURS = 3


def build_encoder(
    name: str,
    *,
    channels: int,
    image_size: int,
    stem: Literal["auto", "standard", "small"] = "auto",
    width: int = 32,
    patch_size: int = 0,
    configuration: str = "",
    any_size: bool = False,
) -> tuple[nn.Module, int]:
    """Returns an encoder without classifier, images (n, channels, image_size, image_size) to features (n, k), and k.

    Args:
        name: ``"tiny_resnet"``, a torchvision architecture such as ``"resnet50"``, ``"timm/NAME"``, ``"hf:NAME"`` for a
            model of transformers, or a name returned by ``modules.register_encoder``.
        channels: 1 to 16. torchvision architectures take RGB images: for any other number their first convolution is
            replaced by a new one of the same size.
        image_size: side of the square input, in pixels.
        stem: torchvision ResNets only. ``"small"`` replaces the 7x7 stride-2 convolution with a 3x3 one and removes the
            max-pooling; ``"auto"`` does so for images of at most 64 pixels.
        width: channels of the first stage of ``tiny_resnet``.
        patch_size: timm vision transformers only: side of the patches, in pixels; 0 for that of the architecture.
        configuration: for ``"hf:NAME"``: the model's ``config.json``, as JSON.
        any_size: whether a timm vision transformer resamples its position embeddings for images of other sizes. Its
            parameters, and its features at ``image_size``, are the same.

    Raises:
        ConfigError: the architecture is unknown or does not accept such images.
        MissingExtra: the architecture is one of timm or transformers and that package is not installed.
    """
    if patch_size and not name.startswith("timm/"):
        raise ConfigError(
            f"network.patch_size={patch_size} is for vision transformers of timm, not for {name!r}: "
            "use --set network.patch_size=0."
        )
    if name == TINY_RESNET:
        encoder: nn.Module = TinyResNet(channels=channels, image_size=image_size, width=width)
    elif name.startswith(MODULE):
        encoder = registered_encoder(name)
    elif name.startswith("timm/"):
        encoder = _timm_encoder(name.removeprefix("timm/"), channels, image_size, patch_size, any_size)
    elif name.startswith(PREFIX):
        if not configuration:
            raise ConfigError(
                f"network.encoder={name!r} is known by its weights alone: import them, or start a training from them."
            )
        encoder = ImageModel(configuration, place=name)
    else:
        encoder = _torchvision_encoder(name, image_size, stem, channels)
    return encoder, _feature_dim(encoder, name, channels, image_size)


def _torchvision_encoder(name: str, image_size: int, stem: str, channels: int) -> nn.Module:
    torchvision = import_package("torchvision")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(
            f"network.encoder={name!r} is not an architecture.{did_you_mean(name, [TINY_RESNET, *known])}"
        )
    sized = {"image_size": image_size} if name.startswith("vit_") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce a different initialisation
        try:
            encoder = torchvision.models.get_model(name, weights=None, **sized)
        except AssertionError as error:  # a vision transformer checks the size when it is built
            raise _wrong_size(name, image_size, error) from error
    if name.startswith(("resnet", "resnext", "wide_resnet")) and (
        stem == "small" or (stem == "auto" and image_size <= SMALL_IMAGE)
    ):
        encoder.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
        encoder.maxpool = nn.Identity()
    elif stem == "small":
        raise ConfigError(f"network.stem='small' is for ResNets, not for {name!r}: use --set network.stem=standard.")
    elif channels != _COLOURS:
        take_channels(encoder, channels)
    linear = [path for path, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    if not linear or hasattr(encoder, "aux_logits"):
        raise ConfigError(f"network.encoder={name!r} has no single linear classifier: choose a different encoder.")
    parent, _, last = linear[-1].rpartition(".")
    setattr(encoder.get_submodule(parent), last, nn.Identity())
    return encoder


def take_channels(encoder: nn.Module, channels: int) -> tuple[str, nn.Module]:
    """Replaces an encoder's first convolution with one for this many channels, with new weights by He initialisation.

    Returns:
        Its name in the encoder, and the new layer.
    """
    name, old = next((name, one) for name, one in encoder.named_modules() if isinstance(one, nn.Conv2d))
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )  # fmt: skip
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, last = name.rpartition(".")
    setattr(encoder.get_submodule(parent), last, new)
    return name, new


def _timm_encoder(name: str, channels: int, image_size: int, patch_size: int, any_size: bool) -> nn.Module:
    timm = import_extra("timm", extra="timm")
    if not timm.is_model(name):
        hint = did_you_mean(f"timm/{name}", [f"timm/{known}" for known in timm.list_models()])
        raise ConfigError(f"network.encoder='timm/{name}' is not an architecture.{hint}")
    patches = {"patch_size": patch_size} if patch_size else {}
    for sized in ({"img_size": image_size, "dynamic_img_size": True}, {"img_size": image_size}, {}):
        if any_size or "dynamic_img_size" not in sized:
            # convolutional architectures take any size and reject both arguments, some transformers the second one
            with contextlib.suppress(TypeError):
                return timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **sized, **patches)
    if patches:
        raise ConfigError(
            f"network.encoder='timm/{name}' has no patches of a size to choose: use --set network.patch_size=0."
        )
    raise ConfigError(f"network.encoder='timm/{name}' cannot be built: choose a different encoder.")


def _feature_dim(encoder: nn.Module, name: str, channels: int, image_size: int) -> int:
    was_training = encoder.training
    try:
        with torch.no_grad():
            features = encoder.eval()(torch.zeros(2, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise _wrong_size(name, image_size, error) from error
    encoder.train(was_training)
    if not isinstance(features, Tensor):
        raise ConfigError(f"network.encoder={name!r} returns {type(features).__name__}, expected a tensor (n, k).")
    if features.ndim != 2:
        raise ConfigError(f"network.encoder={name!r} has features of shape {tuple(features.shape)}, expected (n, k).")
    return features.shape[1]


def _wrong_size(name: str, image_size: int, error: Exception) -> ConfigError:
    reason = str(error).partition("\n")[0]
    return ConfigError(
        f"network.encoder={name!r} does not accept images of {image_size} pixels ({reason}): "
        f"change --set data.image_size."
    )


class TinyResNet(nn.Module):
    """A small residual network: 3x3 stem, one basic block per stage, global average pooling.

    After the first stage, each one halves the resolution and doubles the channels until 4 pixels are left, with at most
    four stages. The stem halves the resolution of images above 32 pixels.
    """

    def __init__(self, *, channels: int, image_size: int, width: int):
        super().__init__()
        stem_stride = 1 if image_size <= 32 else 2  # a full-resolution first stage would take most of the time
        stages = max(1, min(4, (image_size // stem_stride // 4).bit_length()))
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        widths = [width, *(width * 2**i for i in range(stages))]
        self.blocks = nn.Sequential(
            *(BasicBlock(a, b, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(itertools.pairwise(widths)))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, h, w) to features (n, k)."""
        return self.blocks(self.stem(x)).mean((2, 3))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with an identity shortcut, or a 1x1 one where the shape changes (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        return torch.relu(self.shortcut(x) + self.residual(x))
