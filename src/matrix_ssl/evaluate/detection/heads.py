"""The second stage of Mask R-CNN: boxes, classes and masks of proposed regions, in two architectures.

Matching, sampling and the box losses are torchvision's. Regions and target masks are sampled with aligned pixel centres
(``roi_align(aligned=True)``), as in ROIAlignV2 of the published protocol; torchvision's own detectors shift both by
half a pixel.

References: He, Gkioxari, Dollár and Girshick, "Mask R-CNN", ICCV 2017; Lin et al., "Feature Pyramid Networks for Object
Detection", CVPR 2017, equation 1; He et al., "Momentum Contrast", CVPR 2020, appendix, for the BatchNorm after res5.
"""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import box_area, roi_align

from matrix_ssl.evaluate.detection.settings import DetectionSettings

Target = Mapping[str, Tensor]  # boxes (k, 4), labels (k,) from 1, masks (k, h, w) of 0 and 1


class RegionPool(nn.Module):
    """RoIAlign on one feature map, or on the level of a pyramid whose resolution fits the region.

    A region of 224 pixels, the side of ImageNet's images, is taken from stride 16, larger and smaller ones from other
    levels by powers of two. ``strides`` are in pixels and increase by factors of two; the result has ``size`` cells per
    side.
    """

    def __init__(self, strides: Sequence[int], size: int):
        super().__init__()
        self.strides, self.size = tuple(strides), size

    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Features {"0": (n, c, h, w), ...} and the boxes (k, 4) of every image to (sum of k, c, size, size)."""
        maps = [features[str(level)] for level in range(len(self.strides))]
        together = torch.cat(list(boxes))
        image = torch.cat([torch.full_like(part[:, :1], index) for index, part in enumerate(boxes)])
        regions = torch.cat([image, together], dim=1)
        side = box_area(together).sqrt()
        stride = 16 * side / 224  # the ideal one
        level = torch.floor(torch.log2(stride / self.strides[0]) + 1e-6).clamp(0, len(maps) - 1)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], self.size, self.size)
        for index, (values, step) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = torch.where(level == index)[0]
            pooled[chosen] = roi_align(values, regions[chosen], self.size, 1 / step, sampling_ratio=0, aligned=True)
        return pooled


class Heads(RoIHeads):
    """Predicts boxes, classes and, if enabled, masks of regions; a subclass defines the features for that."""

    def __init__(
        self, settings: DetectionSettings, *, box_head: nn.Module, box_width: int, mask_width: int, labels: int
    ):
        super().__init__(
            None, box_head, FastRCNNPredictor(box_width, labels),
            fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=settings.regions, positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0), score_thresh=settings.score_threshold, nms_thresh=0.5,
            detections_per_img=settings.detections,
            mask_predictor=MaskRCNNPredictor(mask_width, settings.head_width, labels) if settings.masks else None,
        )  # fmt: skip
        for layer, deviation in ((self.box_predictor.cls_score, 0.01), (self.box_predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)  # Girshick, "Fast R-CNN", ICCV 2015, section 3.1
            nn.init.zeros_(layer.bias)

    @abstractmethod
    def box_regions(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """The input of ``box_head``."""

    @abstractmethod
    def mask_regions(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """The input of ``mask_predictor``."""

    def learnt_mask_regions(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], regions: Tensor, positive: Tensor
    ) -> Tensor:
        """``mask_regions`` of the positive boxes in training; ``regions[positive]`` are their ``box_regions``."""
        return self.mask_regions(features, boxes)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation, losses in training; arguments as in torchvision."""
        if not self.training:
            return self._detect(features, proposals, image_shapes), {}
        assert targets is not None
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        regions = self.box_regions(features, proposals)
        scores, deltas = self.box_predictor(self.box_head(regions))
        class_loss, box_loss = fastrcnn_loss(scores, deltas, labels, regression)
        losses = {"loss_classifier": class_loss, "loss_box_reg": box_loss}
        if self.mask_predictor is None:
            return [], losses
        chosen = [torch.where(label > 0)[0] for label in labels]
        boxes = [box[index] for box, index in zip(proposals, chosen, strict=True)]
        positive = torch.where(torch.cat(labels) > 0)[0]
        logits = self.mask_predictor(self.learnt_mask_regions(features, boxes, regions, positive))
        objects = [number[index] for number, index in zip(matched, chosen, strict=True)]
        mask_loss = mask_cross_entropy(logits, boxes, torch.cat(labels)[positive], objects, targets)
        return [], {**losses, "loss_mask": mask_loss}

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        scores, deltas = self.box_predictor(self.box_head(self.box_regions(features, proposals)))
        detections = self.postprocess_detections(scores, deltas, proposals, image_shapes)
        boxes, _, labels = detections
        if self.mask_predictor is None:
            keys = ("boxes", "scores", "labels")
            return [dict(zip(keys, image, strict=True)) for image in zip(*detections, strict=True)]
        logits = self.mask_predictor(self.mask_regions(features, boxes))
        kind = torch.cat(labels)
        masks = logits[torch.arange(len(kind), device=kind.device), kind].sigmoid().split([len(box) for box in boxes])
        names = ("boxes", "scores", "labels", "masks")
        return [dict(zip(names, image, strict=True)) for image in zip(*detections, masks, strict=True)]


