"""Base classes of methods, with and without a teacher: modules that hold the networks and turn views into a loss."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matrix_ssl import config, distributed
from matrix_ssl.losses import check_rows
from matrix_ssl.networks.teacher import cosine_momentum, make_teacher, update_teacher, weights_cast_once


class StepOutput(NamedTuple):
    """What a method's ``forward`` returns. All tensors except the loss are detached."""

    loss: Tensor  # (), the same on every process
    terms: dict[str, Tensor]  # () each: the parts of the loss, and counts named in ``Method.counters``
    features: Tensor  # (n_local, k), the encoder's features of the first view
    student: Tensor  # (n_local, d), the student's outputs for the first view
    teacher: Tensor  # (n_local, d), the targets of these outputs


class Method(nn.Module, ABC):
    """Base class of methods. A subclass's constructor takes ``(encoder, feature_dim, *, option=default, ...)``.

    ``encoder`` maps images (n, c, h, w) to features (n, feature_dim). Every keyword-only argument becomes a setting
    ``method.option`` of a run. Its annotation gives the type and, as in ``Annotated[int, Ge(1)]``, the range; any other
    value is a ConfigError. The loss must be that of the whole batch, across all processes: gather the outputs with
    ``matrix_ssl.distributed.gather``, for example.
    """

    encoder: nn.Module  # the student's encoder, which a run exports
    seed: int = 0  # the run's, set before the first step; for random numbers that all processes share
    counters: tuple[str, ...] = ()  # names in ``terms`` that count events: summed over a run instead of averaged
    needs_tokens: ClassVar[bool] = False  # whether the encoder must have tokens (``networks.has_tokens``)
    least_views: ClassVar[int] = 2  # per image
    # options that a comparison tries when it tunes, one mapping per variant; the defaults are always tried first
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        if "__init__" in vars(cls):
            cls.__init__ = _checked(cls.__init__)  # type: ignore[method-assign]

    @abstractmethod
    def forward(self, *views: Tensor) -> StepOutput:
        """The loss of a batch from its views, (n_local, c, h, w) each; a method may also take only ``view1, view2``."""

    def before_step(self, step: int, total_steps: int) -> None:
        """Called before every step with the number of completed steps, for losses with a schedule or random numbers."""

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step, with the fraction of the training completed, in (0, 1]."""

    def schedule(self, progress: float) -> dict[str, float]:
        """Scheduled quantities to plot, such as a teacher's momentum, at a fraction of the training in [0, 1]."""
        return {}

    def teacher_encoder(self) -> nn.Module | None:
        """The teacher's encoder, for methods that have one."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trainable parameters, in groups for a PyTorch optimizer.

        A group may contain ``rate``, which multiplies its learning rate, and ``constant``, which keeps the rate at its
        peak after the warm-up instead of following the cosine schedule.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    @classmethod
    def choose_views(cls, views: tuple[config.ViewConfig, ...]) -> tuple[config.ViewConfig, ...]:
        """The views of a run with this method, given those of a recipe for a different method."""
        return views

    @classmethod
    def recipe(cls, base: config.RunConfig) -> config.RunConfig:
        """``base``, a run with this package's defaults, changed to the values of the method's paper for ImageNet."""
        return base


class TeacherMethod(Method):
    """A method whose targets come from an exponential moving average of its encoder and projector.

    A subclass sets ``encoder`` and ``projector`` and then calls ``add_teacher``.
    """

    projector: nn.Module
    teacher: nn.ModuleDict
    teacher_momentum: float

    def add_teacher(self, momentum: float) -> None:
        """Creates the teacher as a copy of the student; ``momentum``, in [0, 1], is the initial one."""
        self.teacher_momentum = config.check_type(momentum, config.Fraction, "method.teacher_momentum")
        self.teacher = make_teacher(self._student())

    @torch.no_grad()
    def teach(self, view: Tensor) -> Tensor:
        """The teacher's projections of a view, without gradient."""
        with weights_cast_once(self.teacher, view):
            return self.teacher["projector"](self.teacher["encoder"](view))

    def after_step(self, progress: float) -> None:
        update_teacher(self.teacher, self._student(), self.schedule(progress)["teacher_momentum"])

    def schedule(self, progress: float) -> dict[str, float]:
        """The teacher's momentum, which rises to 1 along a cosine."""
        return {"teacher_momentum": cosine_momentum(progress, self.teacher_momentum)}

    def teacher_encoder(self) -> nn.Module:
        return self.teacher["encoder"]

    def _student(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.encoder, "projector": self.projector})


