"""The detectors: what comes from the encoder, strides, sizes, gradients, and losses beside torchvision's own."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from matrix_ssl.config import RunConfig, override, to_dict
from matrix_ssl.encoder import initialise_encoder
from matrix_ssl.errors import ConfigError, RunFolderError
from matrix_ssl.evaluate.detection import heads
from matrix_ssl.evaluate.detection.heads import RegionPool, mask_cross_entropy
from matrix_ssl.evaluate.detection.network import Backbone, build_detector, open_backbone, parameter_groups
from matrix_ssl.evaluate.detection.settings import DetectionSettings
from matrix_ssl.runs.checkpoint import digest, save_weights
from matrix_ssl.runs.files import write_json
from matrix_ssl.runs.folder import CONFIG, ENCODER, read_config
from tests.support.drawn_coco import thin_backbone

ARCHITECTURES = ("c4", "fpn")


def settings(*assignments: str) -> DetectionSettings:
    small = ("anchors=32", "regions=16", "anchor_sizes=16,32,64,128,256", "detections=20")
    return override(DetectionSettings(), [*small, *assignments])


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different sizes, the second one with two objects."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 96, generator=generator), torch.rand(3, 90, 60, generator=generator)]
    boxes = [[[10.0, 10, 50, 40]], [[5.0, 5, 30, 45], [20, 50, 55, 80]]]
    targets = []
    for image, box, labels in zip(images, boxes, ([1], [2, 1]), strict=True):
        masks = torch.zeros(len(box), *image.shape[1:], dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, box, strict=True):
            mask[int(y0) : int(y1), int(x0) : int((x0 + x1) / 2)] = 1  # the left half
        targets.append({"boxes": torch.tensor(box), "labels": torch.tensor(labels), "masks": masks})
    return images, targets


def from_encoder(detector: nn.Module, architecture: str) -> dict[str, Tensor]:
    """The tensors of the detector that came from the encoder, by their names there."""
    found = {}
    for name, tensor in detector.state_dict().items():
        if architecture == "fpn" and name.startswith("backbone.body."):
            found[name.removeprefix("backbone.body.")] = tensor
        elif architecture == "c4" and name.startswith("backbone."):
            found[name.removeprefix("backbone.")] = tensor
        elif architecture == "c4" and name.startswith("roi_heads.res5.layer4."):
            found[name.removeprefix("roi_heads.res5.")] = tensor
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_every_tensor_of_the_encoder_is_in_the_detector_bit_by_bit(architecture: str, name: str) -> None:
    backbone = open_backbone("random", architecture=name, seed=4)
    expected = {key: value.clone() for key, value in backbone.encoder.state_dict().items()}
    detector = build_detector(backbone, settings(f"architecture={architecture}"), classes=3)
    found = from_encoder(detector, architecture)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert digest(found) == backbone.sha256
    assert all(parameter.requires_grad for parameter in detector.parameters())  # no layer is frozen
    norms = [m for m in detector.modules() if "BatchNorm" in type(m).__name__]
    assert norms and all(type(module) is nn.BatchNorm2d for module in norms)


def test_numbers_of_parameters() -> None:
    """Worked out from the layers' shapes; 80 classes, ResNet-50 of 23508032 parameters without its classifier."""
    detector = build_detector(open_backbone("random", architecture=None, seed=0), settings(), classes=80)
    proposals = 1024 * 1024 * 9 + 1024 + (1024 + 1) * 15 * 5
    boxes = 2 * 2048 + (2048 + 1) * 81 * 5  # BatchNorm, then classes and boxes
    masks = 2048 * 256 * 4 + 256 + (256 + 1) * 81
    assert sum(p.numel() for p in detector.parameters()) == 23508032 + proposals + boxes + masks
    pyramid = build_detector(
        open_backbone("random", architecture="resnet50", seed=0), settings("architecture=fpn"), classes=90
    )
    theirs = torchvision.models.get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None)
    # 8 convolutions of 256 channels have weights and biases of a BatchNorm in the place of their own bias
    expected = sum(p.numel() for p in theirs.parameters()) + 8 * 256
    assert sum(p.numel() for p in pyramid.parameters()) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initialisation_is_a_function_of_the_seed(architecture: str) -> None:
    def build(seed: int) -> dict[str, Tensor]:
        chosen = settings(f"architecture={architecture}", f"seed={seed}")
        return build_detector(thin_backbone(), chosen, classes=2).state_dict()

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second, other = build(1), build(1), build(2)
    assert torch.equal(torch.rand(3), expected)  # the caller's numbers stay
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["rpn.head.cls_logits.weight"], other["rpn.head.cls_logits.weight"])
    assert torch.equal(first["roi_heads.box_predictor.bbox_pred.bias"], torch.zeros(12))
    assert 0.008 < first["roi_heads.box_predictor.cls_score.weight"].std() < 0.012
    assert 0.0008 < first["roi_heads.box_predictor.bbox_pred.weight"].std() < 0.0012


