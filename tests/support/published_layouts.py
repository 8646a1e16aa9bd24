"""Checkpoints as published programs write them, around a given ResNet-18 of torchvision.

Each function builds the modules as the program's code does, with narrow heads, and saves what it saves. The comments
name the file of the public repository that defines the layout.
"""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

State = dict[str, Any]


def resnet(seed: int = 0) -> torchvision.models.ResNet:
    """A ResNet-18 whose BatchNorm has seen something."""
    torch.manual_seed(seed)
    model = torchvision.models.resnet18(num_classes=5)
    for name, buffer in model.named_buffers():
        buffer += 7 if name.endswith("num_batches_tracked") else 0.1 * torch.rand_like(buffer)
    return model


def moved(model: nn.Module) -> nn.Module:
    """A copy with other weights, as a moving average has."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data *= 0.5
    return model


def head(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers)


def holder(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def state(model: nn.Module, prefix: str = "module.") -> State:
    return OrderedDict((prefix + name, tensor) for name, tensor in model.state_dict().items())


def with_head(encoder: torchvision.models.ResNet, layers: nn.Module) -> nn.Module:
    encoder = copy.deepcopy(encoder)
    encoder.fc = layers  # type: ignore[assignment]
    return encoder


def matrix_ssl(student: torchvision.models.ResNet) -> State:
    """yifanzhang-pro/Matrix-SSL main_pretrain.py and xinliu20/MEC mec/builder.py: encoder, predictor, teacher."""
    encoder = with_head(student, head(512, 8, 8))
    model = holder(encoder=encoder, predictor=head(8, 4, 8), teacher=moved(encoder))
    return {"epoch": 100, "arch": "resnet18", "state_dict": state(model)}


def simsiam(student: torchvision.models.ResNet) -> State:
    """facebookresearch/simsiam simsiam/builder.py: encoder with the projector as its fc, predictor."""
    return {"epoch": 100, "state_dict": state(holder(encoder=with_head(student, head(512, 8)), predictor=head(8, 4)))}


def moco_v2(student: torchvision.models.ResNet) -> State:
    """facebookresearch/moco moco/builder.py: encoder_q, encoder_k, and a queue of keys."""
    encoder = with_head(student, nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 4)))
    model = holder(encoder_q=encoder, encoder_k=moved(encoder))
    model.register_buffer("queue", torch.rand(4, 16))
    model.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    return {"epoch": 200, "arch": "resnet18", "state_dict": state(model)}


def moco_v3(student: torchvision.models.ResNet) -> State:
    """facebookresearch/moco-v3 moco/builder.py: base_encoder, momentum_encoder, predictor."""
    encoder = with_head(student, head(512, 8, 4))
    model = holder(base_encoder=encoder, momentum_encoder=moved(encoder), predictor=head(4, 8, 4))
    return {"epoch": 300, "arch": "resnet18", "state_dict": state(model)}


def barlow_twins(student: torchvision.models.ResNet) -> State:
    """facebookresearch/barlowtwins main.py: backbone without fc, projector, bn; VICReg has no bn."""
    model = holder(
        backbone=with_head(student, nn.Identity()), projector=head(512, 8, 8), bn=nn.BatchNorm1d(8, affine=False)
    )
    return {"epoch": 1000, "model": state(model)}


def vicreg(student: torchvision.models.ResNet) -> State:
    """facebookresearch/vicreg main_vicreg.py, resnet50.pth: the state dict of the backbone alone."""
    return state(with_head(student, nn.Identity()), "")


def byol_lucidrains(student: torchvision.models.ResNet) -> State:
    """lucidrains/byol-pytorch byol_pytorch.py: net, the same again in online_encoder, target_encoder, predictor."""
    online = holder(net=student, projector=head(512, 8))
    target = holder(net=moved(student), projector=head(512, 8))
    return state(holder(net=student, online_encoder=online, target_encoder=target, online_predictor=head(8, 8)), "")


def byol_sthalles(student: torchvision.models.ResNet) -> State:
    """sthalles/PyTorch-BYOL models/resnet_base_network.py and trainer.py: children in a Sequential, ``projetion``."""

    def network(model: torchvision.models.ResNet) -> State:
        encoder = nn.Sequential(*list(model.children())[:-1])
        return state(holder(encoder=encoder, projetion=holder(net=head(512, 8))), "")

    return {
        "online_network_state_dict": network(student),
        "target_network_state_dict": network(moved(student)),  # type: ignore[arg-type]
    }


def solo_learn(student: torchvision.models.ResNet) -> State:
    """vturrisi/solo-learn solo/methods/base.py, byol.py: backbone, momentum_backbone, projectors, classifiers."""
    encoder = with_head(student, nn.Identity())
    model = holder(
        backbone=encoder, momentum_backbone=moved(encoder), projector=head(512, 8), momentum_projector=head(512, 8),
        predictor=head(8, 8), classifier=nn.Linear(512, 5), momentum_classifier=nn.Linear(512, 5),
    )  # fmt: skip
    return {"epoch": 400, "state_dict": state(model, ""), "pytorch-lightning_version": "2.1.2"}


def lightly_benchmark(student: torchvision.models.ResNet) -> State:
    """lightly benchmarks/imagenet/resnet50/byol.py: backbone, teacher_backbone, heads, online_classifier."""
    encoder = with_head(student, nn.Identity())
    model = holder(
        backbone=encoder, projection_head=head(512, 8), student_projection_head=head(512, 8),
        prediction_head=head(8, 8), teacher_backbone=moved(encoder), teacher_projection_head=head(512, 8),
        online_classifier=holder(online_classifier=nn.Linear(512, 5)),
    )  # fmt: skip
    return {"state_dict": state(model, ""), "pytorch-lightning_version": "2.1.2"}


def lightly_example(student: torchvision.models.ResNet) -> State:
    """lightly examples: ``nn.Sequential(*list(resnet.children())[:-1])`` as backbone, heads by lightly's modules."""
    from lightly.models.modules import MoCoProjectionHead

    backbone = nn.Sequential(*list(student.children())[:-1])
    model = holder(
        backbone=backbone, projection_head=MoCoProjectionHead(512, 8, 4),
        backbone_momentum=moved(backbone), projection_head_momentum=MoCoProjectionHead(512, 8, 4),
    )  # fmt: skip
    return {"state_dict": state(model, "")}


