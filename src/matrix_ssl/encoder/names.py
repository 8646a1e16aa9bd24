"""Names of the tensors of torchvision's ResNets and timm's EfficientNet-Lite0 in other programs, and of other tensors.

Each function maps torchvision's or timm's name of a tensor to the other name. The tensors themselves are the same.
"""

import re
from collections.abc import Iterable

# tensors outside any encoder: what they are, and a pattern for their names; any other left-over tensor is an error
_BESIDE = (
    ("head", r"(?:^|\.)(?:_?fc|heads?|head_dist|linear|last_linear)\."),
    ("classifier", r"(?:^|\.)\w*classifier\w*\."),
    ("projector", r"(?:^|\.)(?:\w*project\w*|projetion|expander|\w+_heads?|\w*head_momentum)\."),
    ("predictor", r"(?:^|\.)\w*predict\w*\."),
    ("queue", r"(?:^|\.)(?:queue|memory_bank)\w*(?:\.|$)"),
    ("normalisation of the loss", r"(?:^|\.)bn\."),
    ("prototypes", r"(?:^|\.)prototypes?\."),
    ("loss", r"(?:^|\.)(?:criterion|loss|\w+_loss)\."),
    ("decoder", r"(?:^|\.)decoder(?:_\w+)?(?:\.|$)"),  # of masked autoencoders
    ("mask token", r"(?:^|\.)mask_token$"),
    ("neck", r"(?:^|\.)\w*necks?\."),
    ("probe", r"(?:^|\.)(?:\w*probes?|callbacks_(?:modules|metrics))\."),  # stable-pretraining
    ("normalisation of images", r"(?:^|\.)(?:data_preprocessor|img_normalization)\."),
    ("progress", r"(?:^|\.)(?:epoch|global_step|best_\w+|n_averaged)$"),
)
_ANYWHERE, _OUTSIDE = "mask token", "normalisation of the loss"  # inside an encoder: allowed in any part, or in none
_TEACHER = re.compile(
    r"(?:^|\.)(?:encoder_k|momentum_\w+|\w+_momentum|teacher|teacher_\w+|\w+_teacher|target|target_\w+|\w+_ema|ema)\."
)
# encoders whose tensors alone do not determine what they compute, or that fit no architecture here: names and message
_FOREIGN = (
    (
        r"(?:^|\.)embeddings\.(?:patch_embeddings\.|cls_token$|position_embeddings$)",
        "has the names of a vision transformer of transformers, whose configuration the tensors do not hold: save it "
        "with model.save_pretrained(FOLDER) and its image processor beside it, and import hf:FOLDER",
    ),
    (
        r"(?:^|\.)(?:patch_embed\.projection\.weight|layers\.0\.attn\.qkv\.weight)$",
        "has the names of a vision transformer of OpenMMLab, which is not read: import the checkpoint that it was "
        "converted from, or one of timm",
    ),
    (
        r"(?:^|\.)(?:downsample_layers|stages)\.0\.0\.",
        "has the names of a ConvNeXt or another hierarchical network, which is not read from a file of weights: import "
        "it as timm/NAME or hf:NAME",
    ),
    (
        r"(?:^|\.)visual\.(?:transformer\.resblocks|conv1)\.",
        "has the names of CLIP, which is not read from a file of weights: import it as timm/NAME",
    ),
)
_CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage of EfficientNet-Lite0; the first stage does not expand
_IN_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)")


def beside_an_encoder(name: str, *, inside: bool = False) -> tuple[str, str] | None:
    """What a tensor outside an encoder belongs to, such as ``"queue"``, and its place; None if no rule matches.

    Args:
        inside: the name begins inside the encoder. There only top-level parts are recognised, such as ``fc.``: blocks
            may have layers of such names that change features, as ``layer1.0.se.fc.`` of squeeze-and-excitation.
    """
    for what, pattern in _BESIDE:
        match = re.search(pattern, name)
        if match and (not inside or what == _ANYWHERE or (match.start() == 0 and what != _OUTSIDE)):
            return what, name[: match.end()].rstrip(".")
    return None


def foreign(names: Iterable[str]) -> str | None:
    """The kind of an encoder that cannot be read from its file, with a remedy; None for any other file."""
    listed = list(names)
    return next((text for pattern, text in _FOREIGN if any(re.search(pattern, name) for name in listed)), None)


def is_teacher(prefix: str) -> bool:
    """Whether an encoder with this prefix is a moving average, such as MoCo's ``encoder_k.``."""
    return _TEACHER.search(prefix) is not None


def sequential(name: str) -> str:
    """The name in ``torch.nn.Sequential(*resnet.children())``, as in lightly's examples: ``4.0.`` for ``layer1.0.``."""
    child, _, rest = name.partition(".")
    return f"{_CHILDREN[child]}.{rest}"


def huggingface(name: str) -> str:
    """The name in ``transformers.ResNetModel``."""
    stage, block, part, number, leaf = _parts(name)
    kind = {"conv": "convolution", "bn": "normalization"}[part.removeprefix("shortcut_")]
    if stage == 0:
        return f"embedder.embedder.{kind}.{leaf}"
    place = "shortcut" if part.startswith("shortcut_") else f"layer.{number - 1}"
    return f"encoder.stages.{stage - 1}.layers.{block}.{place}.{kind}.{leaf}"


def detectron2(name: str) -> str:
    """The name in the backbones of ``detectron2.modeling.build_resnet_backbone``."""
    stage, block, part, number, leaf = _parts(name)
    place = "stem" if stage == 0 else f"res{stage + 1}.{block}"
    layer = "shortcut" if part.startswith("shortcut_") else f"conv{number}"
    return f"{place}.{layer}.{'norm.' if part.endswith('bn') else ''}{leaf}"


def efficientnet_lite0(name: str) -> str:
    """The name in the EfficientNet of lukemelas/EfficientNet-PyTorch and its Lite variant.

    There, blocks are numbered across all stages, and a layer has the same name whether or not its block expands.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(conv|bn)_?(\w+?)\.(\w+)", name)
    if match is None:
        layer, _, leaf = name.partition(".")
        return f"_{ {'bn1': 'bn0', 'bn2': 'bn1'}.get(layer, layer) }.{leaf}"
    stage, block, kind, part, leaf = int(match[1]), int(match[2]), *match.groups()[2:]
    expands = stage > 0
    if kind == "conv":
        convolutions = {"dw": "depthwise", "pwl": "project", "pw": "expand" if expands else "project"}
        layer = f"{convolutions[part]}_conv"
    else:
        layer = f"bn{int(part) - expands}"
    return f"_blocks.{sum(_LITE0_DEPTHS[:stage]) + block}._{layer}.{leaf}"


def _parts(name: str) -> tuple[int, int, str, int, str]:
    """Stage (0: the stem), block, ``conv``, ``bn`` or either with ``shortcut_``, number of the layer, and the rest."""
    if match := _IN_BLOCK.fullmatch(name):
        stage, block, part, number, shortcut, leaf = match.groups()
        if shortcut is not None:
            part, number = ("shortcut_conv", "shortcut_bn")[int(shortcut)], 1
        return int(stage), int(block), part, int(number), leaf
    layer, _, leaf = name.partition(".")
    return 0, 0, layer.rstrip("1"), 1, leaf
