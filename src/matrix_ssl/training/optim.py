"""Optimizers and the learning-rate schedule of a pre-training run."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

_WAYS = ("fused", "foreach", "capturable")  # ways of computing the same step; each optimizer has some of them


def build_optimizer(
    module: nn.Module,
    *,
    name: Literal["sgd", "adamw", "lars"],
    momentum: float,
    weight_decay: float,
    groups: Iterable[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters.

    With SGD and AdamW, weight decay applies to all parameters, as in the published code; LARS exempts biases and
    BatchNorm. On a GPU a step takes a few operations over all parameters, whatever their number.

    Args:
        momentum: for SGD and LARS; AdamW has its own.
        groups: parameter groups, such as those of ``Method.parameter_groups``; default: a single group.
    """
    trainable: list[dict[str, Any]] = [{"params": [p for p in module.parameters() if p.requires_grad]}]
    kept = [group for group in (trainable if groups is None else groups) if group["params"]]
    if name == "lars":
        return LARS(kept, lr=0.0, momentum=momentum, weight_decay=weight_decay)
    device = kept[0]["params"][0].device.type
    together: dict[str, Any] = {"fused": True} if device == "cuda" else {"foreach": device != "cpu"}
    if name == "sgd":
        return torch.optim.SGD(kept, lr=0.0, momentum=momentum, weight_decay=weight_decay, **together)
    return torch.optim.AdamW(kept, lr=0.0, weight_decay=weight_decay, **together)


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores a ``state_dict``, on this device or another, with moments in the memory layout of their parameters.

    A file holds moments in the order of their indices, while convolution weights are channels-last. Fused optimizers
    refuse different layouts on a GPU, and on a CPU mistake the numbers of one for those of the other. How an optimizer
    computes its step (fused, foreach) is not loaded, since that depends on the device.

    Raises:
        ValueError, LookupError, TypeError, RuntimeError: the state does not belong to this optimizer.
    """
    ways = [{name: group[name] for name in _WAYS if name in group} for group in optimizer.param_groups]
    if len(ways) == len(state["param_groups"]):  # otherwise the line below reports what is wrong
        state = state | {"param_groups": [group | way for group, way in zip(state["param_groups"], ways, strict=True)]}
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.shape == parameter.shape and moment.ndim > 1:
                moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: SGD in which every weight's step is proportional to that weight's norm.

        g ← gradient + weight_decay · w,   g ← trust · ‖w‖/‖g‖ · g,   m ← momentum · m + g,   w ← w - lr · m

    Biases and the parameters of BatchNorm (one dimension or none) get neither decay nor scaling, as in the
    self-supervised methods that use it; those of a group marked ``scale_vectors`` get both, as in the published linear
    evaluations. If a norm is zero, there is no scaling.

    Args:
        params: parameters, or groups of them.
        lr, weight_decay: ≥ 0.
        momentum: in [0, 1].
        trust: the trust coefficient, > 0.

    Raises:
        ValueError: a number is out of range.

    Reference: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888, 2017,
    algorithm 1; with the exclusions of Grill et al., NeurIPS 2020, section 3.3.
    """

    def __init__(
        self, params: Any, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ):
        for what, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("trust", trust)):
            if not 0 <= value < math.inf or (what == "momentum" and value > 1) or (what == "trust" and value == 0):
                raise ValueError(f"{what} is out of range: {value}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update; ``closure`` computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, [parameter.grad for parameter in parameters], group)
        return loss

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """Updates some parameters in a few operations over all of them, without waiting for the device."""
        scaled = [i for i, p in enumerate(parameters) if p.ndim > 1 or group.get("scale_vectors", False)]
        if scaled:
            weights = [parameters[i] for i in scaled]
            decayed = torch._foreach_add([gradients[i] for i in scaled], weights, alpha=group["weight_decay"])
            norms, sizes = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, decayed))
            scales = torch.where((norms > 0) & (sizes > 0), group["trust"] * norms / sizes, 1.0)
            for i, gradient in zip(scaled, torch._foreach_mul(decayed, scales.unbind()), strict=True):
                gradients[i] = gradient
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def learning_rate(step: int, *, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up from 0 to ``peak`` over ``warmup_steps``, then half a cosine to 0 at ``total_steps``."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(
    optimizer: torch.optim.Optimizer, value: float, *, held: float | None = None, encoder: float = 1.0
) -> None:
    """Sets the rate of every parameter group, times the group's own ``rate`` if it has one.

    Args:
        value: the rate of the schedule.
        held: rate of groups marked ``constant``, such as the peak once the warm-up is over; default: ``value``.
        encoder: a further factor for groups marked ``encoder``.
    """
    for group in optimizer.param_groups:
        chosen = held if held is not None and group.get("constant", False) else value
        group["lr"] = group.get("rate", 1.0) * chosen * (encoder if group.get("encoder", False) else 1.0)


def drop_encoder_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Makes the next step leave groups marked ``encoder`` unchanged: no update, no decay, no momentum."""
    for group in optimizer.param_groups:
        if group.get("encoder", False):
            for parameter in group["params"]:
                parameter.grad = None