class TestStrides:
    @staticmethod
    def features(architecture: str, backbone: Backbone, size: int) -> dict[str, Tensor]:
        detector = build_detector(backbone, settings(f"architecture={architecture}"), classes=2).eval()
        found = detector.backbone(torch.zeros(1, 3, size, size))
        return {"0": found} if isinstance(found, Tensor) else found

    def test_of_the_standard_stem(self) -> None:
        c4, fpn = (self.features(architecture, thin_backbone(), 128) for architecture in ARCHITECTURES)
        assert {key: 128 // value.shape[-1] for key, value in c4.items()} == {"0": 16}
        strides = {key: 128 // value.shape[-1] for key, value in fpn.items()}
        assert strides == {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}

    def test_of_the_stem_for_small_images(self) -> None:
        for architecture, strides in (("c4", (4,)), ("fpn", (1, 2, 4, 8))):
            backbone = thin_backbone()
            backbone.encoder.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            backbone.encoder.maxpool = nn.Identity()
            detector = build_detector(backbone, settings(f"architecture={architecture}"), classes=2)
            pool = detector.roi_heads.pool if architecture == "c4" else detector.roi_heads.mask_pool
            assert pool.strides == strides
            sizes = [v.shape[-1] for v in self.features(architecture, backbone, 64).values()]
            assert sizes[: len(strides)] == [64 // stride for stride in strides]


class TestRegionPool:
    """On a feature map that holds the place of each pixel's centre, a region must give the places of its cells."""

    @staticmethod
    def places(stride: int, size: int) -> Tensor:
        centres = (torch.arange(size // stride) + 0.5) * stride
        return torch.stack(torch.meshgrid(centres, centres, indexing="ij"))[None]

    def test_cells_are_where_they_should_be(self) -> None:
        strides = (4, 8, 16, 32)
        pool = RegionPool(strides, 7)
        features = {str(level): self.places(stride, 512) for level, stride in enumerate(strides)}
        boxes = torch.tensor([[100.0, 60, 170, 200], [32, 32, 480, 480], [200, 200, 228, 214], [33, 101, 211, 309]])
        found = pool(features, [boxes])
        for box, values in zip(boxes, found, strict=True):
            x = box[0] + (torch.arange(7) + 0.5) / 7 * (box[2] - box[0])
            y = box[1] + (torch.arange(7) + 0.5) / 7 * (box[3] - box[1])
            expected = torch.stack(torch.meshgrid(y, x, indexing="ij"))
            torch.testing.assert_close(values, expected, atol=0.02, rtol=0)

    @pytest.mark.parametrize(("side", "level"), [(10, 0), (111, 0), (112, 1), (223, 1), (224, 2), (448, 3), (2000, 3)])
    def test_levels_follow_the_paper(self, side: float, level: int) -> None:
        """Level 4 + log2(side / 224), rounded down, of levels 2 to 5 (Lin et al., CVPR 2017, equation 1)."""
        features = {str(k): torch.full((1, 1, 2048 >> k, 2048 >> k), float(k)) for k in range(4)}
        found = RegionPool((4, 8, 16, 32), 2)(features, [torch.tensor([[0.0, 0.0, side, side]])])
        assert found.eq(level).all()

    def test_images_without_a_region(self) -> None:
        features = {"0": torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])}
        boxes = [torch.zeros(0, 4), torch.tensor([[0.0, 0, 64, 64], [16, 16, 32, 32]])]
        assert RegionPool((16,), 3)(features, boxes).eq(1).all()
        assert RegionPool((16,), 3)(features, [torch.zeros(0, 4)] * 2).shape == (0, 1, 3, 3)


class TestMaskLoss:
    def test_by_hand(self) -> None:
        """A box of four pixels, the mask its left half, logits 0 everywhere but 2 in one cell of the true class."""
        mask = torch.zeros(2, 8, 8, dtype=torch.uint8)
        mask[1, :, :4] = 1
        logits = torch.full((1, 3, 2, 2), 9.0)
        logits[0, 2] = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
        target = {"masks": mask}
        arguments = ([torch.tensor([[2.0, 2, 6, 6]])], torch.tensor([2]), [torch.tensor([1])], [target])
        half = torch.tensor(2.0).log()
        expected = (3 * half + (1 + torch.tensor(2.0).exp()).log()) / 4
        torch.testing.assert_close(mask_cross_entropy(logits, *arguments), expected)

    def test_without_a_region_it_is_zero_with_a_gradient(self) -> None:
        logits = torch.zeros(0, 3, 2, 2, requires_grad=True)
        loss = mask_cross_entropy(logits, [torch.zeros(0, 4)], torch.zeros(0, dtype=torch.long), [torch.zeros(0)],
                                  [{"masks": torch.zeros(0, 8, 8)}])  # fmt: skip
        loss.backward()
        assert loss.item() == 0 and logits.grad is not None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestDetector:
    def test_every_layer_learns(self, architecture: str) -> None:
        torch.manual_seed(0)
        everything = settings(f"architecture={architecture}", "anchors=100000")  # so that each level has a part in it
        detector = build_detector(thin_backbone(), everything, classes=2)
        losses = detector(*batch())
        assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
        sum(losses.values()).backward()
        still = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert still == []

    def test_what_it_finds(self, architecture: str) -> None:
        detector = build_detector(thin_backbone(), settings(f"architecture={architecture}"), classes=2).eval()
        images, _ = batch()
        with torch.no_grad():
            found = detector(images)
        for image, result in zip(images, found, strict=True):
            count = len(result["boxes"])
            height, width = image.shape[1:]
            assert 0 < count <= 20
            assert result["boxes"].min() >= 0 and (result["boxes"] <= torch.tensor([width, height] * 2)).all()
            assert result["masks"].shape == (count, *(((28, 28),) if architecture == "fpn" else ((14, 14),))[0])
            assert result["masks"].min() >= 0 and result["masks"].max() <= 1
            assert set(result["labels"].tolist()) <= {1, 2}
            assert result["scores"].diff().le(0).all()

    def test_nothing_found_is_no_error(self, architecture: str) -> None:
        chosen = settings(f"architecture={architecture}", "score_threshold=1")
        detector = build_detector(thin_backbone(), chosen, classes=2).eval()
        with torch.no_grad():
            (result,) = detector(batch()[0][:1])
        assert [len(value) for value in result.values()] == [0, 0, 0, 0]

    def test_images_are_normalised_as_the_encoder_was(self, architecture: str) -> None:
        backbone = thin_backbone()
        backbone = Backbone(backbone.encoder, "thin", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "", "")
        transform = build_detector(backbone, settings(f"architecture={architecture}"), classes=2).eval().transform
        images, _ = transform([torch.ones(3, 33, 64), torch.ones(3, 20, 30)])
        assert images.tensors.shape == (2, 3, 64, 64) and images.image_sizes == [(33, 64), (20, 30)]
        torch.testing.assert_close(images.tensors[0, :, 0, 0], torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]))
        assert images.tensors[1, :, 20:].eq(0).all()  # the border is the mean colour

    def test_batch_norm_has_no_weight_decay(self, architecture: str) -> None:
        detector = build_detector(thin_backbone(), settings(f"architecture={architecture}"), classes=2)
        decayed, free = parameter_groups(detector, weight_decay=0.5)
        assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)
        norms = sum(2 for module in detector.modules() if isinstance(module, nn.BatchNorm2d))
        assert len(free["params"]) == norms > 10
        assert len(decayed["params"]) + norms == len(list(detector.parameters()))


