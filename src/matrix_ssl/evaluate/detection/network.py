"""Mask R-CNN on a torchvision ResNet: a feature pyramid, or C4 with the encoder's last stage in the heads."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from matrix_ssl.data.randomness import hash_integers
from matrix_ssl.encoder import Weights
from matrix_ssl.encoder.opening import open_encoder
from matrix_ssl.encoder.where import RANDOM, TORCHVISION
from matrix_ssl.errors import ConfigError
from matrix_ssl.evaluate.detection.heads import Heads, LastStageHeads, PyramidHeads
from matrix_ssl.evaluate.detection.settings import DetectionSettings
from matrix_ssl.runs import checkpoint

_RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
# proposals kept before non-maximum suppression, per level, and after it, per image; Detectron2's values
_BEFORE = {"fpn": {"training": 2000, "testing": 1000}, "c4": {"training": 12000, "testing": 6000}}
_AFTER = {"fpn": {"training": 1000, "testing": 1000}, "c4": {"training": 2000, "testing": 1000}}
_STREAM = 0xDE7EC7  # random stream that keeps the initialisation independent of other random numbers


@dataclass(frozen=True)
class Backbone:
    """A torchvision ResNet with its weights, and the normalisation of its images."""

    encoder: torchvision.models.ResNet
    architecture: str
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    text: str  # what was loaded, for messages
    sha256: str  # of the weights

    @property
    def stem_stride(self) -> int:
        """The stride of the layers before the first stage: 4, or 1 with the stem for small images."""
        return 4 if isinstance(self.encoder.maxpool, nn.MaxPool2d) else 1


def open_backbone(
    where: str, *, architecture: str | None, seed: int, weights: Weights = "student", download: bool = False
) -> Backbone:
    """Opens an encoder with ``opening.open_encoder``; it must be a torchvision ResNet.

    ``"random"`` and ``"torchvision"`` without an architecture mean a ResNet-50.
    """
    if architecture is None and where in (RANDOM, TORCHVISION):
        architecture = "resnet50"
    if architecture is not None:
        check_backbone(architecture)
    opened = open_encoder(where, architecture=architecture, weights=weights, seed=seed, download=download)
    encoder, name, data = opened.encoder, opened.config.network.encoder, opened.config.data
    check_backbone(name)
    assert isinstance(encoder, torchvision.models.ResNet)
    return Backbone(encoder, name, data.mean, data.std, opened.text, checkpoint.digest(encoder.state_dict()))


def build_detector(backbone: Backbone, settings: DetectionSettings, *, classes: int) -> GeneralizedRCNN:
    """Builds a detector with the backbone's weights in its encoder and all other layers initialised from the seed.

    It takes images (3, h, w) in [0, 1] of any size, and targets with boxes, labels and masks. In training it returns
    the losses; in evaluation, for every image, boxes (k, 4) in its pixels, scores (k,), labels (k,) from 1 and
    masks (k, m, m), probabilities over the box. The backbone's modules become part of it. ``classes`` is the number of
    object classes, without the background.
    """
    encoder = backbone.encoder
    widths = [_width(stage) for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)]
    strides = [backbone.stem_stride * 2**level for level in range(4)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash_integers(settings.seed, _STREAM) >> 1))
        sizes: tuple[tuple[float, ...], ...]
        if settings.architecture == "fpn":
            names = {f"layer{level + 1}": str(level) for level in range(4)}
            body: nn.Module = BackboneWithFPN(encoder, names, widths, settings.head_width, norm_layer=nn.BatchNorm2d)
            heads: Heads = PyramidHeads(settings, strides=strides, labels=classes + 1)
            width, sizes = settings.head_width, tuple((size,) for size in settings.anchor_sizes)
        else:
            first = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
            body = nn.Sequential(OrderedDict((name, getattr(encoder, name)) for name in first))
            heads = LastStageHeads(
                settings, last_stage=encoder.layer4, stride=strides[2], width=widths[3], labels=classes + 1
            )
            width, sizes = widths[2], (settings.anchor_sizes,)
        anchors = AnchorGenerator(sizes, (_RATIOS,) * len(sizes))
        proposals = RegionProposalNetwork(
            anchors, RPNHead(width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=settings.anchors, positive_fraction=0.5,
            pre_nms_top_n=_BEFORE[settings.architecture], post_nms_top_n=_AFTER[settings.architecture], nms_thresh=0.7,
        )  # fmt: skip
    return GeneralizedRCNN(body, proposals, heads, Normalise(backbone.mean, backbone.std))


class Normalise(GeneralizedRCNNTransform):
    """torchvision's first and last step without resizing: images arrive at their size, masks stay as predicted."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__(min_size=1, max_size=1, image_mean=list(mean), image_std=list(std))

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> Any:
        """Returns the image and its target at their current size."""
        return image, target

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Any, original_image_sizes: Any
    ) -> list[dict[str, Tensor]]:
        """Returns boxes and masks at the size of the network's images."""
        return result


def parameter_groups(detector: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for the optimizer, BatchNorm's without weight decay, as in Detectron2."""
    norms = {
        id(parameter)
        for module in detector.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters(recurse=False)
    }
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) not in norms], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in norms], "weight_decay": 0.0},
    ]


def _width(stage: nn.Sequential) -> int:
    """Output channels of a stage of a torchvision ResNet."""
    return [module for module in stage[-1].modules() if isinstance(module, nn.BatchNorm2d)][-1].num_features


def check_backbone(name: str) -> None:
    """Raises ConfigError for an architecture on which no detector can be built."""
    known = torchvision.models.list_models(include=["resnet*", "resnext*", "wide_resnet*"], module=torchvision.models)
    if name not in known:
        raise ConfigError(
            f"A detector cannot be built on the encoder {name!r}; use a ResNet of torchvision: {', '.join(known)}."
        )
