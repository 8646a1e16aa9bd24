"""BatchNorm's running statistics: kept during a training, or recomputed if it was too short for them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

VIEWS = 1024  # minimum number of images over which statistics are recomputed
_SHARE = 0.01  # weight of the statistics from before a training at which the running ones are stale


def layers(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that have running statistics."""
    return [one for one in module.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]


def keep_statistics(module: nn.Module) -> None:
    """Makes BatchNorm normalise by its running statistics, and leave them unchanged, until the next ``train()``."""
    for layer in layers(module):
        layer.eval()


def are_stale(module: nn.Module, steps: int) -> bool:
    """Whether, after so many steps, the statistics from before the first still weigh a hundredth or more.

    Their weight is (1 - momentum) ** steps: with the usual momentum of 0.1 it is below a hundredth from 44 steps on,
    with 0.01, as in MobileNetV3, from 459 on. A momentum of 0 keeps statistics by design, and None takes a mean.
    """
    momenta = [layer.momentum for layer in layers(module) if layer.momentum]
    return any((1 - momentum) ** steps >= _SHARE for momentum in momenta)


@contextmanager
def averaged(module: nn.Module) -> Iterator[None]:
    """A block that replaces running statistics by the equally weighted mean of those of the forwards within it.

    Reference: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, 2021, section 3.
    """
    changed = layers(module)
    momenta = [layer.momentum for layer in changed]
    for layer in changed:
        layer.reset_running_stats()
        layer.momentum = None
    try:
        yield
    finally:
        for layer, momentum in zip(changed, momenta, strict=True):
            layer.momentum = momentum