def test_boxes_and_masks_share_the_last_stage() -> None:
    detector = build_detector(thin_backbone(), settings(), classes=2)
    names = [name for name in detector.state_dict() if "layer4" in name]
    assert names and all(name.startswith("roi_heads.res5.layer4.") for name in names)
    assert len([m for m in detector.modules() if m is detector.roi_heads.res5]) == 1
    weight = detector.roi_heads.res5.layer4[0].conv1.weight
    calls = []
    detector.roi_heads.res5.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    for part in ("loss_mask", "loss_box_reg"):
        torch.manual_seed(0)
        detector.zero_grad()
        detector(*batch())[part].backward()
        assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert len(calls) == 2  # once for each forward: masks are predicted from what boxes have computed


@pytest.fixture
def unaligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's sampling in the place of the aligned one."""

    def sample(x: Tensor, boxes: Tensor, size: int, scale: float, *, sampling_ratio: int, aligned: bool) -> Tensor:
        return torchvision.ops.roi_align(x, boxes, size, scale, {7: 2, 14: 2, 28: -1}[size])

    monkeypatch.setattr(heads, "roi_align", sample)


@pytest.mark.usefixtures("unaligned")
@pytest.mark.parametrize("width", [16, pytest.param(256, marks=pytest.mark.slow)])
def test_with_their_sampling_the_pyramid_computes_torchvisions_losses(width: int) -> None:
    """The same weights in torchvision's own Mask R-CNN, the same random numbers: the same losses to the bit."""
    chosen = settings("architecture=fpn", f"head_width={width}")
    ours = build_detector(thin_backbone(), chosen, classes=2)
    encoder = thin_backbone().encoder
    names = {f"layer{level + 1}": str(level) for level in range(4)}
    theirs = MaskRCNN(
        BackboneWithFPN(encoder, names, [8, 16, 32, 64], width, norm_layer=nn.BatchNorm2d),
        box_head=TwoMLPHead(width * 49, 4 * width), box_predictor=FastRCNNPredictor(4 * width, 3),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1), mask_predictor=MaskRCNNPredictor(width, width, 3),
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in chosen.anchor_sizes), ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        rpn_batch_size_per_image=32, box_batch_size_per_image=16, rpn_post_nms_top_n_train=1000, _skip_resize=True,
    )  # fmt: skip
    # their heads keep pools without weights under other names; all tensors have the same
    theirs.load_state_dict(ours.state_dict())
    losses = []
    for model in (ours, theirs):
        images, targets = batch()
        torch.manual_seed(5)
        losses.append({key: value.item() for key, value in model(images, targets).items()})
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[1].items():
        assert losses[0][key] == pytest.approx(value, rel=1e-6), key