def dino(student: torchvision.models.ResNet) -> State:
    """facebookresearch/dino main_dino.py: student and teacher, each a backbone with a head."""
    encoder = with_head(student, nn.Identity())
    return {
        "student": state(holder(backbone=encoder, head=holder(mlp=head(512, 8), last_layer=head(8, 4)))),
        "teacher": state(holder(backbone=moved(encoder), head=holder(mlp=head(512, 8), last_layer=head(8, 4))), ""),
        "epoch": 300,
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def linear_probe(student: torchvision.models.ResNet) -> State:
    """main_lincls.py of SimSiam, MoCo and Matrix-SSL: the encoder with a classifier under ``module.``."""
    return {"epoch": 90, "state_dict": state(with_head(student, nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 5))))}


# tensors that are left aside: a ResNet-18 without its classifier has 120, head(...) 6 for each layer
PUBLISHED: dict[str, tuple[Callable[[torchvision.models.ResNet], State], int, bool]] = {
    "Matrix-SSL, MEC": (matrix_ssl, 12 + 120 + 12 + 12, True),
    "SimSiam": (simsiam, 6 + 6, False),
    "MoCo v2": (moco_v2, 4 + 120 + 4 + 2, True),
    "MoCo v3": (moco_v3, 12 + 120 + 12 + 12, True),
    "Barlow Twins": (barlow_twins, 12 + 3, False),
    "VICReg": (vicreg, 0, False),
    "BYOL, lucidrains": (byol_lucidrains, 2 + (122 + 6) + (122 + 6) + 6, True),
    "BYOL, sthalles": (byol_sthalles, 6 + 120 + 6, True),
    "solo-learn": (solo_learn, 120 + 6 + 6 + 6 + 2 + 2, True),
    "lightly, benchmarks": (lightly_benchmark, 6 + 6 + 6 + 120 + 6 + 2, True),
    "lightly, examples": (lightly_example, 4 + 120 + 4, True),
    "DINO": (dino, 12 + 120 + 12 + 1, True),
    "linear probe": (linear_probe, 7, False),
    "torchvision": (lambda student: state(student, ""), 2, False),
}
