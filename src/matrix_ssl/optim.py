"""Optimizer and learning-rate schedule of a pre-training run."""

import math
from typing import Literal

import torch
from torch import nn


def build_optimizer(
    module: nn.Module, *, name: Literal["sgd", "adamw"], momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters; weight decay reaches all of them, as in the published code.

    Args:
        momentum: of SGD; AdamW has its own and ignores it.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trainable, lr=0.0, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(trainable, lr=0.0, weight_decay=weight_decay)


def learning_rate(step: int, *, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up from 0 to ``peak`` over ``warmup_steps``, then half a cosine to 0 at ``total_steps``.

    Args:
        step: from 0 to total_steps - 1.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value