class TestOpening:
    def run(self, folder: Path, *assignments: str) -> Path:
        config = override(RunConfig(), ["data.mean=0.1,0.2,0.3", "data.std=0.5,0.6,0.7", *assignments])
        encoder, _ = initialise_encoder(config)
        folder.mkdir()
        write_json(folder / CONFIG, to_dict(config))
        save_weights(folder / ENCODER, encoder, {"weights": "student"})
        return folder

    def test_a_run(self, tmp_path: Path) -> None:
        run = self.run(tmp_path / "run", "seed=3")
        backbone = open_backbone(str(run), architecture=None, seed=0)
        expected, _ = initialise_encoder(read_config(run))
        assert digest(backbone.encoder.state_dict()) == digest(expected.state_dict()) == backbone.sha256
        assert (backbone.architecture, backbone.mean, backbone.std) == ("resnet18", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        assert "120 of 120 tensors" in backbone.text
        assert backbone.stem_stride == 4
        small = self.run(tmp_path / "small", "data.image_size=32")
        assert open_backbone(str(small), architecture="resnet18", seed=0).stem_stride == 1

    def test_random_weights_follow_the_seed(self) -> None:
        first, second, other = (open_backbone("random", architecture="resnet18", seed=seed) for seed in (1, 1, 2))
        assert first.sha256 == second.sha256 != other.sha256
        assert first.mean == (0.485, 0.456, 0.406)

    def test_what_cannot_be_a_backbone(self, tmp_path: Path) -> None:
        for name in ("vit_b_16", "resnet5", "timm/resnet18", "tiny_resnet"):
            with pytest.raises(ConfigError, match=rf"cannot be built on the encoder '{name}'; use a ResNet of torch"):
                open_backbone("random", architecture=name, seed=0)
        run = self.run(tmp_path / "run", "network.encoder=tiny_resnet", "data.image_size=32")
        with pytest.raises(ConfigError, match="cannot be built on the encoder 'tiny_resnet'"):
            open_backbone(str(run), architecture=None, seed=0)
        with pytest.raises(ConfigError, match="resnet18"):
            open_backbone(str(self.run(tmp_path / "other")), architecture="resnet50", seed=0)
        (tmp_path / "empty").mkdir()
        with pytest.raises(RunFolderError, match="is not a run folder"):
            open_backbone(str(tmp_path / "empty"), architecture=None, seed=0)