def global_views(views: Sequence[Tensor]) -> list[int]:
    """Indices of the views (n, c, h, w) that are at least as large as the first one; smaller views are local."""
    return [place for place, view in enumerate(views) if view.shape[-1] >= views[0].shape[-1]]


def view_pairs(views: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Index pairs of views, at least one of them global, for a loss of two views: (0, 1) if there are two."""
    known = set(global_views(views))
    return [(a, b) for a, b in itertools.combinations(range(len(views)), 2) if known & {a, b}]


def student_teacher_pairs(views: Sequence[Tensor]) -> list[tuple[int, int, int, int]]:
    """Indices (a, b, c, d) for a loss(z_a, z_b, p_c, p_d) that is the mean over the pairs (z_a, p_d) and (z_b, p_c).

    Together they cover every pair of any view for the student and a different, global one for the teacher: (0, 1, 0, 1)
    for two views. If the number of pairs is odd, every pair is taken twice.
    """
    orders = [(s, t) for s in range(len(views)) for t in global_views(views) if s != t]
    orders *= 1 + len(orders) % 2
    return [(a, b, c, d) for (a, d), (b, c) in zip(orders[::2], orders[1::2], strict=True)]


def check_views(outputs: Sequence[Tensor]) -> None:
    """Raises ValueError unless there are outputs of at least two views, all of the same shape (n, d) with n ≥ 2."""
    check_rows(**{f"z{number}": z for number, z in enumerate(outputs, 1)})
    if len(outputs) < 2:
        raise ValueError(f"Expected the outputs of two views or more, got {len(outputs)}.")


def cross_entropy_of_views(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """-Σ_k q_gk log softmax(logits_v)_k, averaged over the n rows and all views v and g ≠ v: a scalar in nats.

    Args:
        logits: one (n, k) tensor per view v; at least one view has a target other than its own.
        targets: (n, k) each, the distributions q_g of the first of these views.
    """
    losses, pairs = [], 0
    for place, view in enumerate(logits):
        others = [target for number, target in enumerate(targets) if number != place]
        if others:  # cross-entropy is linear in the targets: one softmax per view is enough
            losses.append(F.cross_entropy(view, sum(others[1:], others[0]), reduction="sum"))
            pairs += len(others)
    return torch.stack(losses).sum() / (pairs * len(logits[0]))


def gather_outputs(*outputs: Tensor) -> tuple[Tensor, ...]:
    """The rows of several outputs (n_local, d) of the same shape from all processes, gathered in a single exchange."""
    if distributed.world_size() == 1:
        return outputs
    return distributed.gather(torch.stack(outputs, dim=1)).unbind(1)


def mean_over_processes(local: Tensor) -> Tensor:
    """The mean over all processes of a loss that is a mean over rows; all must have the same number of rows."""
    return distributed.sum_of_parts(local / distributed.world_size())


def check_options(constructor: Callable[..., None], options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options, checked against its constructor's annotated types and ranges; otherwise a ConfigError."""
    hints = get_type_hints(constructor, include_extras=True)
    return {name: config.check_type(value, hints.get(name, Any), f"method.{name}") for name, value in options.items()}


def _checked(initialise: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(initialise)
    def checked_init(self: Method, *args: Any, **options: Any) -> None:
        initialise(self, *args, **check_options(initialise, options))

    return checked_init
