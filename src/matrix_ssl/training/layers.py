"""The depth of every parameter of an encoder, and parameter groups in which deeper ones learn faster.

A depth is a stage of a ResNet, a block of any other network that is a sequence of blocks, and otherwise a child of the
module. Whatever precedes the first of them, such as class tokens and positions, has depth 0, and a norm has the depth
of what it follows.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torchvision.models import vision_transformer

_CONTAINERS = (nn.Sequential, nn.ModuleList, vision_transformer.Encoder)
_STAGE = re.compile(r"layer\d$")  # of ResNets: a sequence of blocks that is one depth


def depths(encoder: nn.Module) -> dict[nn.Parameter, int]:
    """The depth of every parameter, from 0 at the images, in the order in which modules are defined."""
    result: dict[nn.Parameter, int] = {}
    depth = -1
    for parameters, begins in _units(_descend(encoder)):
        new = [parameter for parameter in parameters if parameter not in result]
        depth += begins and bool(new) and (depth < 0 or any(parameter.ndim > 1 for parameter in new))
        result |= dict.fromkeys(new, max(depth, 0))
    return result


def layerwise(groups: Iterable[dict[str, Any]], encoder: nn.Module, *, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which the encoder's parameters are separate and marked ``encoder``.

    The heads keep their ``rate``, the deepest part of the encoder gets ``layer_decay`` times it, and every earlier part
    gets ``layer_decay`` times the rate of the part that follows.

    Args:
        groups: as ``Method.parameter_groups`` gives them.
        layer_decay: in (0, 1].

    Reference: Clark, Luong, Le and Manning, "ELECTRA", ICLR 2020, appendix B; for vision transformers Bao, Dong, Piao
    and Wei, "BEiT", ICLR 2022, section 3.1.
    """
    by_depth = depths(encoder)
    last = max(by_depth.values(), default=0)
    split: list[dict[str, Any]] = []
    for group in groups:
        options = {name: value for name, value in group.items() if name != "params"}
        heads = [parameter for parameter in group["params"] if parameter not in by_depth]
        split.append({**options, "params": heads})
        for depth in range(last + 1):
            inside = [parameter for parameter in group["params"] if by_depth.get(parameter) == depth]
            rate = options.get("rate", 1.0) * layer_decay ** (last + 1 - depth)
            split.append({**options, "params": inside, "rate": rate, "encoder": True})
    return [group for group in split if group["params"]]


def _units(module: nn.Module) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Parameters that belong together, in order, and whether a new depth begins with them."""
    yield list(module.parameters(recurse=False)), False
    for name, child in module.named_children():
        if isinstance(child, _CONTAINERS) and not _STAGE.match(name):
            yield from _units(child)
        else:
            yield list(child.parameters()), True


def _descend(module: nn.Module) -> nn.Module:
    """The module itself or, recursively, its only child with parameters if that holds all of them."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    if len(children) == 1 and not list(module.parameters(recurse=False)):
        return _descend(children[0])
    return module
