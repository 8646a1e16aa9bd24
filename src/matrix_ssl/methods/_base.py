"""What every method is: a module that owns its networks and turns two views into a loss."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class StepOutput(NamedTuple):
    """What a method's forward gives. All tensors but the loss are detached."""

    loss: Tensor  # (), the same on every process
    terms: dict[str, Tensor]  # () each: the parts of the loss, and counts named in ``Method.counters``
    features: Tensor  # (n_local, k), the encoder's features of the first view
    student: Tensor  # (n_local, d), the student's outputs for the first view
    teacher: Tensor  # (n_local, d), what they are compared with


class Method(nn.Module, ABC):
    """Base class. A subclass takes ``(encoder, feature_dim, *, option=default, ...)`` and needs nothing else.

    Its keyword-only arguments are the settings ``method.option`` of a run, with the annotated types. It computes the
    loss of the batch of all processes, for example by ``matrix_ssl.distributed.gather``.
    """

    encoder: nn.Module  # the student's; what a run exports
    counters: tuple[str, ...] = ()  # names in ``terms`` that count events: summed over a run instead of averaged

    @abstractmethod
    def forward(self, view1: Tensor, view2: Tensor) -> StepOutput:
        """Loss of a batch from its two views, each (n_local, c, h, w)."""

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step, with the part of the training that is done, in (0, 1]."""

    def schedule(self, progress: float) -> dict[str, float]:
        """Scheduled quantities worth a curve, such as a teacher's momentum, at a part of the training in [0, 1]."""
        return {}

    def teacher_encoder(self) -> nn.Module | None:
        """The teacher's encoder, for methods that have one."""
        return None