class PyramidHeads(Heads):
    """The heads of Mask R-CNN on a pyramid: two fully connected layers for boxes, four convolutions for masks."""

    def __init__(self, settings: DetectionSettings, *, strides: Sequence[int], labels: int):
        width = settings.head_width  # also that of the pyramid
        box_head = TwoMLPHead(width * 7 * 7, 4 * width)
        super().__init__(settings, box_head=box_head, box_width=4 * width, mask_width=width, labels=labels)
        self.box_pool, self.mask_pool = RegionPool(strides, 7), RegionPool(strides, 14)
        self.mask_head = MaskRCNNHeads(width, (width,) * 4, 1) if settings.masks else nn.Identity()

    def box_regions(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return self.box_pool(features, boxes)  # (regions, width, 7, 7)

    def mask_regions(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return self.mask_head(self.mask_pool(features, boxes))


class LastStageHeads(Heads):
    """The heads of C4: the encoder's last stage and a BatchNorm process every region, once for boxes and masks."""

    def __init__(self, settings: DetectionSettings, *, last_stage: nn.Module, stride: int, width: int, labels: int):
        box_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(settings, box_head=box_head, box_width=width, mask_width=width, labels=labels)
        self.pool = RegionPool((stride,), 14)
        self.res5 = nn.Sequential(OrderedDict(layer4=last_stage, norm=nn.BatchNorm2d(width)))

    def box_regions(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return self.res5(self.pool(features, boxes))  # (regions, width, 7, 7)

    mask_regions = box_regions

    def learnt_mask_regions(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], regions: Tensor, positive: Tensor
    ) -> Tensor:
        return regions[positive]  # computed already


def mask_cross_entropy(
    logits: Tensor, boxes: Sequence[Tensor], labels: Tensor, objects: Sequence[Tensor], targets: Sequence[Target]
) -> Tensor:
    """Mean binary cross-entropy of mask logits (regions, classes, m, m) for the true classes ``labels`` (regions,).

    ``boxes`` (k, 4), ``objects`` (k,), the object to which each box belongs, and ``targets`` are given for every image
    (He et al., ICCV 2017, section 3).
    """
    side = logits.shape[-1]
    truth = []
    for box, number, target in zip(boxes, objects, targets, strict=True):
        regions = torch.cat([number[:, None].to(box), box], dim=1)
        masks = target["masks"][:, None].to(box)  # exact, even if the logits are bfloat16
        truth.append(roi_align(masks, regions, side, 1.0, sampling_ratio=0, aligned=True)[:, 0])
    expected = torch.cat(truth)
    if not len(expected):
        return logits.sum() * 0  # a mean over nothing would not be a number
    return F.binary_cross_entropy_with_logits(logits[torch.arange(len(labels), device=labels.device), labels], expected)
